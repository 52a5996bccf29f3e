"""What a group of runs scored, and how groups compare. The definitions are on every report (`DEFINITIONS`)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
ALL_PAIRS = 8  # groups of an environment; with more, each is compared with the best one only
TAUS = np.linspace(-0.25, 1.75, 201)  # normalised scores of the performance profile
AGARWAL = "Agarwal et al. 2021, arXiv:2108.13264"
FUJIMOTO = "Fujimoto et al. 2018, arXiv:1802.09477"

DEFINITIONS = {
    "last10": "mean over seeds of each seed's mean over its last ten evaluations, ± standard deviation over seeds "
    f"(ddof=0); the convention of Table 2 of {FUJIMOTO}",
    "max_mean": "maximum over time of the mean over seeds, ± standard deviation over seeds at that step (ddof=0); the "
    f"convention of Table 1 of {FUJIMOTO}",
    "IQM": f"mean of the middle half of the seeds' last10, a quarter cut off at each end; {AGARWAL}",
    "[low, high]": "95% interval: percentile bootstrap over seeds, 10,000 draws; Efron 1979",
    "difference": "difference of the last10 of two groups, with its 95% interval; of the same seed where two or more "
    "seeds are shared (paired), otherwise of all seeds; not corrected for the number of comparisons",
    "P(better)": f"probability that a seed of the first group has a higher last10, ties half; on the same seeds as the "
    f"difference; {AGARWAL}",
    "normalised score": "0 is the uniformly random policy (100 episodes), 1 the published TD3 "
    f"(Table 1 of {FUJIMOTO}, else the first source that has the environment)",
    "aggregate IQM": "IQM of the normalised last10 over all seeds and environments, bootstrap stratified by "
    f"environment; {AGARWAL}",
    "performance profile": f"share of seeds with a normalised score above τ, mean over environments; {AGARWAL}",
    "P(improvement)": "mean over environments of the probability that a seed of the first group scores higher "
    f"(Mann-Whitney U / nm); {AGARWAL}",
    "hours": "mean over seeds of the wall-clock time until the last step; seeds trained in one process count it each",
}


@dataclass(frozen=True)
class Row:
    """One environment and group; the columns of summary.csv in their order."""

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


@dataclass(frozen=True)
class Pair:
    """Two groups of one environment, compared at the last step that both have."""

    env: str
    a: str
    b: str
    steps: int
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
        iqm: by group, with the interval.
        profiles: by group; `(profile, low, high)`, each over `TAUS`.
        improvements: of pairs of groups.
    """

    steps: Mapping[str, int]
    references: Mapping[str, tuple[float, float, Published]]
    missing: tuple[str, ...]
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
    )


def compare(groups: Sequence[Group]) -> list[Pair]:
    """The groups of one environment in pairs, the one with the higher last10 first."""
    ranked = sorted(groups, key=lambda group: -last10(group).mean())
    return [_pair(a, b) for a, b in _in_pairs(ranked)]


def clearly_best(groups: Sequence[Group], pairs: Sequence[Pair], min_seeds: int) -> str | None:
    """The group of an environment whose difference from each other group is above 0 with its whole interval.

    None if there is no such group, only one group, or one with fewer than `min_seeds` seeds: their intervals are too
    narrow.
    """
    if len(groups) < 2 or min(len(group.seeds) for group in groups) < min_seeds:
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
    """Published numbers of one environment whose convention, algorithm and step ours share."""
    found = []
    for published in published_for(groups[0].env_id):
        ours = {}
        for group in groups:
            same = group.algo == published.algorithm.lower().rpartition(" ")[2] and group.evaluated and _plain(group)
            if same and (value := _by_convention(group, published)) is not None:
                ours[group.name] = value
        if ours:
            found.append(Beside(published, groups[0].env_id, ours))
    return found


def aggregate(groups: Sequence[Group]) -> Aggregate | None:
    """Normalised scores over the environments of the group that has most; None if that is fewer than two."""
    references = {}
    for group in groups:
        if _plain(group) and group.evaluated and (found := reference(group.env_id)) is not None:
            references[group.env_id] = found
    by_name: dict[str, dict[str, Group]] = {}
    for group in groups:
        if group.env_id in references:
            by_name.setdefault(group.label, {})[group.env_id] = group
    if not by_name:
        return None
    envs = max((list(own) for own in by_name.values()), key=len)
    if len(envs) < 2:
        return None
    whole = {name: own for name, own in by_name.items() if set(envs) <= set(own)}
    steps = {env: min(int(own[env].steps[-1]) for own in whole.values()) for env in envs}
    scores = {}
    for name, own in whole.items():
        scores[name] = [
            (last10(own[env].until(steps[env])) - references[env][0]) / (references[env][1] - references[env][0])
            for env in envs
        ]
    ranked = sorted(scores, key=lambda name: -float(iqm(np.concatenate(scores[name]))))
    return Aggregate(
        steps=steps,
        references={env: references[env] for env in envs},
        missing=tuple(name for name in by_name if name not in whole),
        iqm={name: _aggregate_iqm(scores[name]) for name in ranked},
        profiles={name: performance_profile(scores[name], TAUS) for name in ranked},
        improvements={(a, b): probability_of_improvement(scores[a], scores[b]) for a, b in _in_pairs(ranked)},
    )


def _in_pairs(ranked: Sequence[T]) -> list[tuple[T, T]]:
    """All pairs; of many, those with the first."""
    if len(ranked) <= ALL_PAIRS:
        return list(itertools.combinations(ranked, 2))
    return [(ranked[0], other) for other in ranked[1:]]


def _pair(a: Group, b: Group) -> Pair:
    step = int(min(a.steps[-1], b.steps[-1]))
    scores = [dict(zip(own.seeds, last10(own.until(step)).tolist(), strict=True)) for own in (a, b)]
    return Pair(a.env_id, a.name, b.name, step, difference(*scores), probability_better(*scores))


def _wins(pair: Pair, name: str) -> bool:
    return pair.difference.low > 0 if name == pair.a else pair.difference.high < 0


def _plain(group: Group) -> bool:
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
        scores = last10(until)
        return float(scores.mean()), float(scores.std())
    if published.convention == "max_mean":
        means = until.returns.mean(axis=0)
        best = int(means.argmax())
        return float(means[best]), float(until.returns[:, best].std())
    if published.convention in ("at_step", "final_evaluation") and until.steps[-1] == published.steps:
        return float(until.returns[:, -1].mean()), float(until.returns[:, -1].std())
    return None


def _aggregate_iqm(scores: list[np.ndarray]) -> tuple[float, float, float]:
    low, high = bootstrap(scores, lambda drawn: iqm(np.concatenate(drawn, axis=1), axis=1))
    return float(iqm(np.concatenate(scores))), float(low), float(high)
