"""Checkpoints: whole folders, safetensors and JSON only, nothing that could run code.

In `checkpoints/`, `step_000050000/` and the like hold `manifest.json` and `policy.safetensors`; `best_000045000/`
holds the policy of the best evaluation; `latest` and `best` are relative links.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from dpg_cli.errors import UserError
from dpg_cli.networks import Actor, Normalizer

POLICY = "policy.safetensors"
MANIFEST = "manifest.json"


def save(run: Path, step: int, policy: Mapping[str, Tensor], versions: Mapping[str, str], keep: int) -> None:
    """Write the checkpoint of a step, point `latest` at it and drop all but the newest `keep`."""
    _write(run / "checkpoints", f"step_{step:09d}", step, policy, versions)
    _link(run / "checkpoints", "latest", f"step_{step:09d}")
    for old in _saved(run / "checkpoints", "step")[:-keep]:
        shutil.rmtree(old)


def save_best(run: Path, step: int, policy: Mapping[str, Tensor], versions: Mapping[str, str]) -> None:
    """Write the policy of the best evaluation so far, point `best` at it and drop the one before."""
    name = f"best_{step:09d}"
    _write(run / "checkpoints", name, step, policy, versions)
    _link(run / "checkpoints", "best", name)
    for old in _saved(run / "checkpoints", "best"):
        if old.name != name:
            shutil.rmtree(old)


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
    steps = sorted({int(path.name.partition("_")[2]) for path in saved if (path / MANIFEST).is_file()})
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
        data = (folder / POLICY).read_bytes()
        expected, step = manifest["files"][POLICY], int(manifest["step"])
        if len(data) != expected["size"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise ValueError(f"{POLICY} does not match its checksum")
        return _actor(load_tensors(data)), step
    except Exception as error:
        raise UserError(f"{folder}: damaged checkpoint: {type(error).__name__}: {error}") from error


def _saved(root: Path, kind: str) -> list[Path]:
    """The folders of a kind, oldest first, and nothing else that lies beside them."""
    return sorted(path for path in root.glob(f"{kind}_*") if re.fullmatch(rf"{kind}_\d{{9}}", path.name))


def _actor(state: dict[str, Tensor]) -> Actor:
    weights = [state[f"layers.{i}.weight"] for i in range(sum(name.endswith(".weight") for name in state))]
    obs_dim = weights[0].shape[-2]
    normalizer = Normalizer(1, obs_dim) if "normalizer.mean" in state else nn.Identity()
    hidden_sizes = [weight.shape[-1] for weight in weights[:-1]]
    generators = [torch.Generator()]  # what it draws is overwritten
    actor = Actor(obs_dim, weights[-1].shape[-1], hidden_sizes, generators, weights[0].dtype, normalizer)
    actor.load_state_dict(state)
    return actor


def _write(root: Path, name: str, step: int, policy: Mapping[str, Tensor], versions: Mapping[str, str]) -> None:
    """A folder that appears whole or not at all: filled under another name, then renamed."""
    temporary = root / f".{name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)  # of a write that failed
    temporary.mkdir(parents=True)
    data = save_tensors({key: tensor.contiguous() for key, tensor in policy.items()})
    files = {POLICY: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    manifest: dict[str, Any] = {"step": step, "files": files, "versions": dict(versions)}
    _write_durably(temporary / POLICY, data)
    _write_durably(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
    temporary.rename(root / name)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(root: Path, name: str, target: str) -> None:
    temporary = root / f".{name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target, target_is_directory=True)
    temporary.replace(root / name)
