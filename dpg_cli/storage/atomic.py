"""Crash-safe files: every call that changes the disk is here, so that tests can make each one fail.

Content and names survive a crash only after a sync. So a file is written whole under another name, synced, renamed, and
then its folder is synced.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from dpg_cli.errors import DiskError


class Disk:
    """The real disk. Every method raises `OSError` if it fails."""

    def make_folder(self, path: Path) -> None:
        """Create a folder."""
        path.mkdir()

    def write(self, path: Path, data: bytes | memoryview) -> None:
        """Write a whole file and sync it."""
        with naming(path), path.open("wb") as file:
            file.write(data)
            file.flush()
            self.sync(file.fileno())

    def sync(self, descriptor: int) -> None:
        """Wait until what was written to a file or folder is on the disk."""
        os.fsync(descriptor)

    def sync_folder(self, path: Path) -> None:
        """Wait until the names in a folder are on the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        """Rename in one step, replacing the target if it exists."""
        path.replace(target)

    def link(self, path: Path, target: str) -> None:
        """Create a symbolic link at `path`."""
        path.symlink_to(target, target_is_directory=True)

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file to `size` bytes."""
        with path.open("r+b") as file:
            file.truncate(size)
            self.sync(file.fileno())

    def remove(self, path: Path) -> None:
        """Remove a file, a link, or a folder with its content, if it exists."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def write_whole(disk: Disk, path: Path, data: bytes | memoryview) -> None:
    """Write a file that appears whole or not at all, replacing one of that name.

    Raises:
        OSError: a write fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        disk.write(temporary, data)
        disk.rename(temporary, path)
        disk.sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise


@contextlib.contextmanager
def appearing(disk: Disk, path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, for the block to write. It gets the name of `path` if the block does not raise.

    Raises:
        OSError: a write fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
        disk.rename(temporary, path)
        disk.sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            disk.remove(temporary)


def remove_leftovers(disk: Disk, folder: Path) -> None:
    """Remove temporary files and folders that a crash left in a folder."""
    for leftover in folder.glob(".*.*"):
        if re.fullmatch(r"\..+\.\d+", leftover.name):
            disk.remove(leftover)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a file's name into an `OSError`: a failed write does not know it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def explaining(path: Path, what: str = "") -> Iterator[None]:
    """Turn an `OSError` into one line: which file failed, why, and how much space is free.

    Args:
        path: the file, if the error names none.
        what: inserted into the message before the free space.

    Raises:
        DiskError: the code in this context raised `OSError`.
    """
    try:
        yield
    except OSError as error:
        room = "the run folder is gone"
        with contextlib.suppress(OSError):
            room = f"{shutil.disk_usage(path if path.is_dir() else path.parent).free:,} bytes are free"
        raise DiskError(f"{error.filename or path}: {error.strerror or error}; {what}{room}") from error
