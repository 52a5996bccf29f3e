"""A run's folder, which only one run can claim, and `run.json`, which records what the run is and how it ended."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from dpg_cli import __version__
from dpg_cli.errors import DiskError, UserError
from dpg_cli.storage.atomic import Disk, explaining, write_whole
from dpg_cli.storage.untrusted import run_file

ATTEMPTS = 3  # to lock a folder


def claim(folder: Path, key: str) -> None:
    """Create a folder that must not exist yet, so that two runs never share one.

    Args:
        folder: to create, with its parents.
        key: that chooses the folder, for messages.

    Raises:
        UserError: it exists or cannot be written.
        DiskError: the disk is full or fails.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=False)
        for path in missing:
            Disk().sync_folder(path.parent)
    except FileExistsError as error:
        raise UserError(f"{key}={folder}: already exists; choose a new folder") from error
    except OSError as error:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # another folder would not help
            raise DiskError(f"{key}={folder}: {error.strerror}") from error
        raise UserError(f"{key}={folder}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def locked(folders: Iterable[Path]) -> Iterator[None]:
    """Lock folders, so that no other process trains in them.

    The kernel releases the locks whenever the process ends, and worker processes do not inherit them.

    Raises:
        UserError: another process trains in one.
        DiskError: the folder cannot be written.
    """
    with contextlib.ExitStack() as files:
        for folder in folders:
            try:
                file = files.enter_context(_open_lock(folder))
            except OSError as error:
                raise DiskError(f"{folder}: cannot be written: {error.strerror}") from error
            for attempt in range(ATTEMPTS):  # `is_locked` of another process takes the lock for an instant
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if attempt == ATTEMPTS - 1:
                        raise UserError(f"{folder}: is being trained by another process") from error
                    time.sleep(0.05)
        yield


def is_locked(folder: Path) -> bool:
    """Whether another process trains in a folder."""
    with contextlib.suppress(OSError), _open_lock(folder, create=False) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _open_lock(folder: Path, *, create: bool = True) -> IO[bytes]:
    """Open the file that is locked, but no link; a pipe does not block."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    return os.fdopen(os.open(folder / ".lock", flags, 0o666), "r+b", buffering=0)


class RunFile:
    """`run.json`, replaced whole at every change.

    Every change raises `DiskError` if it cannot be written.

    Args:
        folder: the run folder.
        command: the command line.
        goes_on_from: step of the checkpoint that the run resumes from; None for a new run.
    """

    def __init__(self, folder: Path, command: Sequence[str], goes_on_from: int | None = None):
        self._path = folder / "run.json"
        now = _now()
        self._content: dict[str, Any] = {
            "status": "running",
            "command": list(command),
            "versions": versions(),
            "git": git_revision(),
            "machine": {"host": platform.node(), "platform": platform.platform(), "cpus": os.cpu_count()},
            "device": None,
            "slurm": slurm_job(),
            "started": now,
            "ended": None,
            "last_step": goes_on_from or 0,
            "error": None,
        }
        if goes_on_from is not None:
            before = run_file(folder)  # empty if it is missing or damaged
            resumed = before.get("resumed")
            now_too = {"step": goes_on_from, "time": now, "command": list(command)}
            self._content["resumed"] = [*(resumed if isinstance(resumed, list) else []), now_too]
            self._content |= {key: before[key] for key in ("command", "started", "device") if key in before}
        self._write()

    def end(self, status: str, *, last_step: int | None = None, error: str | None = None) -> None:
        """Record how the run ended: `done`, `failed` or `interrupted`."""
        self._content |= {"status": status, "ended": _now(), "error": error}
        if last_step is not None:
            self._content["last_step"] = last_step
        self._write()

    def chose(self, device: Mapping[str, Any]) -> None:
        """Record the device and how it was chosen, unless a resumed run keeps its device."""
        before = self._content["device"]
        if not (isinstance(before, dict) and before.get("name") == device["name"]) or device["updates_per_second"]:
            self._content["device"] = device
            self._write()

    def learns_from(self, dataset: Mapping[str, Any]) -> None:
        """Record the data set of an offline run."""
        self._content["dataset"] = dataset
        self._write()

    def reached(self, step: int) -> None:
        """Record the last step."""
        self._content["last_step"] = step
        self._write()

    def _write(self) -> None:
        with explaining(self._path):
            write_whole(Disk(), self._path, (json.dumps(self._content, indent=2) + "\n").encode())


def status(folder: Path) -> str | None:
    """The status in a run's `run.json`; None if that cannot be read."""
    found = run_file(folder).get("status")
    return found if isinstance(found, str) else None


def device(folder: Path) -> str | None:
    """The device in a run's `run.json`; None if that names none."""
    found = run_file(folder).get("device")
    name = found.get("name") if isinstance(found, dict) else None
    return name if isinstance(name, str) and re.fullmatch(r"(cpu|cuda)(:\d{1,3})?", name) else None


def slurm_job() -> Mapping[str, str] | None:
    """SLURM's ids of the job that this process belongs to; None outside a job."""
    names = {"job_id": "SLURM_JOB_ID", "array_job_id": "SLURM_ARRAY_JOB_ID", "array_task_id": "SLURM_ARRAY_TASK_ID"}
    found = {key: os.environ[name] for key, name in names.items() if name in os.environ}
    return found if "job_id" in found else None


def is_requeued(folder: Path) -> bool:
    """Whether this process belongs to a requeued SLURM job that left a run unfinished in this folder."""
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    content = run_file(folder)
    again = slurm_job() is not None and count.isdecimal() and int(count) >= 1
    return again and content.get("slurm") == slurm_job() and content.get("status") not in (None, "done")


def versions() -> Mapping[str, str]:
    """Versions of the software that a run's numbers depend on."""
    packages = {name: _version(name) for name in ("torch", "gymnasium", "mujoco", "numpy")}
    return {"python": platform.python_version(), **packages, "dpg_cli": __version__}


def git_revision() -> Mapping[str, Any]:
    """Revision of the checkout that this code runs from, else of the working directory; None outside git."""
    checkout = Path(__file__).resolve().parents[2]
    where = checkout if (checkout / ".git").exists() else Path.cwd()
    revision = _git(where, "rev-parse", "HEAD")
    changes = _git(where, "status", "--porcelain")
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


def command_line() -> list[str]:
    """The command as it was given, without the path of the program."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


@functools.cache  # as when the code was loaded; a process may train many runs
def _git(where: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(where), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
