"""Everything that a report shows, before it is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpg_cli.report.groups import Group, group
from dpg_cli.report.problems import problems
from dpg_cli.report.runs import Run
from dpg_cli.report.scores import (
    Aggregate,
    Beside,
    Pair,
    Row,
    Threshold,
    aggregates,
    beside_published,
    clearly_best,
    compare,
    row,
    thresholds,
)


@dataclass(frozen=True)
class Contents:
    """The contents of a report.

    Attributes:
        by_env: the groups of each environment.
        rows: one a group, in the same order.
        pairs: of groups, by environment.
        best: by environment, the group whose lead the intervals support; None if there is none.
        published: by environment.
        thresholds: by environment; empty if there is no threshold.
        threshold: a return, or None.
        aggregates: over several environments, by their version if they are there in several, else by an empty name.
        problems: one line each.
        min_seeds: below which an interval is marked.
    """

    by_env: Mapping[str, Sequence[Group]]
    rows: Sequence[Row]
    pairs: Mapping[str, Sequence[Pair]]
    best: Mapping[str, str | None]
    published: Mapping[str, Sequence[Beside]]
    thresholds: Mapping[str, Sequence[Threshold]]
    threshold: float | None
    aggregates: Mapping[str, Aggregate]
    problems: Sequence[str]
    min_seeds: int

    @property
    def groups(self) -> list[Group]:
        """All groups, by environment and name."""
        return [own for groups in self.by_env.values() for own in groups]

    @property
    def runs(self) -> list[Run]:
        """All runs, those that are not in the numbers too."""
        return [run for own in self.groups for run in (*own.runs, *(left.run for left in own.left_out))]


def build(
    runs: Sequence[Run],
    unreadable: Mapping[Path, str],
    by: Sequence[str],
    min_seeds: int,
    threshold: float | None,
    x: str,
    tick: Callable[[], None],
) -> Contents:
    """Group the runs and compute everything.

    Args:
        runs: at least one.
        unreadable: folders that could not be read, and why.
        by: keys of the config that make groups; empty for all that matter.
        min_seeds: below which an interval is marked.
        threshold: a return whose first step is reported; None for none.
        x: the figures' axis, `steps` or `hours`.
        tick: called after each environment.

    Raises:
        UserError: `by` has a key that no run has.
    """
    groups = group(runs, by)
    by_env: dict[str, list[Group]] = {}
    for own in groups:
        by_env.setdefault(own.env_id, []).append(own)
    pairs, rows = {}, []
    for env, groups_of_env in by_env.items():
        rows += [row(own) for own in groups_of_env]
        pairs[env] = compare(groups_of_env, min_seeds)
        tick()
    return Contents(
        by_env=by_env,
        rows=rows,
        pairs=pairs,
        best={env: clearly_best(own, pairs[env], min_seeds) for env, own in by_env.items()},
        published={env: beside_published(own) for env, own in by_env.items()},
        thresholds={} if threshold is None else {env: thresholds(own, threshold) for env, own in by_env.items()},
        threshold=threshold,
        aggregates=aggregates(groups),
        problems=problems(groups, unreadable, min_seeds, x),
        min_seeds=min_seeds,
    )
