"""What the terminal shows of jobs that run at the same time: a live table, or lines if it is no terminal."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dpg_cli.durations import duration
from dpg_cli.sweeps.local import State

REFRESH_EVERY = 0.25  # seconds
SUMMARY_EVERY = 60.0  # seconds between summary lines where there is no terminal
LINES_BELOW = 5  # of the terminal that are no rows: the header, jobs left out, the summary, a message, an empty line
NARROW = 90  # columns, from which on headers are in full


@dataclass
class Row:
    """A running job.

    Attributes:
        name: such as "[3/4] job 2".
        settings: that differ between the jobs.
        log: the file that its output goes to.
        since: when it was started.
        progress: the values of its last messages.
    """

    name: str
    settings: str
    log: Path
    since: float
    progress: dict[str, Any] = field(default_factory=dict)


class SweepDisplay:
    """Shows running jobs in a table.

    Without a terminal, it prints a line when a job starts or ends, and a summary every minute.

    Args:
        console: where to write.
        jobs: how many there are.
        say: shows a line at once; a signal handler may call it.
        clock: in seconds.

    Attributes:
        workers: how many run at once.
    """

    def __init__(
        self,
        console: Console,
        jobs: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._console, self._jobs, self._say, self._clock = console, jobs, say, clock
        self.workers = 1
        self._rows: dict[int, Row] = {}
        self._counts: dict[State, int] = {"done": 0, "failed": 0, "pending": 0}
        self._seconds: list[float] = []  # of jobs that are done
        self._told: set[str] = set()
        self._message: str | None = None
        self._last = clock()
        self._live: Live | None = None
        if console.is_interactive and console.file.isatty():  # FORCE_COLOR makes rich take a pipe for a terminal
            self._live = Live(
                self, console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )

    def __enter__(self) -> Self:
        """Start the table."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the table."""
        if self._live is not None:
            self._live.stop()

    def started(self, number: int, name: str, settings: str, log: Path) -> None:
        """Show that a job starts."""
        self._rows[number] = Row(name, settings, log, self._clock())
        self._line(f"{name} started: {settings}" if settings else f"{name} started")

    def said(self, number: int, message: Mapping[str, Any]) -> None:
        """Show a message of a job. Each note is shown once, since many jobs have the same."""
        if message["kind"] != "note":
            self._rows[number].progress |= message
        elif (note := message["text"]) not in self._told:
            self._told.add(note)
            self._print(f"{self._rows[number].name} {note}")

    def again(self, number: int, reason: str) -> None:
        """Show that a killed job is started again."""
        row = self._rows[number]
        row.progress = {}
        self._print(f"{row.name} was started again: {reason}")

    def ended(self, number: int, state: State, reason: str | None, score: float) -> None:
        """Show how a job ended.

        Args:
            number: of the job.
            state: `pending` if it was stopped.
            reason: why it failed or was stopped; None if the whole sweep was.
            score: of a job that is done.
        """
        row = self._rows.pop(number)
        seconds = self._clock() - row.since
        self._counts[state] += 1
        if state == "failed":
            self._print(f"{row.name} failed: {reason} (log: {row.log})")
        elif state == "pending":
            self._print(f"{row.name} {reason or 'stopped'}")
        else:
            self._seconds.append(seconds)
            scored = "" if math.isnan(score) else f", score {score:.1f}"
            self._line(f"{row.name} done after {duration(seconds)}{scored}")

    def failed_to_start(self, name: str, reason: str | None) -> None:
        """Show that a job could not be started."""
        self._counts["failed"] += 1
        self._print(f"{name} failed: {reason}")

    def tell(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, soft_wrap=True)

    def notify(self, text: str) -> None:
        """Show a line at once; may be called by a signal handler. The table shows it itself, as any panel must."""
        if self._live is not None and self._live.is_started:
            self._message = text
        else:
            self._say(text)

    def passed(self) -> None:
        """Refresh the table, or print the summary, if that is due."""
        now = self._clock()
        if now - self._last < (SUMMARY_EVERY if self._live is None else REFRESH_EVERY):
            return
        self._last = now
        if self._live is not None:
            self._live.refresh()
        else:
            self._line(self._summary())

    def _print(self, text: str) -> None:
        """Print a line. On a terminal it stays above the table."""
        self.tell(text if self._live is not None else f"{time.strftime('%H:%M:%S')}  {text}")

    def _line(self, text: str) -> None:
        """Print a line if there is no table."""
        if self._live is None:
            self._print(text)

    def _summary(self) -> str:
        counts = [f"{self._counts['done']} of {self._jobs} done", f"{self._counts['failed']} failed"]
        left = self._left()
        counts += [f"{len(self._rows)} running", f"{'–' if left is None else duration(left)} left"]
        return "  ".join(counts)

    def _left(self) -> float | None:
        """Seconds that the sweep still takes; None if the time left of any running job is unknown."""
        lefts: list[float | None] = [row.progress.get("left") for row in self._rows.values()]
        known = [left for left in lefts if left is not None]
        waiting = self._jobs - sum(self._counts.values()) - len(self._rows)
        if len(known) < len(lefts):
            return None
        whole = self._seconds + [
            self._clock() - row.since + left for row, left in zip(self._rows.values(), known, strict=True)
        ]
        if not whole:
            return None
        work = sum(known) + max(0, waiting) * sum(whole) / len(whole)
        return max(work / self.workers, max(known, default=0.0))

    def __rich__(self) -> Group:
        """The table and what is below it, at most as high as the terminal."""
        wide = self._console.width >= NARROW
        table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), expand=True)
        table.add_column("job", justify="right", no_wrap=True)
        table.add_column("settings", overflow="ellipsis", no_wrap=True, ratio=1)
        last, left = ("last return", "time left") if wide else ("last", "left")
        counted = [str(row.progress.get("counted", "step")) for row in self._rows.values()]
        what = "update" if counted and set(counted) == {"update"} else "step"
        for header in (what, f"{what}s/s", last, "best", left):
            table.add_column(header, justify="right", no_wrap=True)
        rows = list(self._rows.items())
        shown = rows[: max(1, self._console.height - LINES_BELOW)]
        for number, row in shown:
            table.add_row(str(number), row.settings, *_figures(row.progress))
        parts: list[Table | Text] = [table] if rows else []
        if len(rows) > len(shown):
            parts.append(_text(f"and {len(rows) - len(shown)} more running"))
        parts.append(_text(self._summary()))
        if self._message is not None:
            parts.append(_text(self._message))
        # The cursor rests on the empty line at the end, where the "^C" that a terminal shows cannot wrap.
        return Group(*parts, Text())


def _figures(progress: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Step, speed, last return, best evaluation and time left."""
    step, speed, last = progress.get("step"), progress.get("speed"), progress.get("last_return")
    best, left = progress.get("best"), progress.get("left")
    return (
        "starting" if step is None else f"{step:,}",
        f"{speed:,.0f}" if speed else "–",
        "–" if last is None else f"{last:.1f}",
        "–" if best is None else f"{best[1]:.1f}",
        "–" if left is None else duration(left),
    )


def _text(line: str) -> Text:
    return Text(line, no_wrap=True, overflow="ellipsis")
