"""Group runs that differ only in the seed, and name the groups by the settings that differ between them."""

import difflib
import itertools
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dpg_cli.errors import UserError, one_line
from dpg_cli.report.runs import Run, Value

# Settings that change at most the last digits of a return, or only the length or the evaluations; and keys of `env`
# from which others take their defaults, so that they count by those.
SAME_GROUP = (
    *("seed", "num_seeds", "total_steps", "env.total_steps", "env.random_steps", "env.paper_random_steps"),
    *("device", "threads", "env_threads", "env_processes", "compile", "share_next_obs"),
    *("log.", "checkpoint.", "eval.", "hydra."),
)
# Keys whose default is another key's value, which may differ between environments.
DEPENDENT = {
    "random_steps": ("env.random_steps", "env.paper_random_steps"),
    "learning_starts": ("random_steps", "algo.batch_size"),
}
UNSET = "unset"  # the value of a setting that a config lacks
MAX_VALUE = 40  # characters of a value in a name
SHORT = 0.5  # of the median length of a group's runs, below which a run would cut the others too much


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
        offline: whether the runs learned from a data set. Their steps are then updates.
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
    offline: bool
    settings: Mapping[str, Value]
    mixed: tuple[str, ...]

    @property
    def counted(self) -> str:
        """What `steps` are, in the plural."""
        return "updates" if self.offline else "steps"

    def until(self, step: int) -> "Group":
        """The group with its curves cut after a step."""
        return self.at(self.steps[self.steps <= step])

    def at(self, steps: np.ndarray) -> "Group":
        """The group with its evaluations at some of its steps only."""
        kept = np.isin(self.steps, steps)
        return replace(self, steps=self.steps[kept], returns=self.returns[:, kept], hours=self.hours[:, kept])


def group(runs: Iterable[Run], by: Sequence[str]) -> list[Group]:
    """Groups in the order of environment and name.

    Args:
        runs: at least one.
        by: keys of the config that make groups, where `algo` is `algo.name`; empty for all that matter.

    Raises:
        UserError: `by` has a key that no run has, or one twice.
    """
    found: dict[Hashable, list[Run]] = defaultdict(list)
    runs = list(runs)
    known = {key for run in runs for key in run.settings}
    given, by = by, [f"{key}.name" if f"{key}.name" in known else key for key in by]
    if len(set(by)) < len(by):
        raise UserError(f"by={','.join(given)}: has an item twice")
    for key in by:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise UserError(f"by={key}: no run has this setting" + (f"; did you mean {close[0]}?" if close else ""))
    for run in runs:
        found[run.env_id, run.part, run.evaluated, run.offline, _identity(run, by)].append(run)
    parts = sorted(found.values(), key=lambda own: (own[0].env_id, own[0].part))
    differ = differing([own[0] for own in parts])
    names = _names([own[0] for own in parts], differ, by)
    groups = [_group(own, name, label, by, differ) for own, (name, label) in zip(parts, names, strict=True)]
    return sorted(groups, key=lambda own: (own.env_id, _natural(own.name)))


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys in which runs of one environment differ, in the order of the config; not those of `SAME_GROUP`."""
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    keys = dict.fromkeys(key for run in runs for key in run.settings if _matters(key))
    for run in runs:
        for key in keys:
            values[key][run.env_id].add(text(value_of(run, key), exact=True))
    return [key for key in keys if any(len(own) > 1 for own in values[key].values())]


def value_of(run: Run, key: str) -> Value:
    """The value of a setting; the name of another key if it is that key's value, as it is by default."""
    value = run.settings.get(key, UNSET)
    return next((other for other in DEPENDENT.get(key, ()) if run.settings.get(other, UNSET) == value), value)


def text(value: Value, *, exact: bool = False) -> str:
    """A value as it stands in a name: `0.001`, `256-256`, `true`.

    Args:
        value: of a setting.
        exact: whether all digits and characters matter.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        short = f"{value:g}"
        return short if float(short) == value or not exact else repr(value)
    if isinstance(value, tuple):
        return "-".join(text(item, exact=exact) for item in value)
    whole = one_line(value)
    return whole if exact or len(whole) <= MAX_VALUE else f"{whole[: MAX_VALUE - 1]}…"


def _matters(key: str) -> bool:
    return key != "env.id" and not any(
        key.startswith(prefix) if prefix.endswith(".") else key == prefix for prefix in SAME_GROUP
    )


def _identity(run: Run, by: Sequence[str]) -> Hashable:
    """What makes a run's group: two runs with the same are the same training with, at most, another seed."""
    if by:
        return tuple(text(value_of(run, key), exact=True) for key in by)
    return frozenset((key, text(value_of(run, key), exact=True)) for key in run.settings if _matters(key))


def _group(runs: Sequence[Run], name: str, label: str, by: Sequence[str], differ: Sequence[str]) -> Group:
    """Of several runs with the same config and seed, the longest counts."""
    left_out = []
    longest: dict[Hashable, Run] = {}
    for run in sorted(runs, key=lambda own: (-own.steps[-1], -len(own.steps), own.status != "done", str(own.folder))):
        if longest.setdefault((run.seed, _identity(run, ())), run) is not run:
            left_out.append(LeftOut(run, "the same training and seed as another run that is as long or longer"))
    kept, short = _long_enough(list(longest.values()))
    left_out += short
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
        offline=runs[0].offline,
        settings={key: value_of(runs[0], key) for key in differ},
        mixed=tuple(differing(kept)) if by else (),
    )


def _long_enough(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """The runs that do not cut the others too much, and the others: listed, since they may have failed for a reason."""
    finished = [run for run in runs if run.status in ("done", "unknown") and run.not_finite is None] or list(runs)
    enough = SHORT * float(np.median([run.steps[-1] for run in finished]))
    least = min(int(run.steps[-1]) for run in finished if run.steps[-1] >= enough)
    kept, short = [], []
    for run in runs:
        end = f"step {run.steps[-1]:,}"
        if run.steps[-1] >= least:
            kept.append(run)
        elif run.not_finite is not None:
            short.append(LeftOut(run, f"its evaluation at step {run.not_finite:,} is not a finite number"))
        elif run in finished:
            short.append(LeftOut(run, f"ends at {end}, less than half as long as most of its group"))
        else:
            short.append(LeftOut(run, f"{run.status} at {end}, before the others end"))
    return kept, short


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
            apart.append(LeftOut(run, "no evaluation at a step of the run with most evaluations"))
    return kept, apart, sorted(steps)


def _names(firsts: Sequence[Run], differ: Sequence[str], by: Sequence[str]) -> list[tuple[str, str]]:
    """Name and label of each group, given one run of each: the shortest that tell groups apart.

    The name does so among the groups of its environment, the label among all.
    """
    rounded = {key for key in (*differ, *by) if _clash([value_of(run, key) for run in firsts])}
    if by:
        return [(name, name) for run in firsts if (name := _name(run, by, rounded))]
    by_algo: dict[str, list[Run]] = {}
    for run in firsts:
        by_algo.setdefault(run.algo, []).append(run)
    keys = {algo: _telling_apart(own, differ) for algo, own in by_algo.items()}
    several = len(keys) > 1
    found = []
    for run in firsts:
        same = [own for own in by_algo[run.algo] if own.env_id == run.env_id]
        needed = [key for key in keys[run.algo] if len({text(value_of(own, key), exact=True) for own in same}) > 1]
        name, label = (
            _name(run, ["algo.name", *chosen] if several or not chosen else chosen, rounded)
            for chosen in (needed, keys[run.algo])
        )
        found.append((name, label))
    return found


def _clash(values: Sequence[Value]) -> bool:
    """Whether different values look the same in a name."""
    return len({text(value) for value in values}) < len({text(value, exact=True) for value in values})


def _telling_apart(firsts: Sequence[Run], differ: Sequence[str]) -> list[str]:
    """All choices such as `noise=ou` that differ, and few further keys that tell apart the groups of one algorithm.

    `init`, too, counts as a choice: a run that starts from trained networks is another kind of training.
    """
    values = {key: [text(value_of(run, key), exact=True) for run in firsts] for key in differ}
    places = [(run.env_id, run.part, run.evaluated, run.offline) for run in firsts]

    def kinds(keys: Iterable[str]) -> int:
        return len(set(zip(places, *(values[key] for key in keys), strict=True)))

    def length(key: str) -> tuple[bool, int]:
        """Keys that some lack last."""
        return UNSET in values[key], len(key.rpartition(".")[2]) + max(map(len, values[key]))

    wanted = kinds(differ)
    choices = [key for key in differ if (key == "init" or key.endswith(".name")) and kinds([key]) > kinds([])]
    chosen = list(choices)
    while kinds(chosen) < wanted:
        chosen.append(min(differ, key=lambda key: (-kinds([*chosen, key]), length(key))))
    for key in chosen[len(choices) :]:  # an early key may be needless after the later ones
        if kinds(other for other in chosen if other != key) == wanted:
            chosen.remove(key)
    return chosen


def _name(run: Run, keys: Sequence[str], rounded: Collection[str]) -> str:
    name = ", ".join(_setting(key, run, keys, exact=key in rounded) for key in keys)
    notes = [run.part, "" if run.evaluated else "training episodes", "offline" if run.offline else ""]
    return name + "".join(f" ({note})" for note in notes if note)


def _setting(key: str, run: Run, keys: Sequence[str], *, exact: bool) -> str:
    value = text(value_of(run, key), exact=exact)
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
