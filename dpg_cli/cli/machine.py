"""What this process may use of its machine: the operating system, cores and memory.

Linux counts within the limits of a container. Other systems are asked through psutil.
"""

import contextlib
import importlib.util
import os
from pathlib import Path

from dpg_cli.errors import UserError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def require_posix() -> None:
    """Check that this system has POSIX file locks, signals and links. Windows has not.

    Raises:
        UserError: it has not.
    """
    if importlib.util.find_spec("fcntl") is None:
        raise UserError("Windows is not supported; use dpg-cli in WSL, the Windows Subsystem for Linux")


def affinity() -> int:
    """The number of cores that this process may run on; outside Linux, all logical cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    import psutil  # here, since Linux does not need it

    return psutil.cpu_count() or 1


def slurm_cpus() -> int | None:
    """The cores that SLURM gives to each task of a job; None outside a job, or if the job did not ask for any."""
    value = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(value) if value.isdecimal() else None


def cores() -> int:
    """The number of cores that this process may keep busy, within the limits of its machine and container."""
    count = affinity()
    if (own := slurm_cpus()) is not None:  # which not every cluster enforces
        count = max(1, min(count, own))
    with contextlib.suppress(OSError, ValueError):  # no container, no limit, or an old kernel
        quota, period = map(int, (CGROUP / "cpu.max").read_text(encoding="utf-8").split())
        count = max(1, min(count, quota // period))
    return count


def available_memory() -> int:
    """Free bytes of the machine, or of the container of this process."""
    available = _free_memory()
    with contextlib.suppress(OSError, ValueError, KeyError):  # no container, no limit, or an old kernel
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        available = min(available, limit - used + int(stat["inactive_file"]))  # the kernel frees cached files on demand
    return available


def _free_memory() -> int:
    with contextlib.suppress(OSError, ValueError, KeyError):  # not Linux, or no /proc
        about = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return int(about["MemAvailable"].split()[0]) * 1024
    import psutil

    try:
        return int(psutil.virtual_memory().available)
    except OSError:  # Linux without /proc; these pages do not include cached files
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
