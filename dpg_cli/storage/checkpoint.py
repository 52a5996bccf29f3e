"""Checkpoints: whole folders, safetensors and JSON only, nothing that could run code.

In `checkpoints/`, `step_000050000/` and the like hold `manifest.json`, `policy.safetensors` (all that acting needs),
and `state.json` with `state.safetensors` (all else that going on exactly needs); `best_000045000/` holds the policy of
the best evaluation; `latest` and `best` are relative links. The transitions lie beside them in `replay/`, in shards
that are written once and never changed: `rows_000000010000_000000020000.npy` holds transitions 10,000 to 19,999 since
the start. The manifest names every file with its size and SHA-256, the shards too.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from dpg_cli.errors import UserError
from dpg_cli.networks import Actor, Normalizer
from dpg_cli.storage import shards as transitions_on_disk
from dpg_cli.storage.atomic import Disk, explaining, remove_leftovers
from dpg_cli.storage.shards import Transitions, bounds, described, shards_in
from dpg_cli.storage.untrusted import read, read_json

POLICY = "policy.safetensors"
TREE, TENSORS = "state.json", "state.safetensors"
MANIFEST = "manifest.json"
DAMAGED = ": damaged checkpoint: "
MAX_JSON = 2**28  # bytes of a manifest, which names every shard, or of a tree, which holds a stride's averages


class Loaded(NamedTuple):
    """A member's state as it was saved."""

    step: int
    state: dict[str, Any]
    transitions: Transitions  # every one in the buffer
    best: int | None
    versions: dict[str, str]
    shards: dict[str, Any]

    @property
    def rows(self) -> np.ndarray:
        """Every transition in the buffer, oldest first."""
        return self.transitions.all()


class Checkpoints:
    """Writes the checkpoints of one member.

    Args:
        run: the run folder.
        versions: of the software.
        keep: so many of the newest are kept.
        disk: to write to.
        start: what the run goes on from.
    """

    def __init__(
        self, run: Path, versions: Mapping[str, str], keep: int, disk: Disk | None = None, start: Loaded | None = None
    ):
        self._run, self._root, self._replay = run, run / "checkpoints", run / "replay"
        self._versions, self._keep = versions, keep
        self._disk = disk or Disk()
        self._shards: dict[str, Any] = {} if start is None else dict(start.shards)
        self._best = None if start is None else start.best

    @property
    def stored(self) -> int:
        """So many transitions since the start are in shards, or were."""
        return max((bounds(name)[1] for name in self._shards), default=0)

    def save(
        self, step: int, policy: Mapping[str, Tensor], state: Mapping[str, Any], rows: np.ndarray, oldest: int
    ) -> None:
        """Write the checkpoint of a step, point `latest` at it and drop what no kept one needs.

        Args:
            step: of the checkpoint.
            policy: all that acting needs.
            state: all else but the transitions: nested dictionaries and lists of numbers, texts and tensors.
            rows: the transitions since `stored`, as many as the buffer still holds.
            oldest: number since the start of the oldest transition in the buffer.

        Raises:
            DiskError: the disk refuses; the checkpoint before is untouched, and nothing of this one stays.
        """
        what = f"a checkpoint with {rows.nbytes:,} bytes of new transitions was to be written, "
        if saved_steps(self._run):
            what += "the one before is whole, "
        with explaining(self._run, what):
            self._save(step, policy, state, rows, oldest)

    def _save(
        self, step: int, policy: Mapping[str, Tensor], state: Mapping[str, Any], rows: np.ndarray, oldest: int
    ) -> None:
        shards = {name: about for name, about in self._shards.items() if bounds(name)[1] > oldest}
        if len(rows):
            first = max(self.stored, oldest)
            shards |= transitions_on_disk.write(self._replay, first, rows, self._disk)
        tree, tensors = _pack(state)
        files = {POLICY: _to_bytes(policy), TREE: json.dumps(tree).encode(), TENSORS: save_tensors(tensors)}
        about = {"shards": shards, "best": self._best}
        folder = _write(self._root, f"step_{step:09d}", step, files, self._versions, about, self._disk)
        try:
            for name in files:  # read back before older ones go
                _read(folder, name, _manifest(folder))
        except Exception as error:
            self._disk.remove(folder)
            raise OSError(errno.EIO, f"reads back otherwise than it was written ({error})", str(folder)) from error
        self._shards = shards
        _link(self._root, "latest", folder.name, self._disk)
        for old in _saved(self._root, "step")[: -self._keep]:
            self._disk.remove(old)
        self._drop_unneeded()

    def save_best(self, step: int, policy: Mapping[str, Tensor]) -> None:
        """Write the policy of the best evaluation so far and point `best` at it.

        The one before stays as long as a checkpoint from its time does, since a run may go on from there.

        Raises:
            DiskError: the disk refuses.
        """
        with explaining(self._run):
            self._save_best(step, policy)

    def _save_best(self, step: int, policy: Mapping[str, Tensor]) -> None:
        _write(self._root, f"best_{step:09d}", step, {POLICY: _to_bytes(policy)}, self._versions, {}, self._disk)
        _link(self._root, "best", f"best_{step:09d}", self._disk)
        self._best = step
        self._drop_unneeded()

    def _drop_unneeded(self) -> None:
        """Shards and best policies that belong to no kept checkpoint."""
        needed, best = set(self._shards), {self._best}
        for path in _saved(self._root, "step"):
            with contextlib.suppress(Exception):  # a damaged one needs nothing
                manifest = _manifest(path)
                needed |= set(manifest["shards"])
                best.add(manifest["best"])
        for shard in shards_in(self._replay):
            if shard.name not in needed:
                self._disk.remove(shard)
        for folder in _saved(self._root, "best"):
            if _step(folder) not in best:
                self._disk.remove(folder)


def saved_steps(run: Path) -> list[int]:
    """The steps of all checkpoints, in order, whatever their state."""
    return [_step(folder) for folder in _saved(run / "checkpoints", "step")]


def valid_steps(run: Path) -> tuple[list[int], dict[int, str]]:
    """The steps from which a run can go on, in order, and what is the matter with the others."""
    good, bad = [], {}
    for step in saved_steps(run):
        try:
            load(run, step)
            good.append(step)
        except UserError as error:
            bad[step] = str(error)
    return good, bad


def newest(runs: Sequence[Path], most: int = sys.maxsize) -> tuple[list[Loaded], list[str]]:
    """The highest step at which every member has a whole checkpoint.

    Args:
        runs: the members' run folders.
        most: bytes that a member's state could have.

    Returns:
        The state of each member, none if there is no such step; and what is the matter with later checkpoints.
    """
    problems: list[str] = []
    for step in sorted(set.intersection(*(set(saved_steps(run)) for run in runs)), reverse=True):
        found = []
        for run in runs:
            try:
                found.append(load(run, step, most))
            except UserError as error:
                reason = str(error).rpartition(DAMAGED)[2]
                problems.append(f"{run}: the checkpoint of step {step:,} is damaged ({reason})")
        if len(found) == len(runs):
            return found, problems
    return [], problems


def load(run: Path, step: int, most: int = sys.maxsize) -> Loaded:
    """A member's state.

    Args:
        run: the member's run folder.
        step: of the checkpoint.
        most: bytes that the state, or the policy, could have.

    Raises:
        UserError: a file is missing, damaged or holds something else.
    """
    folder = run / "checkpoints" / f"step_{step:09d}"
    try:
        manifest = _manifest(folder)
        _, tree, tensors = (_read(folder, name, manifest, most) for name in (POLICY, TREE, TENSORS))
        state = _unpack(json.loads(tree), load_tensors(tensors))
        added, size = state["replay"]["added"], state["replay"]["size"]
        if not (type(added) is type(size) is int and 0 <= size <= added):
            raise ValueError(f"{size} of {added} transitions")
        transitions = transitions_on_disk.check(run / "replay", manifest["shards"], added, size)
    except Exception as error:
        raise _damaged(folder, error) from error
    return Loaded(step, state, transitions, manifest["best"], manifest["versions"], manifest["shards"])


def rewind(run: Path, start: Loaded, disk: Disk) -> None:
    """Remove what is later than a checkpoint, and what a crash has left: the run goes on from there."""
    root, replay = run / "checkpoints", run / "replay"
    for folder in (run, root, replay):
        remove_leftovers(disk, folder)
    for folder in [*_saved(root, "step"), *_saved(root, "best")]:
        if _step(folder) > start.step:
            disk.remove(folder)
    for shard in shards_in(replay):
        if shard.name not in start.shards and bounds(shard.name)[1] > start.state["replay"]["added"]:
            disk.remove(shard)
    _link(root, "latest", f"step_{start.step:09d}", disk)
    if start.best is not None:
        _link(root, "best", f"best_{start.best:09d}", disk)


def find(run: Path, which: str) -> Path:
    """The folder of `best`, `latest` or a step.

    Raises:
        UserError: there is none; the message names those that there are.
    """
    root = run / "checkpoints"
    if which in ("best", "latest") and (root / which).is_symlink():
        names = [os.readlink(root / which)]  # once: a run that goes on may move its links
    else:
        names = [f"{kind}_{int(which):09d}" for kind in ("step", "best")] if which.isdecimal() else []
    if not root.is_symlink():
        for folder in [*_saved(root, "step"), *_saved(root, "best")]:
            if folder.name in names and (folder / MANIFEST).is_file():
                return folder
    saved = [*_saved(root, "step"), *_saved(root, "best")]
    steps = sorted({_step(path) for path in saved if (path / MANIFEST).is_file()})
    raise UserError(f"checkpoint={which}: no such checkpoint; there are best, latest and {steps}")


def load_policy(folder: Path, most: int = sys.maxsize) -> tuple[Actor, int]:
    """Rebuild one member's policy from a checkpoint, after checking its files against the manifest.

    Args:
        folder: of the checkpoint.
        most: bytes that the policy could have.

    Returns:
        The actor, with its normaliser, and the step it was saved at.

    Raises:
        UserError: a file is missing, damaged or not a policy.
    """
    try:
        manifest = _manifest(folder)
        return _actor(load_tensors(_read(folder, POLICY, manifest, most))), _step(folder)
    except Exception as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> UserError:
    what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return UserError(f"{folder}{DAMAGED}{what}")


def _saved(root: Path, kind: str) -> list[Path]:
    """The folders of a kind, oldest first, and nothing else that lies beside them."""
    found = (path for path in root.glob(f"{kind}_*") if re.fullmatch(rf"{kind}_\d{{9}}", path.name))
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def _step(folder: Path) -> int:
    return int(folder.name.partition("_")[2])


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        Exception: it is none, or does not match its checksum.
    """
    manifest: dict[str, Any] = read_json(folder / MANIFEST, MAX_JSON)
    if manifest.pop("checksum") != _checksum(manifest):
        raise ValueError(f"{MANIFEST} does not match its checksum")
    if type(manifest["step"]) is not int or manifest["step"] != _step(folder):
        raise ValueError(f"its manifest says step {manifest['step']}")
    if "shards" in manifest:  # that of a best policy names none
        best, versions = manifest["best"], manifest["versions"]
        if not (best is None or (type(best) is int and 0 <= best <= manifest["step"])):
            raise ValueError(f"its manifest says that the best was step {best}")
        if not all(isinstance(text, str) for text in versions.values()):
            raise ValueError("its manifest has versions that are no texts")
    return manifest


def _read(folder: Path, name: str, manifest: Mapping[str, Any], most: int = sys.maxsize) -> bytes:
    """A file of a checkpoint, which is as its manifest says.

    Raises:
        Exception: it is not.
    """
    expected = manifest["files"][name]
    if (folder / name).stat(follow_symlinks=False).st_size != expected["size"]:
        raise ValueError(f"{name} does not have its size")
    data = read(folder / name, MAX_JSON if name == TREE else most)
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise ValueError(f"{name} does not match its checksum")
    return data


def _actor(state: dict[str, Tensor]) -> Actor:
    weights = [state[f"layers.{i}.weight"] for i in range(sum(name.endswith(".weight") for name in state))]
    obs_dim, *_, action_dim = sizes = [weights[0].shape[-2], *(weight.shape[-1] for weight in weights)]
    # An actor of those sizes is made, which must be no larger than the file: the layers must follow on one another.
    for i, (rows, columns) in enumerate(pairwise(sizes)):
        if weights[i].shape != (1, rows, columns) or state[f"layers.{i}.bias"].shape != (1, 1, columns):
            raise ValueError(f"layer {i} does not fit the one before it")
    if not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in state.values()):
        raise ValueError("the policy holds what is no finite number")
    normalizer = Normalizer(1, obs_dim) if "normalizer.mean" in state else None
    generators = [torch.Generator()]  # what it draws is overwritten
    actor = Actor(obs_dim, action_dim, sizes[1:-1], generators, weights[0].dtype, normalizer)
    actor.load(state)
    return actor


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _to_bytes(policy: Mapping[str, Tensor]) -> bytes:
    return save_tensors({key: tensor.contiguous() for key, tensor in policy.items()})


def _write(
    root: Path,
    name: str,
    step: int,
    files: Mapping[str, bytes],
    versions: Mapping[str, str],
    about: Mapping[str, Any],
    disk: Disk,
) -> Path:
    """A folder that appears whole or not at all: filled under another name, synced, renamed."""
    temporary, folder = root / f".{name}.{os.getpid()}", root / name
    described_files = {file: described(data) for file, data in files.items()}
    manifest: dict[str, Any] = {"step": step, "files": described_files, "versions": dict(versions), **about}
    manifest["checksum"] = _checksum(manifest)
    try:
        if not root.is_dir():
            disk.make_folder(root)
            disk.sync_folder(root.parent)
        disk.remove(temporary)  # of a write that failed
        disk.make_folder(temporary)
        for file, data in files.items():
            disk.write(temporary / file, data)
        disk.write(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
        disk.sync_folder(temporary)
        if folder.is_dir():  # of a try before; a folder cannot be renamed onto one that holds something
            disk.remove(folder)
        disk.rename(temporary, folder)
        disk.sync_folder(root)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise
    return folder


def _link(root: Path, name: str, target: str, disk: Disk) -> None:
    temporary = root / f".{name}.{os.getpid()}"
    try:
        disk.remove(temporary)
        if (root / name).is_dir() and not (root / name).is_symlink():  # as a copy that follows links leaves it
            disk.remove(root / name)
        disk.link(temporary, target)
        disk.rename(temporary, root / name)
        disk.sync_folder(root)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise


def _pack(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A tree for JSON, and the tensors and arrays that it refers to by number."""
    tensors: dict[str, Tensor] = {}

    def pack(node: Any) -> Any:
        if isinstance(node, np.ndarray | Tensor):
            name = str(len(tensors))
            tensor = node if isinstance(node, Tensor) else torch.from_numpy(node.copy())
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"array" if isinstance(node, np.ndarray) else "tensor": name}
        if isinstance(node, Mapping):
            return {key: pack(value) for key, value in node.items()}
        if isinstance(node, Sequence) and not isinstance(node, str):
            return [pack(value) for value in node]
        return node

    return pack(state), tensors


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {"tensor"}:
            return tensors[tree["tensor"]]
        if set(tree) == {"array"}:
            return tensors[tree["array"]].numpy()
        return {key: _unpack(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_unpack(value, tensors) for value in tree]
    return tree
