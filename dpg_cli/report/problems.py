"""What a reader of a report must know before trusting its numbers."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dpg_cli.errors import one_line
from dpg_cli.report.groups import UNSET, Group, differing, text
from dpg_cli.report.runs import Run
from dpg_cli.report.scores import LAST, last10, shared_steps

UNFINISHED = {"failed": "failed", "interrupted": "stopped early", "running": "still running"}
NAMED = 3  # groups, in one line
SATURATED = 0.95  # share of action components at ±1


def problems(groups: Sequence[Group], unreadable: Mapping[Path, str], min_seeds: int, x: str) -> list[str]:
    """One line each, the worst first.

    Args:
        groups: all of the report.
        unreadable: folders that could not be read, and why.
        min_seeds: below which an interval is marked.
        x: the figures' axis, `steps` or `hours`.
    """
    lines = [f"not in the numbers: {reason}" for reason in unreadable.values()]
    for group in groups:
        lines += _left_out(group)
    for found in (_unfinished, _never_learned, lambda group: _of_group(group, min_seeds, x)):
        lines += _merged([(_name(group), line) for group in groups for line in found(group)])
    for env in dict.fromkeys(group.env_id for group in groups):
        lines += _of_environment([group for group in groups if group.env_id == env])
    return [one_line(line) for line in lines]


def _merged(lines: Sequence[tuple[str, str]]) -> list[str]:
    """What is true of several groups, once."""
    names: dict[str, list[str]] = {}
    for name, line in lines:
        names.setdefault(line, []).append(name)
    return [
        f"{'; '.join(own) if len(own) <= NAMED else f'{own[0]} and {len(own) - 1} other groups'}: {line}"
        for line, own in names.items()
    ]


def never_learned(group: Group) -> list[int]:
    """Seeds whose last10 is no more than two standard deviations above the mean of the untrained policies' episodes.

    Runs that started with the networks of another run do not count: their first policy was trained.
    """
    new = [run for run in group.runs if run.settings.get("init") in (None, UNSET)]
    untrained = [run.untrained for run in new if len(run.untrained)]
    if not untrained or group.steps[-1] == 0:
        return []
    episodes = np.concatenate(untrained)
    enough = episodes.mean() + 2 * episodes.std()
    seeds = {run.seed for run in new}
    scores = zip(group.seeds, last10(group), strict=True)
    return [seed for seed, score in scores if score <= enough and seed in seeds]


def listed(numbers: Sequence[int]) -> str:
    """Seeds in words: `seed 3`, `seeds 0, 2 and 5`, `seeds 0 to 9`."""
    if len(numbers) == 1:
        return f"seed {numbers[0]}"
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) > 2:
        return f"seeds {numbers[0]} to {numbers[-1]}"
    shown = [str(number) for number in numbers[:20]] + (["more"] if len(numbers) > 20 else [])
    return f"seeds {', '.join(shown[:-1])} and {shown[-1]}"


def _name(group: Group) -> str:
    return f"{group.env_id}, {group.name}"


def _left_out(group: Group) -> list[str]:
    by_reason: dict[str, list[Run]] = {}
    for left in group.left_out:
        error = f"; {left.run.error}" if left.run.error else ""
        by_reason.setdefault(f"{left.reason}{error}", []).append(left.run)
    return [
        f"{_name(group)}: {listed(sorted({run.seed for run in runs}))} not in the numbers: {reason} ({_folders(runs)})"
        for reason, runs in by_reason.items()
    ]


def _folders(runs: Sequence[Run]) -> str:
    return f"{runs[0].folder}" + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")


def _unfinished(group: Group) -> list[str]:
    seeds: dict[str, list[int]] = {}
    for run in (run for run in group.runs if run.status in UNFINISHED):
        reason = f": {run.error}" if run.error else ""
        what = f"{UNFINISHED[run.status]} (last evaluation at {group.counted[:-1]} {run.steps[-1]:,}){reason}"
        seeds.setdefault(what, []).append(run.seed)
    return [f"{listed(own)} {what}" for what, own in seeds.items()]


def _never_learned(group: Group) -> list[str]:
    seeds = never_learned(group)
    if not seeds:
        return []
    saturated = [run.seed for run in group.runs if run.seed in seeds and run.saturation >= SATURATED]
    cause = f"; policy/saturation is near 1 in {listed(saturated)}" if saturated else ""
    never = "has" if len(seeds) == 1 else "have"
    why = f"last10 is within two standard deviations of the untrained policies{cause}"
    return [f"{listed(seeds)} {never} not learned: {why}"]


def _of_group(group: Group, min_seeds: int, x: str) -> list[str]:
    lines = []
    ends = sorted({int(run.steps[-1]) for run in group.runs})
    if len(ends) > 1:
        lines.append(f"runs end between {ends[0]:,} and {ends[-1]:,} {group.counted}; cut to {group.steps[-1]:,}")
    if len(group.steps) < len(set().union(*(run.steps[run.steps <= group.steps[-1]].tolist() for run in group.runs))):
        lines.append("not all runs were evaluated at the same steps; the others are left out")
    if group.mixed:
        lines.append(f"runs differ in {', '.join(group.mixed)}; a seed counts once, as the mean of its runs")
    if group.evaluated and len(group.steps) < LAST:
        first = ", the untrained policy's among them" if group.steps[0] == 0 else ""
        number = f"{len(group.steps)} {'evaluation' if len(group.steps) == 1 else 'evaluations'}"
        lines.append(f"{number}: last10 is their mean{first}")
    for run in (run for run in group.runs if run.not_finite is not None):
        lines.append(f"seed {run.seed} has a return that is not finite at step {run.not_finite:,}")
    if x == "hours" and (
        unknown := [seed for seed, own in zip(group.seeds, group.hours, strict=True) if np.isnan(own).any()]
    ):
        lines.append(f"no curve over hours: those of {listed(unknown)} are unknown (run.json, metrics.jsonl)")
    if not group.evaluated:
        lines.append("no evaluations: scores are the mean of the last ten training episodes, with exploration noise")
    if len(group.seeds) < min_seeds:
        alone = len(group.seeds) == 1
        lines.append("one seed: no interval" if alone else f"{len(group.seeds)} seeds: the intervals are too narrow")
    return lines


def _of_environment(groups: Sequence[Group]) -> list[str]:
    lines = []
    env, runs = groups[0].env_id, [run for group in groups for run in group.runs]
    for offline in (False, True):
        own = [group for group in groups if group.offline is offline]
        if len(ends := sorted({int(group.steps[-1]) for group in own})) > 1:
            between = f"{ends[0]:,} and {ends[-1]:,} {own[0].counted}"
            lines.append(f"{env}: groups end between {between}; each row is at its own last step")
    if len({group.offline for group in groups}) > 1:
        lines.append(f"{env}: offline groups count updates, the others environment steps; they are not compared")
    apart = [
        (a.name, b.name)
        for a, b in itertools.combinations(groups, 2)
        if a.offline == b.offline and not len(shared_steps([a, b]))
    ]
    if apart:
        more = f" and {len(apart) - 1} more pairs" if len(apart) > 1 else ""
        pair = " and ".join(apart[0])
        lines.append(f"{env}: not compared, without a common evaluation after step 0: {pair}{more}")
    for package in ("mujoco", "gymnasium"):
        if len(versions := sorted({_version(run, package) for run in runs} - {""})) > 1:
            lines.append(f"{env}: runs of different versions of {package}: {', '.join(versions)}")
    if any(key.startswith("env.kwargs") for key in differing(runs)):
        lines.append(f"{env}: the runs differ in env.kwargs, so not all have the same task")
    return lines


def _version(run: Run, package: str) -> str:
    versions = run.record.get("versions")
    found = versions.get(package) if isinstance(versions, dict) else None
    return text(found) if isinstance(found, str) else ""
