"""The states of a sweep's jobs, from their folders, wherever the jobs run."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dpg_cli import config as configs
from dpg_cli.cli.here import below_here
from dpg_cli.cli.sweep_plan import Naming
from dpg_cli.cli.sweep_scores import scores_of
from dpg_cli.errors import DiskError, UserError, one_line
from dpg_cli.storage import run_dir
from dpg_cli.storage.untrusted import run_file
from dpg_cli.sweeps.record import Job, SweepFile

POLL_EVERY = 2.0  # seconds between looks at the folders of 100 jobs; more jobs are looked at less often
SUMMARY_EVERY = 60.0  # seconds


def state_of(folder: Path) -> tuple[str, str | None]:
    """State and reason of a job, from its folder."""
    content = run_file(folder)
    status, error = content.get("status"), content.get("error")
    if status == "done":
        return "done", None
    if status == "failed":
        return "failed", one_line(error) if isinstance(error, str) else "unknown"
    if status == "running" and run_dir.is_locked(folder):
        return "running", None
    at = "update" if content.get("dataset") is not None else "step"
    return "pending", None if status is None else f"stopped at {at} {_count(content.get('last_step'))}"


def unknown_jobs(folder: Path, known: Sequence[Job]) -> Iterator[tuple[Path, int, list[str]]]:
    """Jobs that only their folders tell of, because a sweeper decided on them as it went."""
    folders = {own.folder for own in known}
    for path in sorted(folder.rglob("run.json")):
        where = path.parent
        if os.path.relpath(where, folder) in folders or (where.parent / "run.json").exists():
            continue  # known, or the folder of one seed
        with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
            node = configs.read_yaml(where / ".hydra" / "hydra.yaml")["hydra"]
            yield where, int(node["job"]["num"]), overrides_of(where)


def overrides_of(folder: Path) -> list[str]:
    """The overrides of a job, from its `.hydra/`.

    Raises:
        UserError: they cannot be read.
        KeyError, TypeError: they are damaged.
    """
    return [str(text) for text in configs.read_yaml(folder / ".hydra" / "hydra.yaml")["hydra"]["overrides"]["task"]]


class Follower:
    """While active, a thread records the states of jobs that run in other processes, and may print a line for each.

    Args:
        file: the record of the sweep.
        naming: of its jobs.
        logs: of failed jobs, by number; may grow.
        tell: prints a line when a job starts, stops or ends, and a summary every minute; None prints nothing.
    """

    def __init__(self, file: SweepFile, naming: Naming, logs: Mapping[int, Path], tell: Callable[[str], None] | None):
        self._file, self._naming, self._logs, self._tell = file, naming, logs, tell
        self._seen: dict[int, tuple[int, Any]] = {}  # by job: when run.json was written, and what it said
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        """Note the present states, and start the thread."""
        self.look(first=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread, after a last look."""
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        told = time.monotonic()
        while True:
            last = self._ended.is_set()
            self.look()
            if self._tell is not None and time.monotonic() - told > SUMMARY_EVERY:
                told = time.monotonic()
                self._tell(self._summary())
            if last:
                return
            self._ended.wait(POLL_EVERY * max(1.0, len(self._seen) / 100))

    def look(self, *, first: bool = False) -> None:
        """Record and print what has changed since the last look; the first one only notes."""
        for job in self._file.jobs:
            self._look(job, first=first)

    def _look(self, job: Job, *, first: bool) -> None:
        """Record and print what has changed."""
        if job.folder is None or job.state == "done":
            return
        folder = self._naming.folder / job.folder
        try:
            written = (folder / "run.json").stat().st_mtime_ns
        except OSError:
            return
        before, about = self._seen.get(job.number, (None, None))
        if written == before:
            return
        content = run_file(folder)
        if not content:  # it is being replaced on another machine
            return
        now = (content.get("status"), content.get("resumed"))
        self._seen[job.number] = written, now
        if first or now == about:
            return
        state, reason = ("running", None) if now[0] == "running" else state_of(folder)
        with contextlib.suppress(DiskError):  # the end of the sweep reports it
            self._file.set(job.number, state=state, reason=reason)
        if self._tell is not None:
            label = self._naming.label(job.number, job.overrides)
            settings = f": {label.differs}" if label.differs else ""
            if state == "failed":
                log = self._logs.get(job.number)
                line = f"failed: {reason}" + ("" if log is None else f" (log: {below_here(log)})")
            elif state == "done":
                line = _scored(folder) + settings
            else:
                line = (reason or _begun(now[1])) + settings
            self._tell(f"{label.position} {line}")

    def _summary(self) -> str:
        states = [job.state for job in self._file.jobs]
        failed, running, waiting = (states.count(state) for state in ("failed", "running", "pending"))
        return f"{states.count('done')} of {len(states)} done  {failed} failed  {running} running  {waiting} waiting"


def _begun(resumed: object) -> str:
    """What a line says of a job that runs; `resumed` is from its `run.json`."""
    last = resumed[-1] if isinstance(resumed, list) and resumed else None
    return f"resumed at step {_count(last.get('step'))}" if isinstance(last, dict) else "started"


def _scored(folder: Path) -> str:
    scores = scores_of(folder)
    return "done" if scores is None or math.isnan(scores.mean()) else f"done, score {scores.mean():.1f}"


def _count(step: object) -> str:
    return f"{step:,}" if isinstance(step, int) else "unknown"
