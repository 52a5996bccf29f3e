"""Progress of a training: a live panel on a terminal, otherwise one line per evaluation."""

import io
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dpg_cli.cli.here import below_here
from dpg_cli.environments.evaluation import Evaluation
from dpg_cli.environments.rollout import Episode
from dpg_cli.trainer import Outcome


class Terminal:
    """A stream that may be closed during a training, such as a pipe or a terminal. The training continues.

    Args:
        file: where to write.
    """

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> int:
        """Write the text, or drop it once a write has failed."""
        try:
            return self._file.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Flush. If that fails, drop all further output."""
        try:
            self._file.flush()
        except OSError:
            self._drop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _drop(self) -> None:
        # Redirected, since Python writes what is still buffered when the program ends.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._file.fileno())
        os.close(null)


def new_console() -> Console:
    """A console on stdout that prints text unchanged, and drops it once stdout is closed."""
    out = sys.stdout
    if out is None:  # closed at the start
        return Console(quiet=True)
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="replace")  # its encoding may lack "±"
    return Console(file=cast(TextIO, Terminal(out)), markup=False, highlight=False, emoji=False)


class ProgressDisplay:
    """Shows steps, speed, time left, the last training return and the best evaluation.

    Args:
        title: what is trained.
        total_steps: environment steps for each seed.
        console: where to write.
        job: which job of a sweep. Each line starts with it, since jobs may run side by side.
    """

    def __init__(self, title: str, total_steps: int, console: Console, job: str = ""):
        self._title = title
        self._job = f"{job}  " if job else ""
        self._total = total_steps
        self._console = console
        self._start = time.monotonic()
        self._window = (self._start, 0)  # time and step from which speed is measured
        self._speed = 0.0
        self._step = 0
        self._last_return: float | None = None
        self._last: str | None = None
        self._best: tuple[int, float] | None = None
        self._live = Live(self, console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        """Start the clock and the display."""
        self._start = time.monotonic()
        self._window = (self._start, 0)
        if self._live is None:
            self._console.print(self._title, soft_wrap=True)
        else:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()

    def stepped(self, step: int, episodes: Sequence[Episode]) -> None:
        """Show that each seed has made `step` environment steps, and the return of finished episodes."""
        self._step = step
        if episodes:
            self._last_return = float(np.mean([episode.episode_return for episode in episodes]))

    def evaluated(self, step: int, evaluations: Sequence[Evaluation]) -> None:
        """Show an evaluation. Several members are shown as their mean and spread."""
        means = [float(np.mean(evaluation.returns)) for evaluation in evaluations]
        # One seed: the spread over its episodes. Several: the spread over seeds.
        spread = float(np.std(evaluations[0].returns if len(means) == 1 else means))
        mean = float(np.mean(means))
        self._last = f"{mean:.1f} ± {spread:.1f}"
        if self._best is None or mean > self._best[1]:
            self._best = (step, mean)
        if self._live is None:
            elapsed = _duration(time.monotonic() - self._start)
            self._console.print(
                f"{self._job}step {step:>9,} of {self._total:,}  return {self._last}  "
                f"best {self._best[1]:.1f}  {elapsed}",
                soft_wrap=True,
            )

    def __rich__(self) -> Table:
        """The panel."""
        now = time.monotonic()
        since, at = self._window
        if now - since > 5.0:
            self._speed = (self._step - at) / (now - since)
            self._window = (now, self._step)
        speed = self._speed or self._step / max(now - self._start, 1e-9)
        left = _duration((self._total - self._step) / speed) if speed > 0 else "–"
        grid = Table.grid(padding=(0, 2))
        grid.add_row(f"{self._step:,} of {self._total:,} steps", f"{speed:,.0f} steps/s", f"{left} left")
        training = "–" if self._last_return is None else f"{self._last_return:.1f}"
        best = "–" if self._best is None else f"{self._best[1]:.1f} at {self._best[0]:,}"
        grid.add_row(f"last episode {training}", f"evaluation {self._last or '–'}", f"best {best}")
        panel = Table.grid(expand=True)
        for row in (Text(self._title, style="bold"), ProgressBar(self._total, min(self._step, self._total)), grid):
            panel.add_row(row)
        return panel


def print_summary(
    console: Console, outcome: Outcome, seeds: Sequence[int], folders: Sequence[Path], *, trust: bool, brief: bool
) -> None:
    """Print how the training went, where its results are, and which commands to run next.

    Args:
        console: where to write.
        outcome: of the training.
        seeds: one per member.
        folders: one per member.
        trust: whether dpg-eval needs `trust=true`.
        brief: print only how it went.
    """
    folders = [below_here(folder) for folder in folders]
    trusting = " trust=true" if trust else ""
    for member, (seed, folder) in enumerate(zip(seeds, folders, strict=True)):
        step, best = outcome.best(member)
        console.print(
            f"seed {seed}: last evaluation {outcome.final(member):.1f}, best {best:.1f} at step {step:,}",
            soft_wrap=True,
        )
        if not brief:
            console.print(f"  run folder   {folder}", soft_wrap=True)
            console.print(f"  evaluate     dpg-eval run={quoted(folder)}{trusting}", soft_wrap=True)
    if not brief:
        console.print(f"  curves       tensorboard --logdir {quoted(folders[0].parent)}", soft_wrap=True)


def quoted(path: Path) -> str:
    """The path, quoted for a shell."""
    return shlex.quote(str(path))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
