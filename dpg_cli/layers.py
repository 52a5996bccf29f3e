"""The layers of a stored policy: read from its description, applied with NumPy.

A network describes itself as a list of layers in order, each `{"type": …}` with the names of its tensors:

    {"type": "normalize", "mean": …, "var": …, "epsilon": …, "clip": …}    clip((x - mean) / √(var + epsilon), ±clip)
    {"type": "dense", "weight": …, "bias": …}                              x W + b
    {"type": "relu"}, {"type": "tanh"}

A network of a new kind uses these, or adds a class here and its counterparts in `export/`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TYPES = ("normalize", "dense", "relu", "tanh")
MAX_LAYERS = 1_000


class UnknownLayerError(ValueError):
    """A layer of a type that only a later version of dpg-cli knows."""


@dataclass(frozen=True)
class Dense:
    """x W + b."""

    weight: np.ndarray  # (in, out)
    bias: np.ndarray  # (out,)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`(..., in)` to `(..., out)`."""
        y: np.ndarray = x @ self.weight
        y += self.bias
        return y


@dataclass(frozen=True)
class Normalize:
    """(x - mean) / std, clipped to ±clip."""

    mean: np.ndarray  # (in,)
    std: np.ndarray  # (in,)
    clip: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`(..., in)` to `(..., in)`."""
        y: np.ndarray = np.clip((x - self.mean) / self.std, -self.clip, self.clip)
        return y


@dataclass(frozen=True)
class Relu:
    """max(x, 0)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Any shape."""
        y: np.ndarray = np.maximum(x, 0)
        return y


@dataclass(frozen=True)
class Tanh:
    """tanh(x)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Any shape."""
        y: np.ndarray = np.tanh(x)
        return y


Layer = Dense | Normalize | Relu | Tanh


def read_layers(description: Any, tensors: Mapping[str, np.ndarray], obs_dim: int, action_dim: int) -> list[Layer]:
    """The layers of a policy, which may come from a stranger. They compute in the type of its weights.

    Args:
        description: of the network.
        tensors: by name, each with a leading member axis of 1, as networks store them.
        obs_dim: size of an observation.
        action_dim: size of an action.

    Raises:
        UnknownLayerError: a layer has an unknown type.
        ValueError: the layers do not fit each other or these sizes, or a number is not finite.
        LookupError, TypeError: it is not such a description.
    """

    def tensor(name: str, *shape: int) -> np.ndarray:
        found = tensors[name]
        if found.shape != (1, *shape):
            raise ValueError(f"{name} has shape {found.shape}, not {(1, *shape)}")
        if found.dtype not in (np.float32, np.float64) or not np.isfinite(found).all():
            raise ValueError(f"{name} holds a number that is not finite")
        own: np.ndarray = found[0]
        return own

    if not isinstance(description, list) or len(description) > MAX_LAYERS:
        raise ValueError("the network is not a short list of layers")
    for about in description:
        if not isinstance(kind := about["type"], str):
            raise ValueError("the type of a layer is not a string")
        if kind not in TYPES:
            raise UnknownLayerError(f"a layer of the type {kind!r}")
    dtypes = {tensors[about["weight"]].dtype for about in description if about["type"] == "dense"}
    if len(dtypes) != 1:
        raise ValueError(f"the weights have {len(dtypes)} types")
    (dtype,) = dtypes
    layers: list[Layer] = []
    size = obs_dim
    for about in description:
        kind = about["type"]
        if kind == "dense":
            outputs = tensors[about["weight"]].shape[-1]
            bias = tensor(about["bias"], 1, outputs)[0]
            layers.append(Dense(tensor(about["weight"], size, outputs), bias.astype(dtype)))
            size = outputs
        elif kind == "normalize":
            mean, var = (tensor(about[name], 1, size)[0] for name in ("mean", "var"))
            epsilon, clip = _positive(about["epsilon"]), _positive(about["clip"])
            if var.min() < 0:
                raise ValueError("a variance is negative")
            mean, std = mean.astype(dtype), np.sqrt(var + epsilon).astype(dtype)
            if not (np.isfinite(mean).all() and np.isfinite(std).all() and std.min() > 0):
                raise ValueError("statistics beyond the range of the weights' type")
            layers.append(Normalize(mean, std, clip))
        elif kind == "relu":
            layers.append(Relu())
        else:
            layers.append(Tanh())
    if size != action_dim:
        raise ValueError(f"the network has {size} outputs for {action_dim} actions")
    return layers


def _positive(number: Any) -> float:
    if type(number) not in (int, float) or not 0 < number < math.inf:
        raise ValueError("a constant of a layer is not a positive number")
    return float(number)
