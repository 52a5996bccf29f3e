"""Progress of a training: a live panel on a terminal, otherwise lines."""

import contextlib
import io
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dpg_cli.bookkeeping import Outcome
from dpg_cli.cli.here import below_here
from dpg_cli.cli.pace import Pace
from dpg_cli.cli.printed import Printed
from dpg_cli.cli.signals import say
from dpg_cli.durations import duration
from dpg_cli.environments.evaluation import Evaluation
from dpg_cli.environments.rollout import Episode

log = logging.getLogger(__name__)

REPORT_EVERY = 0.5  # seconds between reports
LOOK_EVERY = 0.25  # seconds between looks at what simulators have printed
LINE_EVERY = 50.0  # seconds; with slow steps, there is still a line in every minute
EVALUATION_LINE_EVERY = 10.0  # seconds between lines of dpg-eval


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
    """Shows steps, speed, time left, the last training return and the last and best evaluations.

    On a terminal it is a live panel. Otherwise it is a line at every evaluation, and at least one in every minute. The
    lines are logged in both cases.

    Args:
        title: what is trained.
        total_steps: environment steps for each seed.
        console: where to write.
        evaluated: whether there are evaluations, not only training episodes.
        learns_after: steps without updates.
        counted: what `total_steps` counts: `step`, or `update` offline.
        job: which job of a sweep. Each line starts with it, since jobs may run side by side.
        report: given the kind of an event and its values; for a job whose sweep is shown by another process.
        clock: in seconds.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        console: Console,
        *,
        evaluated: bool = True,
        learns_after: int = 0,
        counted: str = "step",
        job: str = "",
        report: Callable[..., None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.pace = Pace(total_steps, learns_after, clock)
        self._title = title
        self._job = f"{job}  " if job else ""
        self._total, self._counted = total_steps, counted
        self._console = console
        self._clock = clock
        self._report = report
        self._last_line = self._last_look = self._last_report = clock()
        self._last_return: float | None = None
        self._evaluating: int | None = None
        self._evaluation: str | None = None
        self._best: tuple[int, float] | None = None
        self._message: str | None = None
        # FORCE_COLOR makes rich take a pipe for a terminal.
        live = console.is_interactive and console.file.isatty()
        self._scored_by = "evaluation" if evaluated else "last training episodes"
        self._live: Live | None = None
        self._printed: Printed | None = None
        if live:
            self._live = Live(self, console=console, refresh_per_second=4, transient=True, redirect_stdout=False)

    def __enter__(self) -> Self:
        """Start the display."""
        log.info(self._title)
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
            self._show_printed(rest=True)

    @contextlib.contextmanager
    def prints_above(self) -> Iterator[None]:
        """While active, what simulators print appears above the panel, if there is one.

        It must begin before worker processes start, which inherit stdout.
        """
        if self._live is None:
            yield
            return
        with Printed() as self._printed:
            before, self._console.file = self._console.file, cast(TextIO, Terminal(self._printed.terminal))
            try:
                yield
            finally:
                self._show_printed(rest=True)
                self._console.file, self._printed = before, None

    def _show_printed_if_due(self) -> None:
        if self._printed is not None and self._clock() - self._last_look > LOOK_EVERY:
            self._last_look = self._clock()
            self._show_printed()

    def _show_printed(self, *, rest: bool = False) -> None:
        if self._printed is not None:
            for line in self._printed.lines(rest=rest):
                self.print(line)

    def tell(self, text: str) -> None:
        """Print and log a line."""
        log.info(text)
        self.print(text)
        if self._report is not None:
            self._report("note", text=text)

    def print(self, text: str) -> None:
        """Print a line. On a terminal it stays above the panel."""
        self._console.print(f"{self._job}{text}", soft_wrap=True)

    def notify(self, text: str) -> None:
        """Show a line at once; may be called by a signal handler.

        The panel shows it itself: anything else that is written to the terminal moves the cursor, and the panel could
        not be erased.
        """
        if self._report is not None:
            self._report("stopping")
        if self._live is not None and self._live.is_started:
            self._message = text
        else:
            say(text)

    def started(self, step: int, evaluations: Sequence[Sequence[tuple[int, float]]]) -> None:
        """Show that a run starts at `step`, with the evaluations before it, by member."""
        by_step = [dict(member) for member in evaluations]
        for at in sorted(set.intersection(*map(set, by_step))):
            self._show_evaluation(at, [means[at] for means in by_step], None)
        self.pace.started(step, max((at for at, _ in evaluations[0]), default=None))
        self._report_progress("started")

    def stepped(self, step: int, episodes: Sequence[Episode]) -> int | None:
        """Show that each seed has made `step` environment steps, and the return of finished episodes.

        Returns:
            The step at which a window of the speed began, if it ends here.
        """
        window = self.pace.stepped(step)
        self._show_printed_if_due()
        if episodes:
            self._last_return = float(np.mean([episode.episode_return for episode in episodes]))
        if window is not None:  # several times in a minute
            self._line_if_due()
        self._report_if_due()
        return window

    def evaluating(self, steps: int) -> None:
        """Show how many steps the longest episode of the present evaluation has."""
        self._evaluating = steps
        self._show_printed_if_due()
        self._line_if_due()
        self._report_if_due()

    def evaluated(self, step: int, evaluations: Sequence[Evaluation]) -> None:
        """Show an evaluation. Several members are shown as their mean and spread."""
        self.pace.evaluated(step)
        self._evaluating = None
        means = [float(np.mean(evaluation.returns)) for evaluation in evaluations]
        self._show_evaluation(step, means, evaluations[0].returns)
        self._line(f"{self._scored_by} {self._evaluation}", f"best {self._best_so_far()}")
        if len(means) > 1:
            log.info("%s of each seed: %s", self._scored_by, ", ".join(f"{mean:.1f}" for mean in means))
        self._report_progress("evaluated")

    def _show_evaluation(self, step: int, means: Sequence[float], returns: Sequence[float] | None) -> None:
        """Show the mean of each member, and the returns of the first one's episodes if they are known."""
        mean = float(np.mean(means))
        # One seed: the spread over its episodes. Several: the spread over seeds.
        spread = means if len(means) > 1 else returns
        self._evaluation = f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {np.std(spread):.1f}"
        if self._best is None or mean > self._best[1]:
            self._best = (step, mean)

    def _report_if_due(self) -> None:
        if self._report is not None and self._clock() - self._last_report >= REPORT_EVERY:
            self._report_progress("progress")

    def _report_progress(self, kind: str) -> None:
        if self._report is not None:
            self._last_report = self._clock()
            self._report(
                kind,
                step=self.pace.step,
                total=self._total,
                counted=self._counted,
                speed=self.pace.speed,
                left=self.pace.left,
                last_return=self._last_return,
                best=self._best,
            )

    def _line_if_due(self) -> None:
        if self._clock() - self._last_line < LINE_EVERY:
            return
        self._line(*([] if self._evaluating is None else [f"evaluating: {self._evaluating:,} steps"]))

    def _line(self, *more: str) -> None:
        self._last_line = self._clock()
        line = "  ".join([*self._position(), *self._last_episode(), *more])
        log.info(line)
        if self._live is None:
            self.print(f"{time.strftime('%H:%M:%S')}  {line}")

    def _position(self) -> tuple[str, str, str]:
        """Steps, speed and time left."""
        speed, left = self.pace.speed, self.pace.left
        return (
            f"{self.pace.step:,} of {self._total:,} {self._counted}s",
            f"{f'{speed:,.0f}' if speed else '–'} {self._counted}s/s",
            f"{'–' if left is None else duration(left)} left",
        )

    def _last_episode(self) -> list[str]:
        """The return of the last training episode; nothing offline, where there are none."""
        last = "–" if self._last_return is None else f"{self._last_return:.1f}"
        return [f"last return {last}"] if self._counted == "step" else []

    def _best_so_far(self) -> str:
        return "–" if self._best is None else f"{self._best[1]:.1f} at {self._best[0]:,}"

    def __rich__(self) -> Group:
        """The panel."""
        grid = Table.grid(padding=(0, 2))
        grid.add_row(*self._position())
        evaluation = f"{self._scored_by} {self._evaluation or '–'}"
        if self._evaluating is not None:
            evaluation = f"evaluating: {self._evaluating:,} steps"
        grid.add_row(*self._last_episode(), evaluation, f"best {self._best_so_far()}")
        panel = Table.grid(expand=True)
        bar = ProgressBar(self._total, min(self.pace.step, self._total))
        for row in (Text(self._title, style="bold"), bar, grid):
            panel.add_row(row)
        if self._message is not None:
            panel.add_row(self._message)
        # The cursor rests on the empty line at the end. There, the "^C" that a terminal shows cannot wrap, which would
        # move the cursor to a line of which the panel knows nothing.
        return Group(panel, Text())


class EvaluationProgress:
    """Says on stderr how far an evaluation is, if it takes long.

    Args:
        program: whose line it is.
        clock: in seconds.
    """

    def __init__(self, program: str, clock: Callable[[], float] = time.monotonic):
        self._program, self._clock = program, clock
        self._last_line = clock()

    def __call__(self, steps: int, what: str = "evaluating") -> None:
        """Called after each step, with the steps of the longest episode."""
        if self._clock() - self._last_line >= EVALUATION_LINE_EVERY:
            self._last_line = self._clock()
            say(f"{self._program}: {what}: {steps:,} {'step' if steps == 1 else 'steps'}")


def print_summary(
    tell: Callable[[str], None],
    outcome: Outcome,
    seeds: Sequence[int],
    folders: Sequence[Path],
    *,
    trust: bool,
    brief: bool,
    at: str = "step",
) -> None:
    """Print how the training went, where its results are, and which commands to run next.

    Args:
        tell: prints a line.
        outcome: of the training.
        seeds: one per member.
        folders: one per member.
        trust: whether dpg-eval needs `trust=true`.
        brief: print only how it went.
        at: what the training counts: `step`, or `update` offline.
    """
    folders = [below_here(folder) for folder in folders]
    trusting = " trust=true" if trust else ""
    for member, (seed, folder) in enumerate(zip(seeds, folders, strict=True)):
        step, best = outcome.best(member)
        if math.isnan(best):
            tell(f"seed {seed}: no training episode ended after the random steps")
        else:
            last = "last evaluation" if outcome.evaluated else "no evaluations; last training episodes"
            tell(f"seed {seed}: {last} {outcome.final(member):.1f}, best {best:.1f} at {at} {step:,}")
        if not brief:
            which = " checkpoint=latest" if math.isnan(best) else ""
            tell(f"  run folder   {folder}")
            tell(f"  evaluate     dpg-eval run={quoted(folder)}{which}{trusting}")
    if not brief:
        tell(f"  curves       tensorboard --logdir {quoted(folders[0].parent)}")
        if len(folders) > 1:
            tell(f"  compare      dpg-report {quoted(folders[0].parent)}")


def quoted(path: Path) -> str:
    """The path, quoted for a shell."""
    return shlex.quote(str(path))
