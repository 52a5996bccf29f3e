"""SLURM's queue, and `slurm.json`: the SLURM job of each job of a sweep."""

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dpg_cli.errors import UserError
from dpg_cli.storage import untrusted
from dpg_cli.storage.atomic import Disk, explaining, write_whole

FILE = "slurm.json"
MAX_BYTES = 10_000_000
ANSWER = 10.0  # seconds


class Submitted(NamedTuple):
    """A job that was submitted.

    Attributes:
        name: SLURM's id, such as 17 or 17_3.
        log: the file of its messages, relative to the sweep's folder if it is inside.
    """

    name: str
    log: str


def queue(user: int) -> set[str] | None:
    """SLURM's ids of a user's jobs that wait or run, such as 17 or 17_3; None if SLURM does not answer."""
    # Not sacct, which clusters without accounting do not have. -r: one line for each job of an array.
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={user}"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=ANSWER, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    names = done.stdout.decode(errors="replace").split()
    return set(names) if all(re.fullmatch(r"\d+(_\d+)?", name) for name in names) else None


def store(folder: Path, submitted: Mapping[int, Submitted]) -> None:
    """Add submitted jobs.

    Args:
        folder: of the sweep.
        submitted: by the number of the job.

    Raises:
        DiskError: the file cannot be written.
    """
    both = {number: own._asdict() for number, own in {**stored(folder), **submitted}.items()}
    with explaining(folder):
        write_whole(Disk(), folder / FILE, (json.dumps({"user": os.getuid(), "jobs": both}) + "\n").encode())


def stored(folder: Path) -> dict[int, Submitted]:
    """The submitted jobs of a sweep, by number; empty if there are none or the file is damaged."""
    with contextlib.suppress(UserError, KeyError, TypeError, ValueError, AttributeError):
        entries = untrusted.read_json(folder / FILE, MAX_BYTES)["jobs"]
        return {int(number): Submitted(str(own["name"]), str(own["log"])) for number, own in entries.items()}
    return {}


def still_queued(folder: Path) -> dict[int, Submitted]:
    """The jobs of a sweep that wait or run in SLURM, by number.

    Raises:
        UserError: jobs were submitted, and SLURM does not answer.
    """
    submitted = stored(folder)
    if not submitted:
        return {}
    names = queue(submitter(folder))
    if names is None:
        raise UserError(
            f"resume={folder}: its jobs were submitted to SLURM, which does not answer (squeue); without it, jobs that "
            f"still wait there would run twice. If the cluster is gone, remove {folder / FILE}"
        )
    return {number: own for number, own in submitted.items() if own.name in names}


def submitter(folder: Path) -> int:
    """The user who submitted the jobs of a sweep; the user of this process if that is not known."""
    with contextlib.suppress(UserError, AttributeError):
        user = untrusted.read_json(folder / FILE, MAX_BYTES).get("user")
        return user if isinstance(user, int) else os.getuid()
    return os.getuid()
