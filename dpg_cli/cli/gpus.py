"""The GPUs of this machine, without torch, which would start CUDA in this process."""

import os
import re
import subprocess
from collections.abc import Sequence

from dpg_cli.errors import UserError

SECONDS = 10.0  # for nvidia-smi
GPU = re.compile(r"^GPU (\d+):", re.MULTILINE)
SLICE = re.compile(r"UUID: (MIG-[^)\s]+)")


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    A GPU that is divided (MIG) counts as its parts, since a program can only use one of these.
    """
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in given.split(",")]
        end = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:end]  # CUDA ignores everything from the first invalid name on
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found: list[str] = []
    _, *parts = GPU.split(listed.stdout)
    for number, about in zip(parts[::2], parts[1::2], strict=True):
        found += SLICE.findall(about) or [number]
    return found


def chosen(key: str, value: str | Sequence[int]) -> list[str] | None:
    """The GPUs for jobs, as CUDA_VISIBLE_DEVICES names them; empty for none, None to leave that variable unchanged.

    Args:
        key: for messages.
        value: `auto`, `none`, or positions among the visible GPUs.

    Raises:
        UserError: there is no such GPU.
    """
    if value == "none":
        return []
    found = visible()
    if isinstance(value, str):
        return found or None
    for position in value:
        if position >= len(found):
            raise UserError(f"{key}={_written(value)}: there is no GPU {position}; {_known(len(found))}")
    return [found[position] for position in value]


def _written(positions: Sequence[int]) -> str:
    return f"[{','.join(map(str, positions))}]"


def _known(count: int) -> str:
    if count == 0:
        return "nvidia-smi finds none, and CUDA_VISIBLE_DEVICES names none"
    return "the only GPU is 0" if count == 1 else f"choose from 0 to {count - 1}"
