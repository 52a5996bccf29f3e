"""Files that outlive a crash: every call that changes the disk, in one place, so that tests can make each one fail.

What is written counts only once it is synced, and so does a name: a file is written whole under another name, synced,
renamed, and then its folder is synced.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from dpg_cli.errors import DiskError


class Disk:
    """The real one."""

    def make_folder(self, path: Path) -> None:
        """A new folder."""
        path.mkdir()

    def write(self, path: Path, data: bytes | memoryview) -> None:
        """A whole file, synced."""
        with naming(path), path.open("wb") as file:
            file.write(data)
            file.flush()
            self.sync(file.fileno())

    def sync(self, descriptor: int) -> None:
        """What has been written to a file or folder is on the disk afterwards."""
        os.fsync(descriptor)

    def sync_folder(self, path: Path) -> None:
        """The names in a folder are on the disk afterwards."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        """In one step; what was called so before is gone."""
        path.replace(target)

    def link(self, path: Path, target: str) -> None:
        """A symbolic link."""
        path.symlink_to(target, target_is_directory=True)

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file."""
        with path.open("r+b") as file:
            file.truncate(size)
            self.sync(file.fileno())

    def remove(self, path: Path) -> None:
        """A file, a link, or a folder with all that is in it; nothing if it is not there."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def write_whole(disk: Disk, path: Path, data: bytes | memoryview) -> None:
    """A file that appears whole or not at all, in place of what was there before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        disk.write(temporary, data)
        disk.rename(temporary, path)
        disk.sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise


def remove_leftovers(disk: Disk, folder: Path) -> None:
    """What a crash has left in a folder before it got its name."""
    for leftover in folder.glob(".*.*"):
        if re.fullmatch(r"\..+\.\d+", leftover.name):
            disk.remove(leftover)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a file's name into what the disk says of it: a write that fails does not know it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def explaining(path: Path, what: str = "") -> Iterator[None]:
    """Say in one line which file the disk refuses, why, and how much room there is.

    Args:
        path: that is written, where the error names none.
        what: was to be written, for the message.

    Raises:
        DiskError: the disk refuses.
    """
    try:
        yield
    except OSError as error:
        room = "the run folder is gone"
        with contextlib.suppress(OSError):
            room = f"{shutil.disk_usage(path if path.is_dir() else path.parent).free:,} bytes are free"
        raise DiskError(f"{error.filename or path}: {error.strerror or error}; {what}{room}") from error
