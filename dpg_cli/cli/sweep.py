"""A sweep as its user sees it: which job of how many, what differs between jobs, how each went."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dpg_cli.cli.progress import below_here, quoted


class Sweep:
    """Names the jobs of a sweep and remembers their scores.

    Args:
        folder: of the sweep.
        jobs: the overrides of each job; where the sweeper decides on jobs as it goes, those that all will have.
        planned: whether `jobs` are all.
    """

    def __init__(self, folder: Path, jobs: Sequence[Sequence[str]], *, planned: bool):
        self._folder = folder
        self._jobs = jobs
        self._planned = planned
        self._common = set.intersection(*(set(job) for job in jobs))
        self._scores: list[tuple[int, str, float]] = []

    def differs(self, overrides: Sequence[str]) -> str:
        """What makes a job another than the rest, such as `algo=td3 seed=0`."""
        return " ".join(override for override in overrides if override not in self._common)

    def title(self, number: int, overrides: Sequence[str]) -> str:
        """Which job of how many, and what differs; jobs count from 0, as their folders do."""
        position = f"{number + 1}/{len(self._jobs)}" if self._planned else f"{number + 1}"
        return " ".join(filter(None, (f"[{position}] job {number}", self.differs(overrides))))

    def write_curve_names(self) -> Path | None:
        """A file of flags with which TensorBoard calls each run by what differs instead of by its number.

        Returns:
            The file; nothing where the jobs aren't known yet, or the folder has a name that the flag cannot hold.
        """
        folder = self._folder.resolve()
        if not self._planned or len(self._jobs) == 1 or any(character in str(folder) for character in ",:\n"):
            return None
        names = [self.differs(job).translate({ord(","): " ", ord(":"): "_"}) for job in self._jobs]
        spec = ",".join(f"{name}:{folder / str(number)}" for number, name in enumerate(names))
        path = self._folder / "tensorboard.flags"
        path.write_text(f"--logdir_spec={spec}\n", encoding="utf-8")
        return path

    def scored(self, number: int, overrides: Sequence[str], score: float) -> None:
        """A job is done."""
        self._scores.append((number, self.differs(overrides), score))

    def print_scores(self, console: Console, curve_names: Path | None) -> None:
        """How the jobs of this process went, and where to look further."""
        table = Table(box=None, header_style="", pad_edge=False, title_style="", title_justify="left")
        table.add_column("job", justify="right")
        table.add_column("what differs", overflow="fold")
        table.add_column("mean of the last ten evaluations", justify="right")
        for number, differs, score in self._scores:
            table.add_row(str(number), differs, f"{score:.1f}")
        if self._scores:  # none where a launcher ran the jobs in other processes
            console.print(table)
        console.print(f"  sweep folder {below_here(self._folder)}", soft_wrap=True)
        logdir = f"--logdir {quoted(below_here(self._folder))}"
        if curve_names is not None:
            logdir = f"--flagfile {quoted(below_here(curve_names))}"
        console.print(f"  curves       tensorboard {logdir}", soft_wrap=True)
