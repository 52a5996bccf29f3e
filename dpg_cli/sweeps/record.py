"""`sweep.json`: the jobs of a sweep and their states. Only the sweep's own process writes it."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from dpg_cli.errors import DiskError, UserError
from dpg_cli.storage import untrusted
from dpg_cli.storage.atomic import Disk, explaining, write_whole

FILE, CONFIGS = "sweep.json", "configs.jsonl"
VERSION = 1
STATES = ("pending", "running", "done", "failed")
TOGETHER = 1.0  # seconds in which changes share one write
MAX_BYTES = 100_000_000
MOST_OVERRIDES, LONGEST = 1_000, 10_000  # of a job, and characters of each


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Attributes:
        number: from 0.
        overrides: in Hydra's grammar.
        folder: relative to the sweep's; None if Hydra only knows it when the job starts.
        state: one of `STATES`.
        reason: why it failed, or stopped; None if there is nothing to say.
    """

    number: int
    overrides: Sequence[str]
    folder: str | None
    state: str = "pending"
    reason: str | None = None


class SweepFile:
    """`sweep.json` of a sweep, replaced whole; changes within `TOGETHER` seconds share one write.

    Args:
        folder: of the sweep.
        command: the command line of the sweep.
        launcher: the choice of `hydra/launcher`.
        jobs: all that are known.
    """

    def __init__(self, folder: Path, command: Sequence[str], launcher: str, jobs: Iterable[Job]):
        self.folder, self.command, self.launcher = folder, list(command), launcher
        self._jobs = {job.number: job for job in jobs}
        self._lines = {number: json.dumps(asdict(job)) for number, job in self._jobs.items()}
        self._lock = threading.Lock()
        self._written = -TOGETHER
        self._due = threading.Event()  # a change is not written yet
        self._writer: threading.Thread | None = None

    @property
    def jobs(self) -> list[Job]:
        """All jobs, by number."""
        with self._lock:
            return [self._jobs[number] for number in sorted(self._jobs)]

    def __contains__(self, number: int) -> bool:
        with self._lock:
            return number in self._jobs

    def __getitem__(self, number: int) -> Job:
        with self._lock:
            return self._jobs[number]

    def set(self, number: int, **values: Any) -> None:
        """Change a job, or add one. An equal job costs nothing.

        Args:
            number: of the job.
            values: fields of `Job`; of a new one all that have no default.

        Raises:
            DiskError: the file cannot be written.
        """
        with self._lock:
            before = self._jobs.get(number)
            job = Job(number, **values) if before is None else replace(before, **values)
            if job == before:
                return
            self._jobs[number], self._lines[number] = job, json.dumps(asdict(job))
            wait = self._written + TOGETHER - time.monotonic()
            if wait <= 0:
                self._write()
            else:
                self._due.set()
                if self._writer is None:  # one for all writes: a thread that starts while memory is short may hang
                    self._writer = threading.Thread(target=self._write_later, daemon=True)
                    self._writer.start()

    def flush(self) -> None:
        """Write now.

        Raises:
            DiskError: the file cannot be written.
        """
        with self._lock:
            self._write()

    def _write_later(self) -> None:
        while self._due.wait():
            time.sleep(max(0.0, self._written + TOGETHER - time.monotonic()))
            with self._lock, contextlib.suppress(DiskError):  # the next change, or the end, reports it
                if self._due.is_set():
                    self._write()

    def _write(self) -> None:
        self._due.clear()
        self._written = time.monotonic()
        head = json.dumps({"version": VERSION, "command": self.command, "launcher": self.launcher})
        lines = ",\n".join(self._lines[number] for number in sorted(self._lines))
        with explaining(self.folder):
            write_whole(Disk(), self.folder / FILE, f'{head[:-1]}, "jobs": [\n{lines}\n]}}\n'.encode())


def load(folder: Path) -> SweepFile:
    """The record of a sweep, which may come from a stranger.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / FILE
    content = untrusted.read_json(path, MAX_BYTES)
    try:
        jobs = [_job(entry) for entry in content["jobs"]]
        command, launcher = content["command"], content["launcher"]
        whole = all(isinstance(word, str) for word in [*command, launcher]) and isinstance(command, list)
        if not whole or content["version"] != VERSION or len({job.number for job in jobs}) < len(jobs):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a sweep that this version can read") from error
    return SweepFile(folder, command, launcher, jobs)


def store_configs(folder: Path, configs: Iterable[tuple[int, dict[str, Any]]]) -> None:
    """Write the config of each job, which `resume=` uses.

    Raises:
        DiskError: it cannot be written.
    """
    lines = "".join(json.dumps({"number": number, "config": config}) + "\n" for number, config in configs)
    with explaining(folder):
        write_whole(Disk(), folder / CONFIGS, lines.encode())


def stored_configs(folder: Path) -> dict[int, Any]:
    """The config of each job as it was stored, unchecked.

    Raises:
        UserError: the file is missing or damaged.
    """
    found = {}
    path = folder / CONFIGS
    for line in untrusted.read(path, MAX_BYTES).splitlines():
        try:
            content = json.loads(line)
            found[int(content["number"])] = content["config"]
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UserError(f"{path}: not the configs of a sweep") from error
    return found


def _job(entry: Any) -> Job:
    job = Job(**entry)
    known = job.state in STATES and type(job.number) is int and isinstance(job.reason, str | None)
    overrides = job.overrides if isinstance(job.overrides, list) and len(job.overrides) <= MOST_OVERRIDES else [None]
    texts = all(isinstance(text, str) and len(text) <= LONGEST for text in overrides)
    if not known or not texts or not (job.folder is None or _is_inside(job.folder)):
        raise ValueError
    return job


def _is_inside(folder: Any) -> bool:
    """Whether it is a relative path that does not lead out of the sweep, also after Hydra has interpolated it."""
    path = PurePosixPath(folder) if isinstance(folder, str) else PurePosixPath("/")
    plain = str(path).isprintable() and "${" not in str(path)
    short = plain and all(len(os.fsencode(part)) <= 255 for part in path.parts)
    return short and not path.is_absolute() and ".." not in path.parts and bool(path.parts)
