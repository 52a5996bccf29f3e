"""A run's transitions on disk, in `replay/`: shards that are written once and never changed.

`rows_000000010000_000000020000.npy` holds transitions 10,000 to 19,999 since the start, one structured numpy array.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dpg_cli.storage.atomic import Disk, write_whole
from dpg_cli.storage.untrusted import opened

CHUNK = 2**22  # bytes that are in memory at once


class Shard(NamedTuple):
    """A shard that has been checked."""

    path: Path
    start: int  # where its rows begin in the file
    skipped: int  # rows at its beginning that the ring has overwritten
    kept: int  # rows after those


@dataclass(frozen=True)
class Transitions:
    """The newest transitions of a run, read when they are asked for: they can be larger than all else together."""

    shards: tuple[Shard, ...]
    dtype: np.dtype[Any]
    size: int

    def parts(self) -> Iterator[np.ndarray]:
        """All of them, oldest first, a few megabytes at a time."""
        at_once = max(1, CHUNK // self.dtype.itemsize)
        for shard in self.shards:
            with opened(shard.path) as file:
                file.seek(shard.start + shard.skipped * self.dtype.itemsize)
                for first in range(0, shard.kept, at_once):
                    count = min(at_once, shard.kept - first)
                    yield np.frombuffer(bytearray(file.read(count * self.dtype.itemsize)), self.dtype)

    def all(self) -> np.ndarray:
        """All of them, oldest first."""
        return np.concatenate([np.empty(0, self.dtype), *self.parts()])


def bounds(name: str) -> tuple[int, int]:
    """Number of the first transition in a shard, and of the first after it.

    Raises:
        ValueError: no shard is called so.
    """
    match = re.fullmatch(r"rows_(\d{12})_(\d{12})\.npy", name)
    if match is None:
        raise ValueError(f"{name} is not a shard")
    return int(match[1]), int(match[2])


def shards_in(replay: Path) -> list[Path]:
    """Every shard that lies there, oldest first."""
    return sorted(path for path in replay.glob("rows_*.npy") if re.fullmatch(r"rows_\d{12}_\d{12}\.npy", path.name))


def write(replay: Path, first: int, rows: np.ndarray, disk: Disk) -> dict[str, Any]:
    """Write one shard; its name, and the size and checksum that a manifest keeps of it."""
    if not replay.is_dir():
        disk.make_folder(replay)
        disk.sync_folder(replay.parent)
    name = f"rows_{first:012d}_{first + len(rows):012d}.npy"
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    data = buffer.getbuffer()
    write_whole(disk, replay / name, data)
    return {name: described(data)}


def described(data: bytes | memoryview) -> dict[str, Any]:
    """What a manifest keeps of a file."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def check(replay: Path, shards: Mapping[str, Any], added: int, size: int) -> Transitions:
    """The last `size` of `added` transitions, once every shard is what the manifest says.

    Each file is read once, and never more than a few megabytes of it are in memory.

    Raises:
        ValueError: a shard is missing, damaged, or something else.
    """
    names = sorted(shards)
    limits = [bounds(name) for name in names]
    if any(before[1] != after[0] for before, after in pairwise(limits)):
        raise ValueError("transitions are missing between two shards")
    if size and (not limits or limits[-1][1] != added or added - limits[0][0] < size):
        raise ValueError("the shards do not hold the buffer")
    found = []
    dtypes = set()
    for name, (first, after) in zip(names, limits, strict=True):
        with opened(replay / name) as file:
            length = os.fstat(file.fileno()).st_size
            if length != shards[name]["size"]:
                raise ValueError(f"{name} does not have its size")
            dtype, count = _header(file)
            start = file.tell()
            if count != after - first or start + count * dtype.itemsize != length:
                raise ValueError(f"{name} does not hold {after - first} transitions")
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != shards[name]["sha256"]:
                raise ValueError(f"{name} does not match its checksum")
        dtypes.add(dtype)
        skipped = min(count, max(0, added - size - first))
        found.append(Shard(replay / name, start, skipped, count - skipped))
    if len(dtypes) > 1:
        raise ValueError("the shards differ in what they hold")
    return Transitions(tuple(found), dtypes.pop() if dtypes else np.dtype(np.float32), size)


def _header(file: BinaryIO) -> tuple[np.dtype[Any], int]:
    """What an npy file says it holds: a dtype without Python objects, and how many."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an npy file of version 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or fortran_order or len(shape) != 1:
        raise ValueError(f"holds {dtype} of shape {shape}")
    return dtype, shape[0]
