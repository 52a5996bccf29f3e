"""The layers of a stored policy: read from its description, applied with NumPy.

A network describes itself as a list of layers in order, each `{"type": …}` with the names of its tensors:

    {"type": "normalize", "mean": …, "var": …, "epsilon": …, "clip": …}    clip((x - mean) / √(var + epsilon), ±clip)
    {"type": "dense", "weight": …, "bias": …}                              x W + b
    {"type": "layer_norm", "weight": …, "bias": …, "epsilon": …}           (x - mean(x)) / √(var(x) + epsilon) w + b
    {"type": "avg_l1_norm", "epsilon": …}                                  x / max(mean(|x|), epsilon)
    {"type": "residual", "layers": […]}                                    x + f(x), with the layers of f
    {"type": "concatenate", "branches": [[…], …]}                          f(x), g(x), … side by side
    {"type": "relu"}, {"type": "elu"}, {"type": "tanh"}

A clip of null does not clip. Means and variances are over the features; the variance of a layer_norm is divided by
their number (biased). The layers of a residual keep the size. Residuals and branches hold neither of the two.

A network of a new kind uses these, or adds a class here and its counterparts in `export/`.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_LAYERS = 1_000  # with those inside residuals


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
    """(x - mean) / std, clipped to ±clip unless that is None."""

    mean: np.ndarray  # (in,)
    std: np.ndarray  # (in,)
    clip: float | None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`(..., in)` to `(..., in)`."""
        y: np.ndarray = (x - self.mean) / self.std
        return y if self.clip is None else np.clip(y, -self.clip, self.clip)


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / √(variance + epsilon) · weight + bias, with the mean and the biased variance over the features."""

    weight: np.ndarray  # (in,)
    bias: np.ndarray  # (in,)
    epsilon: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`(..., in)` to `(..., in)`."""
        size = len(self.weight)
        y: np.ndarray = x - x.sum(axis=-1, keepdims=True) / size  # several times as fast as np.mean for one observation
        y /= np.sqrt((y * y).sum(axis=-1, keepdims=True) / size + self.epsilon)
        y *= self.weight
        y += self.bias
        return y


@dataclass(frozen=True)
class AvgL1Norm:
    """x / max(mean(|x|), epsilon), with the mean over the features."""

    epsilon: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`(..., in)` to `(..., in)`."""
        size = np.maximum(np.abs(x).sum(axis=-1, keepdims=True) / x.shape[-1], x.dtype.type(self.epsilon))
        y: np.ndarray = x / size
        return y


@dataclass(frozen=True)
class Relu:
    """max(x, 0)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Any shape."""
        y: np.ndarray = np.maximum(x, 0)
        return y


@dataclass(frozen=True)
class Elu:
    """x if x > 0, otherwise exp(x) - 1."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Any shape."""
        y: np.ndarray = np.maximum(x, 0) + np.expm1(np.minimum(x, 0))  # one of the two is 0
        return y


@dataclass(frozen=True)
class Tanh:
    """tanh(x)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Any shape."""
        y: np.ndarray = np.tanh(x)
        return y


Plain = Dense | Normalize | LayerNorm | AvgL1Norm | Relu | Elu | Tanh
ACTIVATIONS: dict[str, Plain] = {"relu": Relu(), "elu": Elu(), "tanh": Tanh()}
HOLDERS = ("residual", "concatenate")  # of other layers
TYPES = ("normalize", "dense", "layer_norm", "avg_l1_norm", *HOLDERS, *ACTIVATIONS)


@dataclass(frozen=True)
class Residual:
    """x + f(x)."""

    layers: tuple[Plain, ...]  # of f, at least one

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`(..., in)` to `(..., in)`."""
        y = x
        for layer in self.layers:
            y = layer(y)
        y += x  # every layer returns a new array
        return y


@dataclass(frozen=True)
class Concatenate:
    """f(x), g(x), … side by side."""

    branches: tuple[tuple[Plain, ...], ...]  # at least one, each of at least one layer

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`(..., in)` to `(..., out)`."""
        outputs = []
        for branch in self.branches:
            y = x
            for layer in branch:
                y = layer(y)
            outputs.append(y)
        return np.concatenate(outputs, axis=-1)


Layer = Plain | Residual | Concatenate


def plain_layers(layers: Iterable[Layer]) -> Iterator[Plain]:
    """The layers in order, with those inside others in their place."""
    for layer in layers:
        if isinstance(layer, Residual):
            yield from layer.layers
        elif isinstance(layer, Concatenate):
            yield from itertools.chain.from_iterable(layer.branches)
        else:
            yield layer


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
    described = list(_described(description))
    if len(described) > MAX_LAYERS:
        raise ValueError(f"a network of {len(described):,} layers")
    for about in described:
        if not isinstance(kind := about["type"], str):
            raise ValueError("the type of a layer is not a string")
        if kind not in TYPES:
            raise UnknownLayerError(f"a layer of the type {kind!r}")
    dtypes = {tensors[about["weight"]].dtype for about in described if about["type"] == "dense"}
    if len(dtypes) != 1:
        raise ValueError(f"the weights have {len(dtypes)} types")
    reader = _Reader(tensors, dtypes.pop())
    layers: list[Layer] = []
    size = obs_dim
    for about in description:
        layer, size = reader.layer(about, size)
        layers.append(layer)
    if size != action_dim:
        raise ValueError(f"the network has {size} outputs for {action_dim} actions")
    return layers


def _described(description: Any) -> Iterator[Any]:
    """The descriptions of all layers, with those inside others after these."""
    if not isinstance(description, list):
        raise ValueError("the layers are not a list")
    for about in description:
        yield about
        if about["type"] == "residual":
            yield from _list(about["layers"])
        elif about["type"] == "concatenate":
            for branch in _list(about["branches"]):
                yield from _list(branch)


def _list(layers: Any) -> list[Any]:
    if not isinstance(layers, list):
        raise ValueError("the layers inside a layer are not a list")
    return layers


@dataclass(frozen=True)
class _Reader:
    """Makes layers from their descriptions.

    Attributes:
        tensors: by name.
        dtype: of the arithmetic.
    """

    tensors: Mapping[str, np.ndarray]
    dtype: np.dtype[Any]

    def layer(self, about: Any, size: int) -> tuple[Layer, int]:
        """A layer that takes `size` numbers, and how many it returns."""
        if about["type"] == "residual":
            layers, outputs = self._several(about["layers"], size)
            if outputs != size:
                raise ValueError(f"a residual from {size} numbers to {outputs}")
            return Residual(layers), size
        if about["type"] == "concatenate":
            branches = [self._several(branch, size) for branch in about["branches"]]
            return Concatenate(tuple(branch for branch, _ in branches)), sum(outputs for _, outputs in branches)
        return self._plain(about, size)

    def _several(self, described: Any, size: int) -> tuple[tuple[Plain, ...], int]:
        """Layers inside another, and how many numbers the last returns."""
        layers = []
        for about in described:
            layer, size = self._plain(about, size)
            layers.append(layer)
        if not layers:
            raise ValueError("a layer without the layers that it should hold")
        return tuple(layers), size

    def _plain(self, about: Any, size: int) -> tuple[Plain, int]:
        kind = about["type"]
        if kind == "dense":
            outputs = self.tensors[about["weight"]].shape[-1]
            weight, bias = self._tensor(about["weight"], size, outputs), self._tensor(about["bias"], 1, outputs)
            return Dense(weight, self._converted(bias[0])), outputs
        if kind == "normalize":
            mean, var = (self._tensor(about[name], 1, size)[0] for name in ("mean", "var"))
            epsilon, clip = _positive(about["epsilon"]), about["clip"]
            if var.min() < 0:
                raise ValueError("a variance is negative")
            std = self._converted(np.sqrt(var + epsilon))
            if std.min() <= 0:
                raise ValueError("a standard deviation is 0 in the weights' type")
            return Normalize(self._converted(mean), std, None if clip is None else _positive(clip)), size
        if kind == "layer_norm":
            if size == 0:
                raise ValueError("a mean of no features")
            weight, bias = (self._converted(self._tensor(about[name], 1, size)[0]) for name in ("weight", "bias"))
            return LayerNorm(weight, bias, _positive(about["epsilon"])), size
        if kind == "avg_l1_norm":
            if size == 0:
                raise ValueError("a mean of no features")
            return AvgL1Norm(_positive(about["epsilon"])), size
        if kind in HOLDERS:
            raise ValueError(f"a {kind} inside another layer")
        return ACTIVATIONS[kind], size

    def _tensor(self, name: str, *shape: int) -> np.ndarray:
        found = self.tensors[name]
        if found.shape != (1, *shape):
            raise ValueError(f"{name} has shape {found.shape}, not {(1, *shape)}")
        if found.dtype not in (np.float32, np.float64) or not np.isfinite(found).all():
            raise ValueError(f"{name} holds a number that is not finite")
        own: np.ndarray = found[0]
        return own

    def _converted(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            converted = values.astype(self.dtype)
        if not np.isfinite(converted).all():
            raise ValueError("a number beyond the range of the weights' type")
        return converted


def _positive(number: Any) -> float:
    """A constant. It must be positive and finite in float32, the type of exported files."""
    limits = np.finfo(np.float32)
    if type(number) not in (int, float) or not float(limits.tiny) <= number <= float(limits.max):
        raise ValueError("a constant of a layer is not a positive number in the range of float32")
    return float(number)
