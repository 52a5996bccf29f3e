"""Group runs that differ only in the seed, and name the groups by the settings that differ between them."""

import difflib
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dpg_cli.errors import UserError, one_line
from dpg_cli.report.runs import Run, Value

# Settings that change at most the last digits of a return, or only the length; and keys of `env` from which others
# take their defaults, so that they count by those.
SAME_GROUP = (
    *("seed", "num_seeds", "total_steps", "env.total_steps", "env.random_steps", "env.paper_random_steps"),
    *("device", "threads", "env_threads", "env_processes", "compile", "share_next_obs"),
    *("log.", "checkpoint.", "hydra."),
)
UNSET = "unset"  # the value of a setting that a config lacks
MAX_KEYS = 3  # in the search for the shortest name; more keys are added one by one
MAX_VALUE = 40  # characters of a value in a name


@dataclass(frozen=True)
class LeftOut:
    """A run that is not in the numbers, and why."""

    run: Run
    reason: str


@dataclass(frozen=True)
class Group:
    """Runs of one environment that count as the same training with different seeds.

    Attributes:
        env_id: of the environment.
        name: the shortest that tells it from the other groups of its environment, by settings.
        label: the same among all groups; groups of several environments with the same label belong together.
        algo: the algorithm's name.
        seeds: each once, `(S,)`.
        runs: those in the numbers, in the order of the seeds.
        left_out: those that are not.
        steps: evaluations that all runs have, `(T,)`.
        returns: mean return of each, `(S, T)`.
        hours: of training until each, `(S, T)`.
        evaluated: False if the returns are those of training episodes.
        settings: those that differ between the groups, by key.
        mixed: keys in which runs of the same seed differ, because `by` leaves them out; a seed's return is their mean.
    """

    env_id: str
    name: str
    label: str
    algo: str
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]
    steps: np.ndarray
    returns: np.ndarray
    hours: np.ndarray
    evaluated: bool
    settings: Mapping[str, Value]
    mixed: tuple[str, ...]

    def until(self, step: int) -> "Group":
        """The group with its curves cut after a step."""
        kept = self.steps <= step
        return replace(self, steps=self.steps[kept], returns=self.returns[:, kept], hours=self.hours[:, kept])


def group(runs: Iterable[Run], by: Sequence[str]) -> list[Group]:
    """Groups in the order of environment and name.

    Args:
        runs: at least one.
        by: keys of the config that make groups; empty for all that matter.

    Raises:
        UserError: `by` has a key that no run has.
    """
    found: dict[Hashable, list[Run]] = defaultdict(list)
    runs = list(runs)
    known = {key for run in runs for key in run.settings}
    for key in by:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise UserError(f"by={key}: no run has this setting" + (f"; did you mean {close[0]}?" if close else ""))
    for run in runs:
        found[run.env_id, run.part, run.evaluated, _identity(run, by)].append(run)
    parts = sorted(found.values(), key=lambda own: (own[0].env_id, own[0].part))
    differ = differing([own[0] for own in parts])
    names = _names([own[0] for own in parts], differ, by)
    groups = [_group(own, name, label, by, differ) for own, (name, label) in zip(parts, names, strict=True)]
    return sorted(groups, key=lambda own: (own.env_id, _natural(own.name)))


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys in which runs of one environment differ, in the order of the config; not those of `SAME_GROUP`."""
    values: dict[str, dict[str, set[Value]]] = defaultdict(lambda: defaultdict(set))
    keys = dict.fromkeys(key for run in runs for key in run.settings if _matters(key))
    for run in runs:
        for key in keys:
            values[key][run.env_id].add(run.settings.get(key, UNSET))
    return [key for key in keys if any(len(own) > 1 for own in values[key].values())]


def text(value: Value) -> str:
    """A value as it stands in a name: `0.001`, `256-256`, `true`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "-".join(text(item) for item in value)
    short = one_line(value)
    return short if len(short) <= MAX_VALUE else f"{short[: MAX_VALUE - 1]}…"


def _matters(key: str) -> bool:
    return key != "env.id" and not any(
        key.startswith(prefix) if prefix.endswith(".") else key == prefix for prefix in SAME_GROUP
    )


def _identity(run: Run, by: Sequence[str]) -> Hashable:
    """What makes a run's group: two runs with the same are the same training with, at most, another seed."""
    if by:
        return tuple(text(run.settings.get(key, UNSET)) for key in by)
    return frozenset((key, value) for key, value in run.settings.items() if _matters(key))


def _group(runs: Sequence[Run], name: str, label: str, by: Sequence[str], differ: Sequence[str]) -> Group:
    """Of several runs with the same config and seed, the longest counts."""
    left_out = []
    longest: dict[Hashable, Run] = {}
    for run in sorted(runs, key=lambda own: (-own.steps[-1], own.status != "done", str(own.folder))):
        if (first := longest.setdefault((run.seed, _identity(run, ())), run)) is not run:
            left_out.append(LeftOut(run, f"the same config and seed as {first.folder}, which is as long or longer"))
    kept = list(longest.values())
    # A run that stopped early would cut the others short. What was left out, and why, is listed.
    if finished := [run.steps[-1] for run in kept if run.status in ("done", "unknown")]:
        short = [run for run in kept if run.steps[-1] < min(finished)]
        left_out += [LeftOut(run, f"{run.status} at step {run.steps[-1]:,}, before the others end") for run in short]
        kept = [run for run in kept if run.steps[-1] >= min(finished)]
    kept, apart, steps = _with_common_steps(kept)
    left_out += apart
    kept.sort(key=lambda run: (run.seed, str(run.folder)))
    by_seed = {seed: list(own) for seed, own in itertools.groupby(kept, key=lambda run: run.seed)}
    at = [[np.isin(run.steps, steps) for run in own] for own in by_seed.values()]
    returns = [
        np.mean([run.returns[rows] for run, rows in zip(own, where, strict=True)], axis=0)
        for own, where in zip(by_seed.values(), at, strict=True)
    ]
    hours = [
        np.mean([run.hours[rows] for run, rows in zip(own, where, strict=True)], axis=0)
        for own, where in zip(by_seed.values(), at, strict=True)
    ]
    return Group(
        env_id=runs[0].env_id,
        name=name,
        label=label,
        algo=runs[0].algo,
        seeds=tuple(by_seed),
        runs=tuple(kept),
        left_out=tuple(left_out),
        steps=np.array(steps),
        returns=np.array(returns),
        hours=np.array(hours),
        evaluated=runs[0].evaluated,
        settings={key: runs[0].settings.get(key, UNSET) for key in differ},
        mixed=tuple(differing(kept)) if by else (),
    )


def _with_common_steps(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut], list[int]]:
    """The runs that share evaluations after step 0, the others, and the steps that all of the former have."""
    most, *others = sorted(runs, key=lambda run: -len(run.steps))
    kept, apart, steps = [most], [], {int(step) for step in most.steps}
    for run in others:
        common = steps & {int(step) for step in run.steps}
        if common == steps or max(common, default=0) > 0:
            kept.append(run)
            steps = common
        else:
            apart.append(LeftOut(run, f"has no evaluation at a step of {most.folder}"))
    return kept, apart, sorted(steps)


def _names(firsts: Sequence[Run], differ: Sequence[str], by: Sequence[str]) -> list[tuple[str, str]]:
    """Name and label of each group, given one run of each: the shortest that tell groups apart.

    The name does so among the groups of its environment, the label among all.
    """
    if by:
        return [(name, name) for run in firsts if (name := _name(run, by))]
    by_algo: dict[str, list[Run]] = {}
    for run in firsts:
        by_algo.setdefault(run.algo, []).append(run)
    keys = {algo: _telling_apart(own, differ) for algo, own in by_algo.items()}
    several = len(keys) > 1
    found = []
    for run in firsts:
        same = [own for own in by_algo[run.algo] if own.env_id == run.env_id]
        needed = [key for key in keys[run.algo] if len({text(own.settings.get(key, UNSET)) for own in same}) > 1]
        name, label = (
            _name(run, ["algo.name", *chosen] if several or not chosen else chosen)
            for chosen in (needed, keys[run.algo])
        )
        found.append((name, label))
    return found


def _telling_apart(firsts: Sequence[Run], differ: Sequence[str]) -> list[str]:
    """The fewest keys, and of those the shortest names, that tell apart the groups of one algorithm."""
    values = {key: [text(run.settings.get(key, UNSET)) for run in firsts] for key in differ}
    places = [(run.env_id, run.part, run.evaluated) for run in firsts]

    def kinds(keys: Sequence[str]) -> int:
        return len(set(zip(places, *(values[key] for key in keys), strict=True)))

    def length(keys: Iterable[str]) -> tuple[int, int]:
        """Choices such as `noise=ou` first; keys that some lack last."""
        order = sum((UNSET in values[key]) - key.endswith(".name") for key in keys)
        return order, sum(len(key.rpartition(".")[2]) + max(map(len, values[key])) for key in keys)

    wanted = kinds(differ)
    for number in range(MAX_KEYS + 1):
        enough = [keys for keys in itertools.combinations(differ, number) if kinds(keys) == wanted]
        if enough:
            return list(min(enough, key=length))
    chosen: list[str] = []
    while kinds(chosen) < wanted:
        chosen.append(min(differ, key=lambda key: (-kinds([*chosen, key]), length([key]))))
    return chosen


def _name(run: Run, keys: Sequence[str]) -> str:
    name = ", ".join(_setting(key, run, keys) for key in keys)
    notes = [run.part, "" if run.evaluated else "training episodes"]
    return name + "".join(f" ({note})" for note in notes if note)


def _setting(key: str, run: Run, keys: Sequence[str]) -> str:
    value = text(run.settings.get(key, UNSET))
    if key == "algo.name":
        return value
    group, _, leaf = key.rpartition(".")
    short = group if leaf == "name" else leaf
    unique = sum(short == other.rpartition(".")[2] for other in keys) <= 1
    return f"{short if unique else key}={value}"


def _natural(name: str) -> list[tuple[bool, float, str]]:
    """`lr=2` before `lr=10`."""
    parts = []
    for part in name.replace("=", " = ").split():
        try:
            parts.append((False, float(part.rstrip(",")), ""))
        except ValueError:
            parts.append((True, 0.0, part))
    return parts
