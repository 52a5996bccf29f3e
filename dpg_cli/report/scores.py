"""What a group of runs scored, and how groups compare. The definitions are on every report (`DEFINITIONS`)."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from dpg_cli.report.groups import Group
from dpg_cli.report.published import Published, published_for, reference
from dpg_cli.report.statistics import (
    Comparison,
    bootstrap,
    difference,
    first_step_at,
    interval,
    iqm,
    performance_profile,
    probability_better,
    probability_of_improvement,
)

T = TypeVar("T")
LAST = 10  # evaluations in last10
LAST10_SPAN = 0.1  # of the training; published last10 are of evaluations every 5,000 of a million steps
ALL_PAIRS = 8  # groups of an environment; with more, each is compared with the best one only
TAUS = np.linspace(-0.25, 1.75, 201)  # normalised scores of the performance profile
AGARWAL = "Agarwal et al. 2021, arXiv:2108.13264"
EFRON = "Efron and Tibshirani 1993, An Introduction to the Bootstrap"
FUJIMOTO = "Fujimoto et al. 2018, arXiv:1802.09477"

DEFINITIONS = {
    "last10": "mean over seeds of each seed's mean over its last ten evaluations, ± standard deviation over seeds "
    f"(ddof=0); the convention of Table 2 of {FUJIMOTO}",
    "max_mean": "maximum over time of the mean over seeds, ± standard deviation over seeds at that step (ddof=0); the "
    f"convention of Table 1 of {FUJIMOTO}",
    "IQM": f"mean of the middle half of the seeds' last10, a quarter cut off at each end; {AGARWAL}",
    "95% interval": f"percentile bootstrap over seeds, 10,000 draws; {EFRON}, chapter 13",
    "bold": "the difference from each other group of the environment has an interval above 0, and each comparison has "
    "at least min_seeds seeds and ten evaluations",
    "difference": "difference of the last10 of two groups, over the evaluations that both have after step 0. If their "
    "seeds are the same, or they share at least min_seeds, of these seeds in pairs; otherwise both groups are "
    f"resampled. Not corrected for the number of comparisons; {EFRON}, chapter 8",
    "P(better)": "share of these pairs in which the first group has the higher last10, ties half; without pairs, of "
    f"all pairs of runs (Mann-Whitney U / nm, {AGARWAL})",
    "not learned": "last10 is no more than two standard deviations above the mean of the untrained policies' episodes",
    "normalised score": "0 is the uniformly random policy (100 episodes), 1 the published TD3 "
    f"(Table 1 of {FUJIMOTO}, else the first source that has the environment)",
    "aggregate IQM": "IQM of the normalised last10 over all seeds and environments, by the evaluations that all groups "
    f"have after step 0; bootstrap stratified by environment; {AGARWAL}",
    "performance profile": f"share of seeds with a normalised score above τ, mean over environments; {AGARWAL}",
    "P(improvement)": "mean over environments of the probability that a run of the first group scores higher "
    f"(Mann-Whitney U / nm); {AGARWAL}",
    "offline": "runs that learned from a data set: their steps are updates; no comparison mixes them with online runs",
    "hours": "wall-clock time until the last step, without pauses between resumptions, mean over seeds; seeds that "
    "train in one process each count its whole time",
}


@dataclass(frozen=True)
class Row:
    """One environment and group; the columns of summary.csv in their order, except the last field."""

    env: str
    group: str
    seeds: int
    steps: int
    last10_mean: float
    last10_std: float
    last10_low: float
    last10_high: float
    max_mean: float
    max_mean_std: float
    max_mean_step: int
    iqm: float
    iqm_low: float
    iqm_high: float
    hours: float
    counted: str = "steps"  # what steps are; no column


@dataclass(frozen=True)
class Pair:
    """Two groups of one environment, compared by the evaluations that both have after the first step.

    Attributes:
        env: the environment's id.
        a: name of the first group.
        b: name of the second group.
        steps: the last that both have.
        evaluations: on which each seed's last10 rests.
        difference: of a and b.
        better: how probably a seed of a scores more.
    """

    env: str
    a: str
    b: str
    steps: int
    evaluations: int
    difference: Comparison
    better: Comparison


@dataclass(frozen=True)
class Threshold:
    """When the seeds of a group reached a return."""

    env: str
    group: str
    steps: tuple[int | None, ...]  # by seed; None if never
    hours: tuple[float, ...]  # NaN if never

    def median(self) -> tuple[float, float]:
        """Steps and hours until half of the seeds had reached it; infinite if they did not."""
        steps = np.array([np.inf if step is None else step for step in self.steps])
        hours = np.array(
            [np.inf if step is None else hours for step, hours in zip(self.steps, self.hours, strict=True)]
        )
        return float(np.quantile(steps, 0.5, method="higher")), float(np.quantile(hours, 0.5, method="higher"))


@dataclass(frozen=True)
class Beside:
    """A published number, and ours of the same convention at the same step: mean and deviation by group."""

    published: Published
    env: str
    ours: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Aggregate:
    """Normalised scores over several environments.

    Attributes:
        steps: by environment, the step at which all groups are compared.
        references: by environment, the random policy's return, the published one, and its source.
        missing: groups that lack one of the environments.
        without: environments that are in no aggregate.
        seeds: by group, the fewest in an environment.
        iqm: by group, with the interval.
        profiles: by group; `(profile, low, high)`, each over `TAUS`.
        improvements: of pairs of groups.
    """

    steps: Mapping[str, int]
    references: Mapping[str, tuple[float, float, Published]]
    missing: tuple[str, ...]
    without: tuple[str, ...]
    seeds: Mapping[str, int]
    iqm: Mapping[str, tuple[float, float, float]]
    profiles: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    improvements: Mapping[tuple[str, str], Comparison]


def last10(group: Group) -> np.ndarray:
    """Each seed's mean over its last ten evaluations, `(S,)`. Points of training episodes are means: only the last."""
    kept: np.ndarray = group.returns[:, -LAST:] if group.evaluated else group.returns[:, -1:]
    mean: np.ndarray = kept.mean(axis=1)
    return mean


def row(group: Group) -> Row:
    """The row of a group in summary.csv."""
    scores, means = last10(group), group.returns.mean(axis=0)
    best = int(means.argmax())
    low, high = interval(scores)
    iqm_low, iqm_high = bootstrap(scores, lambda drawn: iqm(drawn, axis=1))
    return Row(
        env=group.env_id,
        group=group.name,
        seeds=len(group.seeds),
        steps=int(group.steps[-1]),
        last10_mean=float(scores.mean()),
        last10_std=float(scores.std()),
        last10_low=float(low),
        last10_high=float(high),
        max_mean=float(means[best]),
        max_mean_std=float(group.returns[:, best].std()),
        max_mean_step=int(group.steps[best]),
        iqm=float(iqm(scores)),
        iqm_low=float(iqm_low),
        iqm_high=float(iqm_high),
        hours=float(group.hours[:, -1].mean()),
        counted=group.counted,
    )


def compare(groups: Sequence[Group], min_seeds: int) -> list[Pair]:
    """The groups of one environment in pairs, the one with the higher last10 first.

    Args:
        groups: of one environment.
        min_seeds: of seeds that two groups share, so many are enough to compare only these.
    """
    ranked = sorted(groups, key=lambda group: -last10(group).mean())
    found = (_pair(a, b, min_seeds) for a, b in _in_pairs(ranked))
    return [pair for pair in found if pair is not None]


def clearly_best(groups: Sequence[Group], pairs: Sequence[Pair], min_seeds: int) -> str | None:
    """The group of an environment whose difference from each other group is above 0 with its whole interval.

    None if there is no such group, only one group, a comparison of fewer than `min_seeds` seeds, whose interval is too
    narrow, or of fewer than ten evaluations.
    """
    if not pairs or min(pair.difference.seeds for pair in pairs) < min_seeds:
        return None
    if min(pair.evaluations for pair in pairs) < LAST:
        return None
    best = max(groups, key=lambda group: float(last10(group).mean())).name
    wins = {pair.b if pair.a == best else pair.a for pair in pairs if best in (pair.a, pair.b) and _wins(pair, best)}
    return best if len(wins) == len(groups) - 1 else None


def thresholds(groups: Sequence[Group], threshold: float) -> list[Threshold]:
    """When the seeds of each group reached a return."""
    found = []
    for group in groups:
        steps = tuple(first_step_at(group.steps, returns, threshold) for returns in group.returns)
        hours = tuple(
            float("nan") if step is None else float(own[np.searchsorted(group.steps, step)])
            for step, own in zip(steps, group.hours, strict=True)
        )
        found.append(Threshold(group.env_id, group.name, steps, hours))
    return found


def beside_published(groups: Sequence[Group]) -> list[Beside]:
    """Published numbers of one environment, beside ours of the same algorithm and convention, until the same step."""
    found = []
    for published in published_for(groups[0].env_id):
        ours = {}
        for group in groups:
            same = (
                group.algo == published.algorithm.lower().rpartition(" ")[2]
                and group.evaluated
                and not group.offline
                and is_standard(group)
            )
            if same and (value := _by_convention(group, published)) is not None:
                ours[group.name] = value
        if ours:
            found.append(Beside(published, groups[0].env_id, ours))
    return found


def aggregates(groups: Sequence[Group]) -> dict[str, Aggregate]:
    """Normalised scores over several environments: all, or by version if an environment is there in several."""
    usable = [group for group in groups if is_standard(group) and group.evaluated]
    if not all(group.offline for group in usable):  # updates are no environment steps
        usable = [group for group in usable if not group.offline]
    references = {group.env_id: known for group in usable if (known := reference(group.env_id)) is not None}
    names: dict[str, set[str]] = {}
    for env in references:
        names.setdefault(env.rpartition("-")[0], set()).add(env)
    mixed = any(len(versions) > 1 for versions in names.values())
    parts: dict[str, list[Group]] = {}
    for group in usable:
        if group.env_id in references:
            parts.setdefault(group.env_id.rpartition("-")[2] if mixed else "", []).append(group)
    found = {version: _aggregate(own, references) for version, own in parts.items()}
    kept = {version: own for version, own in found.items() if own is not None}
    in_one = {env for own in kept.values() for env in own.steps}
    without = tuple(env for env in dict.fromkeys(group.env_id for group in groups) if env not in in_one)
    return {version: replace(own, without=without) for version, own in kept.items()}


def _aggregate(groups: Sequence[Group], references: Mapping[str, tuple[float, float, Published]]) -> Aggregate | None:
    """Over the environments of the group that has most, by the evaluations that all groups have; None if too few."""
    by_label: dict[str, dict[str, Group]] = {}
    for group in groups:
        by_label.setdefault(group.label, {})[group.env_id] = group
    envs = max((list(own) for own in by_label.values()), key=len)
    if len(envs) < 2:
        return None
    whole = {label: own for label, own in by_label.items() if set(envs) <= set(own)}
    common = {env: shared_steps([own[env] for own in whole.values()]) for env in envs}
    envs = [env for env in envs if len(common[env])]
    if len(envs) < 2:
        return None
    scores = {}
    for label, own in whole.items():
        scores[label] = [
            (last10(own[env].at(common[env])) - references[env][0]) / (references[env][1] - references[env][0])
            for env in envs
        ]
    ranked = sorted(scores, key=lambda label: -float(iqm(np.concatenate(scores[label]))))
    return Aggregate(
        steps={env: int(common[env][-1]) for env in envs},
        references={env: references[env] for env in envs},
        missing=tuple(label for label in by_label if label not in whole),
        without=(),
        seeds={label: min(map(len, scores[label])) for label in ranked},
        iqm={label: _aggregate_iqm(scores[label]) for label in ranked},
        profiles={label: performance_profile(scores[label], TAUS) for label in ranked},
        improvements={(a, b): probability_of_improvement(scores[a], scores[b]) for a, b in _in_pairs(ranked)},
    )


def _in_pairs(ranked: Sequence[T]) -> list[tuple[T, T]]:
    """All pairs; of many, those with the first."""
    if len(ranked) <= ALL_PAIRS:
        return list(itertools.combinations(ranked, 2))
    return [(ranked[0], other) for other in ranked[1:]]


def _pair(a: Group, b: Group, min_seeds: int) -> Pair | None:
    """None if they share no evaluation after the first step, or if only one has evaluations or learned offline."""
    common = shared_steps([a, b])
    if not len(common) or (a.evaluated, a.offline) != (b.evaluated, b.offline):
        return None
    ours, theirs = (dict(zip(own.seeds, last10(own.at(common)).tolist(), strict=True)) for own in (a, b))
    least = 2 if set(a.seeds) == set(b.seeds) else min_seeds
    found = difference(ours, theirs, least), probability_better(ours, theirs, least)
    number = min(LAST, len(common)) if a.evaluated else 1
    return Pair(a.env_id, a.name, b.name, int(common[-1]), number, *found)


def shared_steps(groups: Sequence[Group]) -> np.ndarray:
    """Steps of the evaluations that all groups have, without that of the untrained policies at step 0."""
    steps = functools.reduce(np.intersect1d, (group.steps for group in groups))
    return steps[steps > 0]


def _wins(pair: Pair, name: str) -> bool:
    return pair.difference.low > 0 if name == pair.a else pair.difference.high < 0


def is_standard(group: Group) -> bool:
    """Whether the environment is as its id says, so that its returns can be compared with those of others."""
    settings = group.runs[0].settings
    changed = any(key.startswith("env.kwargs.") for key in settings)
    return not changed and settings.get("env.max_episode_steps") is None


def _by_convention(group: Group, published: Published) -> tuple[float, float] | None:
    """Ours at the published step; None if that is not among the evaluations, or the convention is not one of ours."""
    if published.steps is None or published.steps > group.steps[-1]:
        return None
    until = group.until(published.steps)
    if published.convention == "last10":
        if until.steps[-1] - until.steps[-LAST:][0] > LAST10_SPAN * published.steps:
            return None
        scores = last10(until)
        return float(scores.mean()), float(scores.std())
    if published.convention == "max_mean":
        means = until.returns.mean(axis=0)
        best = int(means.argmax())
        return float(means[best]), float(until.returns[:, best].std())
    if published.convention == "at_step" and until.steps[-1] == published.steps:
        return float(until.returns[:, -1].mean()), float(until.returns[:, -1].std())
    return None


def _aggregate_iqm(scores: list[np.ndarray]) -> tuple[float, float, float]:
    low, high = bootstrap(scores, lambda drawn: iqm(np.concatenate(drawn, axis=1), axis=1))
    return float(iqm(np.concatenate(scores))), float(low), float(high)
