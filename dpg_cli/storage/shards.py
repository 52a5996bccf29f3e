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

from dpg_cli.errors import UserError
from dpg_cli.storage.atomic import Disk, write_whole
from dpg_cli.storage.untrusted import opened

CHUNK = 2**22  # bytes in memory at once


class Shard(NamedTuple):
    """A shard that has been checked."""

    path: Path
    start: int  # offset of its rows in the file, in bytes
    skipped: int  # rows at its start that the ring has overwritten
    kept: int  # rows after those


@dataclass(frozen=True)
class Transitions:
    """The newest transitions of a run, read on demand: they can be larger than everything else together."""

    shards: tuple[Shard, ...]
    dtype: np.dtype[Any]
    size: int

    def parts(self) -> Iterator[np.ndarray]:
        """All transitions, oldest first, a few megabytes at a time."""
        at_once = max(1, CHUNK // self.dtype.itemsize)
        for shard in self.shards:
            with opened(shard.path) as file:
                file.seek(shard.start + shard.skipped * self.dtype.itemsize)
                for first in range(0, shard.kept, at_once):
                    count = min(at_once, shard.kept - first)
                    yield np.frombuffer(bytearray(file.read(count * self.dtype.itemsize)), self.dtype)

    def all(self) -> np.ndarray:
        """All transitions, oldest first."""
        return np.concatenate([np.empty(0, self.dtype), *self.parts()])


def bounds(name: str) -> tuple[int, int]:
    """The numbers of the first transition in a shard and of the first after it.

    Raises:
        ValueError: `name` is not the name of a shard.
    """
    match = re.fullmatch(r"rows_(\d{12})_(\d{12})\.npy", name)
    if match is None:
        raise ValueError(f"{name} is not a shard")
    return int(match[1]), int(match[2])


def shards_in(replay: Path) -> list[Path]:
    """Every shard in a folder, oldest first."""
    return sorted(path for path in replay.glob("rows_*.npy") if re.fullmatch(r"rows_\d{12}_\d{12}\.npy", path.name))


def write(replay: Path, first: int, rows: np.ndarray, disk: Disk) -> dict[str, Any]:
    """Write one shard of transitions from number `first`.

    Returns:
        Its name, with its size and checksum for the manifest.

    Raises:
        OSError: a write fails.
    """
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
    """A file's size and checksum for the manifest."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def check(replay: Path, shards: Mapping[str, Any], added: int, size: int) -> Transitions:
    """The last `size` of `added` transitions, after a check of every shard against the manifest.

    Each file is read once, with no more than a few megabytes of it in memory.

    Raises:
        ValueError: a shard is damaged, or the shards do not hold these transitions.
        UserError: a shard is missing or not a file.
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
                raise ValueError(f"{name} does not have the size that the manifest says")
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
        raise ValueError("the shards hold transitions of different types")
    return Transitions(tuple(found), dtypes.pop() if dtypes else np.dtype(np.float32), size)


def some_observations(replay: Path, obs_dim: int, most: int) -> np.ndarray:
    """Observations from all over a replay, which may come from a stranger. Only as much as is returned is read.

    Args:
        replay: the folder; it may be missing.
        obs_dim: size of an observation.
        most: how many.

    Returns:
        `(N, obs_dim)` with N at most `most`.

    Raises:
        UserError: a file is not a shard with such observations.
    """
    paths = [] if replay.is_symlink() else shards_in(replay)
    firsts = np.cumsum([0, *(after - first for first, after in (bounds(path.name) for path in paths))])
    rows = np.unique(np.linspace(0, firsts[-1] - 1, most).astype(int)) if firsts[-1] > 0 else np.empty(0, int)
    found = [np.empty((0, obs_dim), np.float32)]
    for path, first, after in zip(paths, firsts, firsts[1:], strict=False):
        with opened(path) as file:
            try:
                dtype, count = _header(file)
                obs, offset = dtype.fields["obs"][:2]  # type: ignore[index]
                start, size = file.tell(), os.fstat(file.fileno()).st_size
                whole = count == after - first and start + count * dtype.itemsize == size
                if not whole or obs.shape != (obs_dim,) or obs.base.kind != "f":
                    raise ValueError(f"{size:,} bytes, {count} rows of {dtype}")
                for row in rows[(rows >= first) & (rows < after)] - first:
                    file.seek(start + offset + int(row) * dtype.itemsize)
                    found.append(np.frombuffer(file.read(obs.itemsize), obs.base)[None])
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{path}: not transitions of this policy: {error}") from error
    return np.concatenate(found)


def _header(file: BinaryIO) -> tuple[np.dtype[Any], int]:
    """Type and number of the items of an npy file, from its header. Python objects are rejected."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an npy file of version 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or fortran_order or len(shape) != 1:
        raise ValueError(f"holds {dtype} of shape {shape}")
    return dtype, shape[0]
