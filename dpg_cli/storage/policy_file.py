"""`policy.safetensors`: the tensors of a policy, and metadata with everything else that is needed to use it.

The metadata are strings of JSON: `env_id`, `observation_space`, `action_space`, `network`, `algorithm`, `step` and
`dpg_cli` (the version). See `spaces.describe` and `layers` for the spaces and the network.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from safetensors.numpy import load as load_arrays

from dpg_cli.errors import UserError
from dpg_cli.layers import Dense, Layer, UnknownLayerError, plain_layers, read_layers
from dpg_cli.spaces import Space, describe, flat_size, from_description
from dpg_cli.storage.checkpoint_folder import damaged_policy, read_file, read_manifest, saved_folders, step_of

POLICY = "policy.safetensors"
METADATA = "__metadata__"
MAX_POLICY = 2**30  # bytes; a stranger's file could take all memory
MAX_HEADER = 2**24  # bytes of names, shapes and metadata


class StoredPolicy(NamedTuple):
    """A policy that has been read and checked."""

    env_id: str
    observation_space: Space
    action_space: spaces.Box
    layers: list[Layer]
    step: int
    metadata: dict[str, Any]  # all of it, parsed

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the arithmetic: that of the weights."""
        return next(layer.weight.dtype for layer in plain_layers(self.layers) if isinstance(layer, Dense))


def metadata(
    env_id: str, observation_space: Space, action_space: Space, network: Sequence[Mapping[str, Any]], algorithm: str
) -> dict[str, Any]:
    """What a policy file says about itself, without the step and the version.

    Args:
        env_id: of the environment.
        observation_space: its own, not flattened.
        action_space: its own, not scaled.
        network: the description of the layers.
        algorithm: its name.
    """
    return {
        "env_id": env_id,
        "observation_space": describe(observation_space),
        "action_space": describe(action_space),
        "network": list(network),
        "algorithm": algorithm,
    }


def with_metadata(data: bytes, metadata: Mapping[str, Any]) -> bytes:
    """A safetensors file with metadata as strings of JSON. Unlike with safetensors' own, equal input is equal output.

    Args:
        data: the file without metadata.
        metadata: plain data by name.
    """
    header, tensors = _split(data)
    entries = {METADATA: {name: json.dumps(value, allow_nan=False) for name, value in metadata.items()}, **header}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + tensors


def read_policy(folder: Path) -> StoredPolicy:
    """Read the policy of a checkpoint, which may come from a stranger.

    Args:
        folder: of the checkpoint.

    Raises:
        UserError: a file is missing, damaged or not a policy, or an earlier version wrote it without metadata.
    """
    try:
        manifest = read_manifest(folder)
        data = read_file(folder, POLICY, manifest, MAX_POLICY)
        header, _ = _split(data)
        found = header.get(METADATA, {})
        policy = _policy(found, load_arrays(data), step_of(folder)) if "network" in found else None
    except UnknownLayerError as error:
        raise UserError(
            f"{folder}: its network has {error}, which this version of dpg-cli does not know: a later version wrote "
            "it, so update dpg-cli"
        ) from error
    except Exception as error:
        raise damaged_policy(folder, error) from error
    if policy is None:
        raise UserError(_without_metadata(folder, manifest))
    return policy


def _without_metadata(folder: Path, manifest: Mapping[str, Any]) -> str:
    """What to do with a policy that an early version wrote."""
    versions, run = manifest.get("versions"), folder.parents[1]
    version = versions.get("dpg_cli") if isinstance(versions, dict) else None
    steps = [step_of(path) for path in saved_folders(folder.parent, "step")]
    resume = f"dpg-train resume={shlex.quote(str(run))}" + (f" total_steps={max(steps) + 1}" if steps else "")
    return (
        f"{folder}: an early dpg-cli{f' {version}' if version else ''} wrote this policy, without the metadata that "
        f"load_policy and dpg-export need; dpg-eval still runs it; to get a policy with metadata, train one more step "
        f"({resume}) and use checkpoint=latest"
    )


def _policy(strings: Mapping[str, str], tensors: Mapping[str, np.ndarray], step: int) -> StoredPolicy:
    """The policy of a file.

    Raises:
        Exception: its content is invalid.
    """
    about = {name: json.loads(text) for name, text in strings.items()}
    most = sum(tensor.size for tensor in tensors.values())
    observed, acting = (from_description(about[name], most) for name in ("observation_space", "action_space"))
    if not isinstance(acting, spaces.Box) or not acting.is_bounded() or acting.dtype.kind != "f":
        raise ValueError("the actions are not a bounded box")
    if not isinstance(about["env_id"], str) or not isinstance(about["algorithm"], str):
        raise ValueError("the names of environment and algorithm are not strings")
    if about["step"] != step:
        raise ValueError(f"the policy says step {about['step']}")
    layers = read_layers(about["network"], tensors, flat_size(observed), flat_size(acting))
    return StoredPolicy(about["env_id"], observed, acting, layers, step, about)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what follows it."""
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER:
        raise ValueError(f"a header of {size:,} bytes")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    return header, data[8 + size :]
