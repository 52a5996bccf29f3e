"""A sweep as its user sees it: which job of how many, what differs between jobs, how each went."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dpg_cli.cli.job import Label, Result, failures
from dpg_cli.cli.progress import below_here, quoted
from dpg_cli.errors import UserError


class Sweep:
    """Names the jobs of a sweep and remembers how they went.

    Args:
        folder: of the sweep.
        jobs: the overrides of each job; where the sweeper decides on jobs as it goes, those that all will have.
        planned: whether `jobs` are all.

    Raises:
        UserError: there are no jobs.
    """

    def __init__(self, folder: Path, jobs: Sequence[Sequence[str]], *, planned: bool):
        if not jobs:
            raise UserError("-m: the sweep has no jobs, since a key has no values")
        self._folder = folder
        self._jobs = jobs
        self._planned = planned
        self._job_folders: Sequence[str | None] = []
        self._common = set.intersection(*(set(job) for job in jobs))
        self._results: dict[int, tuple[str, Path, Result]] = {}

    def label(self, number: int, overrides: Sequence[str]) -> Label:
        """Which job of how many, and what differs; jobs are numbered from 0, as their folders are."""
        position = f"{number + 1}/{len(self._jobs)}" if self._planned else f"{number + 1}"
        differs = " ".join(override.lstrip("+") for override in overrides if override not in self._common)
        return Label(f"[{position}] job {number}", differs)

    def set_job_folders(self, job_folders: Sequence[str | None]) -> None:
        """The folder of each job in that of the sweep.

        Raises:
            UserError: two jobs would share one.
        """
        first: dict[str, int] = {}
        for number, name in enumerate(job_folders):
            if name is not None and first.setdefault(name, number) != number:
                raise UserError(f"hydra.sweep.subdir: jobs {first[name]} and {number} would share the folder {name}")
        self._job_folders = job_folders

    def ended(self, number: int, label: Label, folder: Path, result: Result) -> None:
        """A job has ended."""
        self._results[number] = (label.differs, folder, result)

    def write_curve_names(self) -> Path | None:
        """A file of flags with which TensorBoard calls each run by what differs instead of by its number.

        Returns:
            The file; nothing where the jobs' folders aren't known yet, or have names that the flag cannot hold.
        """
        folder = self._folder.resolve()
        unfit = any(character in f"{folder}{self._job_folders}" for character in ":\n") or "," in str(folder)
        if not self._planned or None in self._job_folders or len(self._jobs) == 1 or unfit:
            return None
        names = [self.label(0, job).differs.translate({ord(","): " ", ord(":"): "_"}) for job in self._jobs]
        spec = ",".join(f"{name}:{folder / str(own)}" for name, own in zip(names, self._job_folders, strict=True))
        path = self._folder / "tensorboard.flags"
        path.write_text(f"--logdir_spec={spec}\n", encoding="utf-8")
        return path

    def print_scores(self, console: Console, curve_names: Path | None, *, in_this_process: bool) -> None:
        """How the jobs that ran in this process went, and where to look further."""
        table = Table(box=None, header_style="", pad_edge=False)
        table.add_column("job", justify="right")
        table.add_column("what differs", overflow="fold")
        table.add_column("mean of the last ten evaluations", justify="right")
        for number, (differs, _, result) in self._results.items():
            score = "failed" if result.outcome is None else f"{result.outcome.score():.1f}"
            stopped = ", stopped early" if result.outcome is not None and result.outcome.interrupted else ""
            table.add_row(str(number), differs, score + stopped)
        if self._results:  # none where a launcher ran the jobs in other processes
            console.print(table)
        missing = len(self._jobs) - len(self._results) if self._planned and in_this_process else 0
        if missing:
            console.print(f"{missing} {'job' if missing == 1 else 'jobs'} did not begin")
        console.print(f"  sweep folder {below_here(self._folder)}", soft_wrap=True)
        logdir = f"--logdir {quoted(below_here(self._folder))}"
        if curve_names is not None:
            logdir = f"--flagfile {quoted(below_here(curve_names))}"
        console.print(f"  curves       tensorboard {logdir}", soft_wrap=True)

    def failures(self) -> dict[str, str]:
        """The reason of every failed job, by its number, or by its folder where another process ran it."""
        known = {folder.resolve() for _, folder, _ in self._results.values()}
        found = {str(n): result.error for n, (_, _, result) in self._results.items() if result.error is not None}
        for folder, reason in failures(self._folder):
            if folder.resolve() not in known:
                found[os.path.relpath(folder, self._folder)] = reason
        return found
