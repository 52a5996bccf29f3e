"""Checkpoints: whole folders, safetensors and JSON only, nothing that could run code.

In `checkpoints/`, `step_000050000/` and the like hold `manifest.json`, `policy.safetensors` (all that acting needs),
and `state.json` with `state.safetensors` (all else that going on exactly needs); `best_000045000/` holds the policy of
the best evaluation; `latest` and `best` are relative links. The transitions lie beside them in `replay/`, in shards
that are written once and never changed: `rows_000000010000_000000020000.npy` holds transitions 10,000 to 19,999 since
the start. The manifest names every file with its size and SHA-256, the shards too.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from dpg_cli.disk import Disk, write_whole
from dpg_cli.errors import DiskError, UserError
from dpg_cli.networks import Actor, Normalizer

POLICY = "policy.safetensors"
TREE, TENSORS = "state.json", "state.safetensors"
MANIFEST = "manifest.json"
SHARD = "rows_{:012d}_{:012d}.npy"


class Loaded(NamedTuple):
    """A member's state as it was saved."""

    step: int
    state: dict[str, Any]
    rows: np.ndarray  # every transition in the buffer, oldest first
    best: int | None
    versions: dict[str, str]
    shards: dict[str, Any]


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
        return max((_bounds(name)[1] for name in self._shards), default=0)

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
        with self._explaining(rows.nbytes):
            self._save(step, policy, state, rows, oldest)

    def _save(
        self, step: int, policy: Mapping[str, Tensor], state: Mapping[str, Any], rows: np.ndarray, oldest: int
    ) -> None:
        shards = {name: about for name, about in self._shards.items() if _bounds(name)[1] > oldest}
        if len(rows):
            first = max(self.stored, oldest)
            shards |= self._write_shard(SHARD.format(first, first + len(rows)), rows)
        tree, tensors = _pack(state)
        files = {POLICY: _to_bytes(policy), TREE: json.dumps(tree).encode(), TENSORS: save_tensors(tensors)}
        about = {"shards": shards, "best": self._best}
        folder = _write(self._root, f"step_{step:09d}", step, files, self._versions, about, self._disk)
        self._shards = shards
        _check(folder)  # read back before older ones go
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
        with self._explaining(0):
            self._save_best(step, policy)

    def _save_best(self, step: int, policy: Mapping[str, Tensor]) -> None:
        _write(self._root, f"best_{step:09d}", step, {POLICY: _to_bytes(policy)}, self._versions, {}, self._disk)
        _link(self._root, "best", f"best_{step:09d}", self._disk)
        self._best = step
        self._drop_unneeded()

    @contextlib.contextmanager
    def _explaining(self, size: int) -> Iterator[None]:
        """Say what the disk refuses, and what `size` bytes and the networks would need."""
        try:
            yield
        except OSError as error:
            free = shutil.disk_usage(self._run).free
            raise DiskError(
                f"{error.filename or self._root}: {error.strerror}; a checkpoint with {size:,} bytes of new "
                f"transitions was to be written, {free:,} bytes are free; the one before it is whole"
            ) from error

    def _write_shard(self, name: str, rows: np.ndarray) -> dict[str, Any]:
        if not self._replay.is_dir():
            self._disk.make_folder(self._replay)
            self._disk.sync_folder(self._run)
        buffer = io.BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        data = buffer.getbuffer()
        write_whole(self._disk, self._replay / name, data)
        return {name: _described(data)}

    def _drop_unneeded(self) -> None:
        """Shards and best policies that belong to no kept checkpoint."""
        manifests = [json.loads((path / MANIFEST).read_bytes()) for path in _saved(self._root, "step")]
        needed = {name for manifest in manifests for name in manifest["shards"]}
        for shard in self._replay.glob("rows_*.npy"):
            if shard.name not in needed:
                self._disk.remove(shard)
        best = {self._best, *(manifest["best"] for manifest in manifests)}
        for folder in _saved(self._root, "best"):
            if _step(folder) not in best:
                self._disk.remove(folder)


def saved_steps(run: Path) -> list[int]:
    """The steps of all checkpoints, in order, whatever their state."""
    return [_step(folder) for folder in _saved(run / "checkpoints", "step")]


def valid_steps(run: Path) -> tuple[list[int], dict[int, str]]:
    """The steps from which a run can go on, in order, and what is the matter with the others."""
    good, bad = [], {}
    for folder in _saved(run / "checkpoints", "step"):
        step = _step(folder)
        try:
            _check(folder, run / "replay")
            good.append(step)
        except Exception as error:
            bad[step] = f"{type(error).__name__}: {error}"
    return good, bad


def load(run: Path, step: int) -> Loaded:
    """A member's state.

    Raises:
        UserError: a file is missing, damaged or holds something else.
    """
    folder = run / "checkpoints" / f"step_{step:09d}"
    try:
        manifest = _check(folder, run / "replay")
        state = _unpack(json.loads((folder / TREE).read_bytes()), load_tensors((folder / TENSORS).read_bytes()))
        added, size = int(state["replay"]["added"]), int(state["replay"]["size"])
        shards = [np.load(run / "replay" / name, allow_pickle=False) for name in manifest["shards"]]
        rows = np.concatenate(shards)[-size:] if size else np.empty(0)
        if len(rows) != size or (shards and _bounds(max(manifest["shards"]))[1] != added):
            raise ValueError("the shards do not hold the buffer")
    except Exception as error:
        raise UserError(f"{folder}: damaged checkpoint: {type(error).__name__}: {error}") from error
    return Loaded(step, state, rows, manifest["best"], manifest["versions"], manifest["shards"])


def rewind(run: Path, start: Loaded, disk: Disk) -> None:
    """Remove what is later than a checkpoint, and what a crash has left: the run goes on from there."""
    root, replay = run / "checkpoints", run / "replay"
    for folder in (run, root, replay):
        for leftover in folder.glob(".*.*"):
            if re.fullmatch(r"\..+\.\d+", leftover.name):
                disk.remove(leftover)
    for folder in [*_saved(root, "step"), *_saved(root, "best")]:
        if _step(folder) > start.step:
            disk.remove(folder)
    for shard in replay.glob("rows_*.npy"):
        if shard.name not in start.shards and _bounds(shard.name)[1] > start.state["replay"]["added"]:
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
    folder = root / which
    if which.isdecimal():
        names = (f"step_{int(which):09d}", f"best_{int(which):09d}")
        folder = next((root / name for name in names if (root / name).is_dir()), folder)
    folder = folder.resolve()  # once: a run that goes on may move its links
    inside = folder.is_relative_to(root.resolve())
    if (which in ("best", "latest") or which.isdecimal()) and inside and (folder / MANIFEST).is_file():
        return folder
    saved = [*_saved(root, "step"), *_saved(root, "best")]
    steps = sorted({_step(path) for path in saved if (path / MANIFEST).is_file()})
    raise UserError(f"checkpoint={which}: no such checkpoint; there are best, latest and {steps}")


def load_policy(folder: Path) -> tuple[Actor, int]:
    """Rebuild one member's policy from a checkpoint, after checking its files against the manifest.

    Returns:
        The actor, with its normaliser, and the step it was saved at.

    Raises:
        UserError: a file is missing, damaged or not a policy.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        data = _read(folder / POLICY, manifest["files"][POLICY])
        return _actor(load_tensors(data)), int(manifest["step"])
    except Exception as error:
        raise UserError(f"{folder}: damaged checkpoint: {type(error).__name__}: {error}") from error


def _saved(root: Path, kind: str) -> list[Path]:
    """The folders of a kind, oldest first, and nothing else that lies beside them."""
    return sorted(path for path in root.glob(f"{kind}_*") if re.fullmatch(rf"{kind}_\d{{9}}", path.name))


def _bounds(shard: str) -> tuple[int, int]:
    """Number of the first transition in a shard, and of the first after it."""
    match = re.fullmatch(r"rows_(\d{12})_(\d{12})\.npy", shard)
    if match is None:
        raise ValueError(f"{shard} is no shard")
    return int(match[1]), int(match[2])


def _step(folder: Path) -> int:
    return int(folder.name.partition("_")[2])


def _check(folder: Path, replay: Path | None = None) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are as it says, its transitions in `replay` too if that is given.

    Raises:
        Exception: they are not.
    """
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    if manifest.pop("checksum") != _checksum(manifest):
        raise ValueError(f"{MANIFEST} does not match its checksum")
    if manifest["step"] != _step(folder):
        raise ValueError(f"its manifest says step {manifest['step']}")
    for name in (POLICY, TREE, TENSORS):
        _read(folder / name, manifest["files"][name])
    if replay is not None:
        bounds = [_bounds(name) for name in manifest["shards"]]
        if any(before[1] != after[0] for before, after in pairwise(bounds)):
            raise ValueError("transitions are missing between two shards")
        for name, about in manifest["shards"].items():
            _read(replay / name, about)
    return manifest


def _read(path: Path, expected: Mapping[str, Any]) -> bytes:
    if path.is_symlink() or path.stat().st_size != expected["size"]:
        raise ValueError(f"{path.name} does not have its size")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise ValueError(f"{path.name} does not match its checksum")
    return data


def _actor(state: dict[str, Tensor]) -> Actor:
    weights = [state[f"layers.{i}.weight"] for i in range(sum(name.endswith(".weight") for name in state))]
    obs_dim = weights[0].shape[-2]
    normalizer = Normalizer(1, obs_dim) if "normalizer.mean" in state else nn.Identity()
    hidden_sizes = [weight.shape[-1] for weight in weights[:-1]]
    generators = [torch.Generator()]  # what it draws is overwritten
    actor = Actor(obs_dim, weights[-1].shape[-1], hidden_sizes, generators, weights[0].dtype, normalizer)
    actor.load(state)
    return actor


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _described(data: bytes | memoryview) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


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
    described = {file: _described(data) for file, data in files.items()}
    manifest: dict[str, Any] = {"step": step, "files": described, "versions": dict(versions), **about}
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
    disk.remove(temporary)
    disk.link(temporary, target)
    disk.rename(temporary, root / name)
    disk.sync_folder(root)


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
