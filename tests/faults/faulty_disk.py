"""Disks that fail, for tests: at one call, or by losing what was not synced."""

import errno
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from dpg_cli.storage.atomic import Disk

CALLS = ("make_folder", "write", "sync_folder", "rename", "link", "truncate", "remove")


class Crash(BaseException):
    """The process is gone."""


class CountingDisk(Disk):
    """Something happens at call `at`, counted from 0.

    Args:
        at: the call; nothing for never.
        error: an errno, or nothing for a crash.
        lasting: whether every later call fails too.
        half: whether the call is carried out by half first, where it writes a file.
    """

    def __init__(self, at=None, error=None, lasting=False, half=False):
        self.at, self.error, self.lasting, self.half = at, error, lasting, half
        self.calls = 0

    def _happens(self, path, data=None):
        number, self.calls = self.calls, self.calls + 1
        if self.at is None or number < self.at or (number > self.at and not (self.lasting or self.error is None)):
            return
        if data is not None and self.half and number == self.at:
            Path(path).write_bytes(bytes(data)[: len(data) // 2])
        if self.error is None:
            raise Crash
        raise OSError(self.error, os.strerror(self.error), str(path))

    def make_folder(self, path):
        self._happens(path)
        super().make_folder(path)

    def write(self, path, data):
        self._happens(path, data)
        super().write(path, data)

    def sync_folder(self, path):
        self._happens(path)
        super().sync_folder(path)

    def rename(self, path, target):
        self._happens(path)
        super().rename(path, target)

    def link(self, path, target):
        self._happens(path)
        super().link(path, target)

    def remove(self, path):
        # On a disk that fails, what is there can still be removed, but after a crash nothing happens at all.
        if self.error is None:
            self._happens(path)
        super().remove(path)


@dataclass
class File:
    data: bytes  # what is on the disk if the power fails


@dataclass
class Link:
    target: str


@dataclass
class Folder:
    names: dict = field(default_factory=dict)  # as programs see them
    synced: dict = field(default_factory=dict)  # as they are if the power fails


class PowerlessDisk(CountingDisk):
    """Loses, when `fail()` is called, every file and name that was not synced.

    Args:
        root: everything below it is remembered.
        synced_files: false: files are never synced, as by a program that forgets it.
        synced_folders: the same of folders.
    """

    def __init__(self, root, at=None, *, synced_files=True, synced_folders=True):
        super().__init__(at)
        self.root, self.synced_files, self.synced_folders = root, synced_files, synced_folders
        self.top = self._read(root)

    def fail(self):
        shutil.rmtree(self.root)
        self._restore(self.top, self.root)

    def make_folder(self, path):
        super().make_folder(path)
        self._folder(path.parent).names[path.name] = Folder()

    def write(self, path, data):
        super().write(path, data)
        self._folder(path.parent).names[path.name] = File(bytes(data) if self.synced_files else b"")

    def sync_folder(self, path):
        super().sync_folder(path)
        if self.synced_folders:
            folder = self._folder(path)
            folder.synced = dict(folder.names)

    def rename(self, path, target):
        super().rename(path, target)
        self._folder(target.parent).names[target.name] = self._folder(path.parent).names.pop(path.name)

    def link(self, path, target):
        super().link(path, target)
        self._folder(path.parent).names[path.name] = Link(target)

    def remove(self, path):
        super().remove(path)
        self._folder(path.parent).names.pop(path.name, None)

    def _folder(self, path):
        node = self.top
        for part in path.relative_to(self.root).parts:
            node = node.names[part]
        return node

    def _read(self, path):
        if path.is_symlink():
            return Link(os.readlink(path))
        if path.is_dir():
            names = {child.name: self._read(child) for child in path.iterdir()}
            return Folder(names, dict(names))
        return File(path.read_bytes())

    def _restore(self, node, path):
        if isinstance(node, Folder):
            path.mkdir()
            for name, child in node.synced.items():
                self._restore(child, path / name)
        elif isinstance(node, Link):
            path.symlink_to(node.target)
        else:
            path.write_bytes(node.data)


FULL = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
