"""The folders of checkpoints: each appears whole or not at all, and its manifest names every file with its SHA-256."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dpg_cli.errors import UserError
from dpg_cli.storage.atomic import Disk
from dpg_cli.storage.shards import described
from dpg_cli.storage.untrusted import opened, read, read_json

MANIFEST = "manifest.json"
DAMAGED = ": damaged checkpoint: "
LINKED = {"latest": "step", "best": "best"}  # the kind of folder that each link names
MAX_JSON = 2**28  # bytes of a manifest, which names every shard, or of a tree, which holds a stride's averages


def folder_name(kind: str, step: int) -> str:
    """`step_000050000` for a checkpoint, `best_000045000` for the policy of the best evaluation."""
    return f"{kind}_{step:09d}"


def saved_folders(root: Path, kind: str) -> list[Path]:
    """The folders of a kind, oldest first, without anything else that is beside them."""
    found = (path for path in root.glob(f"{kind}_*") if re.fullmatch(rf"{kind}_\d{{9}}", path.name))
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def step_of(folder: Path) -> int:
    """The step in a folder's name."""
    return int(folder.name.partition("_")[2])


def write_folder(
    root: Path,
    kind: str,
    step: int,
    files: Mapping[str, bytes],
    versions: Mapping[str, str],
    about: Mapping[str, Any],
    disk: Disk,
) -> Path:
    """Write a folder that appears whole or not at all: filled under another name, synced, renamed.

    Args:
        root: its parent folder.
        kind: `step` or `best`.
        step: of the checkpoint.
        files: their contents, by name.
        versions: of the software, for the manifest.
        about: further entries of the manifest.
        disk: to write to.

    Raises:
        OSError: a write fails.
    """
    name = folder_name(kind, step)
    temporary, folder = root / f".{name}.{os.getpid()}", root / name
    replaced = root / f".{name}.replaced.{os.getpid()}"
    described_files = {file: described(data) for file, data in files.items()}
    manifest: dict[str, Any] = {"step": step, "files": described_files, "versions": dict(versions), **about}
    manifest["checksum"] = checksum(manifest)
    try:
        if not root.is_dir():
            disk.make_folder(root)
            disk.sync_folder(root.parent)
        disk.remove(temporary)  # left by a failed write
        disk.make_folder(temporary)
        for file, data in files.items():
            disk.write(temporary / file, data)
        disk.write(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
        disk.sync_folder(temporary)
        if replaces := folder.is_dir():  # a folder cannot be renamed onto one that is not empty
            disk.rename(folder, replaced)
        disk.rename(temporary, folder)
        disk.sync_folder(root)
        if replaces:
            disk.remove(replaced)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        with contextlib.suppress(OSError):
            if replaced.is_dir():
                disk.rename(replaced, folder)
        raise
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        Exception: it is missing, invalid, or does not match its checksum.
    """
    manifest: dict[str, Any] = read_json(folder / MANIFEST, MAX_JSON)
    if manifest.pop("checksum") != checksum(manifest):
        raise ValueError(f"{MANIFEST} does not match its checksum")
    if type(manifest["step"]) is not int or manifest["step"] != step_of(folder):
        raise ValueError(f"its manifest says step {manifest['step']}")
    if "shards" in manifest:  # the manifest of a best policy names none
        best, versions = manifest["best"], manifest["versions"]
        if not (best is None or (type(best) is int and 0 <= best <= manifest["step"])):
            raise ValueError(f"its manifest says that the best was step {best}")
        if not all(isinstance(text, str) for text in versions.values()):
            raise ValueError("its manifest has versions that are not strings")
    return manifest


def read_file(folder: Path, name: str, manifest: Mapping[str, Any], most: int = sys.maxsize) -> bytes:
    """The content of a checkpoint's file, checked against the manifest.

    Raises:
        Exception: it is missing, does not match the manifest, or has more than `most` bytes.
    """
    expected = manifest["files"][name]
    if (folder / name).stat(follow_symlinks=False).st_size != expected["size"]:
        raise ValueError(f"{name} does not have the size that the manifest says")
    data = read(folder / name, MAX_JSON if name.endswith(".json") else most)
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise ValueError(f"{name} does not match its checksum")
    return data


def check_file(folder: Path, name: str, manifest: Mapping[str, Any]) -> None:
    """Check a checkpoint's file against the manifest, with no more than a few megabytes of it in memory.

    Raises:
        Exception: it is missing or does not match the manifest.
    """
    expected = manifest["files"][name]
    with opened(folder / name) as file:
        if os.fstat(file.fileno()).st_size != expected["size"]:
            raise ValueError(f"{name} does not have the size that the manifest says")
        if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
            raise ValueError(f"{name} does not match its checksum")


def checksum(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest without its own checksum."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def link(root: Path, name: str, target: str, disk: Disk) -> None:
    """Point `latest` or `best` at a folder beside it.

    Raises:
        OSError: a write fails.
    """
    temporary = root / f".{name}.{os.getpid()}"
    try:
        disk.remove(temporary)
        if (root / name).is_dir() and not (root / name).is_symlink():  # left by a copy that follows links
            disk.remove(root / name)
        disk.link(temporary, target)
        disk.rename(temporary, root / name)
        disk.sync_folder(root)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise


def find(run: Path, which: str) -> Path:
    """The folder of `best`, `latest` or a step.

    The links are not read: copies may have followed them, dropped them or made them text files. The newest folder of
    either kind is the one that its link should name.

    Raises:
        UserError: there is no such checkpoint; the message names the existing ones.
    """
    there = named(run / "checkpoints")
    name = (which.lstrip("0") or "0") if which.isdecimal() else which
    if name not in there:
        raise UserError(f"checkpoint={which}: no such checkpoint; there are {', '.join(there) or 'none'}")
    return there[name]


def named(root: Path) -> dict[str, Path]:
    """The folders of checkpoints by the names that users give them: `latest`, `best`, and steps in order."""
    saved = {
        kind: [path for path in saved_folders(root, kind) if (path / MANIFEST).is_file()]
        for kind in ([] if root.is_symlink() else ["best", "step"])
    }
    links = {name: saved[kind][-1] for name, kind in LINKED.items() if saved.get(kind)}
    steps = {step_of(path): path for path in itertools.chain.from_iterable(saved.values())}
    return links | {str(step): steps[step] for step in sorted(steps)}


def damaged(folder: Path, error: Exception) -> UserError:
    """The error of a checkpoint that cannot be read."""
    return UserError(f"{folder}{DAMAGED}{_reason(error)}")


def damaged_policy(folder: Path, error: Exception) -> UserError:
    """The same for a policy, with another checkpoint of the run to use instead."""
    others = [name for name, path in named(folder.parent).items() if path != folder]
    return UserError(f"{damaged(folder, error)}" + (f"; try checkpoint={others[0]}" if others else ""))


def _reason(error: Exception) -> str:
    """Why a checkpoint cannot be read, for a user: without the names of Python's classes."""
    if isinstance(error, OSError):
        return f"{Path(error.filename).name}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, KeyError):
        return f"{error} is missing"
    own = isinstance(error, UserError | ValueError | SafetensorError)
    if own and str(error) and not isinstance(error, json.JSONDecodeError | UnicodeError):
        return str(error)
    return "its content is not what dpg-cli writes"
