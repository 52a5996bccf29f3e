"""What `dpg-report` does once its arguments are checked."""

import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from dpg_cli.config.defaults import completed
from dpg_cli.errors import UserError, one_line
from dpg_cli.report.contents import Contents, build
from dpg_cli.report.runs import Run, find, read
from dpg_cli.report.scores import Threshold
from dpg_cli.report.tables import MARK, cells_of, number
from dpg_cli.report.write import PAGE, write

PATIENCE = 2.0  # seconds until the progress bar appears
TEXTS = ("environment", "group")
# Columns to leave out until the table fits the terminal; without names, it is a list.
LEAVE_OUT = (
    *((), ("IQM", "at step"), ("IQM", "at step", "hours"), ("IQM", "at step", "hours", "max_mean")),
    (*TEXTS, "IQM", "at step", "hours"),
)
WIDE = 200  # where there is no terminal
MAX_PROBLEMS = 10  # printed; the page has all


def report(
    roots: Sequence[Path],
    out: Path,
    by: Sequence[str],
    x: str,
    min_seeds: int,
    threshold: float | None,
    command: Sequence[str],
) -> int:
    """Read the runs, write the report and print its table; returns the exit code.

    Args:
        roots: the folders to search.
        out: of the report, checked.
        by: keys of the config that make groups; empty for all that matter.
        x: the figures' axis, `steps` or `hours`.
        min_seeds: below which an interval is marked.
        threshold: a return whose first step is reported; None for none.
        command: the command line.

    Raises:
        UserError: no run could be read, or `by` has a key that no run has.
    """
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else WIDE)
    with Patience() as progress:
        found = list(find(roots))
        progress.begins("reading runs", len(found))
        runs: list[Run] = []
        unreadable: dict[Path, str] = {}
        for folder, part in found:
            try:
                runs.append(read(folder, part, completed))
            except UserError as error:
                unreadable[folder] = str(error)
            progress.tick()
        if not runs:
            where = ", ".join(map(str, roots))
            reason = next(iter(unreadable.values()), "a run folder has config.yaml and evaluations.jsonl")
            raise UserError(f"{where}: no runs; {reason}")
        progress.begins("comparing", len({run.env_id for run in runs}))
        contents = build(runs, unreadable, by, min_seeds, threshold, x, progress.tick)
        progress.begins("drawing", len(contents.by_env) + (len(contents.by_env) > 1))
        when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write(contents, out, x, command, when, progress.tick)
    _print(contents, console)
    console.print(f"report: {out / PAGE}", soft_wrap=True)
    return 0


class Patience:
    """A progress bar on stderr, on a terminal, for what takes longer than `PATIENCE` seconds."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"))
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._possible, self._shown = console.is_terminal, False
        self._began = time.monotonic()
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._progress.stop()

    def begins(self, what: str, total: int) -> None:
        """The next part begins."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=total)

    def tick(self) -> None:
        """One more is done."""
        assert self._task is not None
        self._progress.advance(self._task)
        if self._possible and not self._shown and time.monotonic() - self._began > PATIENCE:
            self._shown = True
            self._progress.start()


def _print(contents: Contents, console: Console) -> None:
    rows = [cells_of(row, contents.min_seeds) for row in contents.rows]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for left_out in LEAVE_OUT:
        shown = [name for name in rows[0] if name not in left_out]
        if sum(widths[name] + 2 for name in shown) - 2 <= console.width:
            break
    table = Table(box=None, header_style="", pad_edge=False)
    beside = "environment" in shown
    for name in shown:
        table.add_column(name, justify="left" if name in TEXTS else "right", no_wrap=True)
    for place, row in enumerate(rows):
        if not beside:  # the names stand above the numbers
            console.print(f"{one_line(row['environment'])}, {one_line(row['group'])}", soft_wrap=True)
            console.print("  " + ", ".join(f"{name} {row[name]}" for name in shown), soft_wrap=True)
            continue
        if place and rows[place - 1]["environment"] == row["environment"]:
            row = {**row, "environment": ""}
        table.add_row(*(one_line(row[name]) for name in shown))
    if beside:
        console.print(table)
    if any(1 < row.seeds < contents.min_seeds for row in contents.rows):
        console.print(f"{MARK} fewer than {contents.min_seeds} seeds: the interval is too narrow", soft_wrap=True)
    for found in (own for groups in contents.thresholds.values() for own in groups):
        console.print(f"{found.env}, {found.group}: {_reached(found, contents.threshold)}", soft_wrap=True)
    if contents.problems:
        console.print("\nproblems")
        for line in contents.problems[:MAX_PROBLEMS]:
            console.print(f"  {one_line(line)}", soft_wrap=True)
        if (more := len(contents.problems) - MAX_PROBLEMS) > 0:
            console.print(f"  and {more} more, in the report")
        console.print()


def _reached(found: Threshold, threshold: float | None) -> str:
    steps, hours = found.median()
    seeds = f"{sum(step is not None for step in found.steps)} of {len(found.steps)} seeds"
    hours_too = f" ({number(hours)} hours)" if math.isfinite(hours) else ""
    when = f", half of all by step {steps:,.0f}{hours_too}" if math.isfinite(steps) else ""
    return f"{seeds} reached {threshold:g}{when}"
