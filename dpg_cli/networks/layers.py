"""Layers for many members at once, in plain operations for torch's automatic differentiation.

A layer is a description: it names its tensors, says how they start, and applies them. A tensor of a network carries
leading *member* axes: `(S, rows, columns)` for S seeds, `(K, S, rows, columns)` for K critics each.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dpg_cli.networks.dense import NARROW
from dpg_cli.precision import is_large


class Pass(NamedTuple):
    """What a layer uses besides its input."""

    tensors: Mapping[str, Tensor]  # of the network, by name, each (*members, rows, columns)
    extra: Tensor | None  # (S, B, ·), what `AppendExtra` appends
    products: torch.dtype  # of large matrix products


class Start(Protocol):
    """Draws the start of a weight."""

    def __call__(self, shape: Sequence[int], fan_in: int, generator: torch.Generator) -> Tensor:
        """A tensor of one seed, `(*critics, rows, columns)`, in float64."""


class Layer(Protocol):
    """A part of a network."""

    def starts(self) -> Mapping[str, tuple[tuple[int, int], Start, int]]:
        """For each of its tensors: rows and columns, how it starts, and the fan-in."""

    def apply(self, x: Tensor, used: Pass) -> Tensor:
        """`(*members, B, in)` or `(S, B, in)` to `(*members, B, out)`."""

    def describe(self) -> list[dict[str, Any]]:
        """The layer in a policy file; see `dpg_cli.layers`."""


def uniform(shape: Sequence[int], fan_in: int, generator: torch.Generator) -> Tensor:
    """Uniform in ±1/√fan_in, for weights and biases, as `nn.Linear` starts."""
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(*shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)


def he_normal(shape: Sequence[int], fan_in: int, generator: torch.Generator) -> Tensor:
    """Normal with variance 2/fan_in, truncated at two standard deviations (He et al. 2015, as JAX has it)."""
    cut = math.erf(2 / math.sqrt(2))  # the share within two standard deviations
    number = torch.empty(*shape, dtype=torch.float64).uniform_(-cut, cut, generator=generator)
    std_of_truncated = math.sqrt(1 - 4 / math.sqrt(2 * math.pi) * math.exp(-2) / cut)
    std = math.sqrt(2 / fan_in) / std_of_truncated
    return torch.erfinv(number) * (math.sqrt(2) * std)


def scaled_uniform(shape: Sequence[int], fan_in: int, generator: torch.Generator) -> Tensor:
    """Uniform in ±1/√(3 fan_in), as Acme starts its layers (`hk.initializers.UniformScaling(0.333)`)."""
    return uniform(shape, 3 * fan_in, generator)


def near_zero(shape: Sequence[int], fan_in: int, generator: torch.Generator) -> Tensor:
    """Normal with variance 1e-4/fan_in, truncated at two standard deviations, as Acme starts the last layer of actors.

    So actions start close to 0, far from where tanh saturates.
    """
    return he_normal(shape, 20_000 * fan_in, generator)


def orthogonal(shape: Sequence[int], fan_in: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows or columns, whichever are fewer (Saxe et al. 2014)."""
    *critics, rows, columns = shape
    normal = torch.randn(*critics, max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # without this, not uniform over orthogonal matrices
    found: Tensor = q if rows >= columns else q.mT
    return found


def zeros(shape: Sequence[int], fan_in: int, generator: torch.Generator) -> Tensor:
    """0."""
    return torch.zeros(*shape, dtype=torch.float64)


def ones(shape: Sequence[int], fan_in: int, generator: torch.Generator) -> Tensor:
    """1."""
    return torch.ones(*shape, dtype=torch.float64)


@dataclass(frozen=True)
class Dense:
    """x W + b."""

    name: str
    inputs: int
    outputs: int
    weight: Start = uniform
    bias: Start = uniform

    def starts(self) -> Mapping[str, tuple[tuple[int, int], Start, int]]:
        """`<name>.weight` and `<name>.bias`."""
        return {
            f"{self.name}.weight": ((self.inputs, self.outputs), self.weight, self.inputs),
            f"{self.name}.bias": ((1, self.outputs), self.bias, self.inputs),
        }

    def apply(self, x: Tensor, used: Pass) -> Tensor:
        """`(*members, B, outputs)`."""
        weight, bias = used.tensors[f"{self.name}.weight"], used.tensors[f"{self.name}.bias"]
        if used.products is not x.dtype and is_large(self.inputs, self.outputs):
            return torch.matmul(x.to(used.products), weight.to(used.products)).to(x.dtype) + bias
        if x.is_cpu and self.outputs < NARROW:
            return torch.matmul(weight.mT, x.mT).mT + bias
        return torch.matmul(x, weight) + bias

    def describe(self) -> list[dict[str, Any]]:
        """One layer."""
        return [{"type": "dense", "weight": f"{self.name}.weight", "bias": f"{self.name}.bias"}]


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / √(var + ε) · w + b over the features (Ba et al. 2016)."""

    name: str
    size: int
    epsilon: float = 1e-6  # flax's; torch's own is 1e-5

    def starts(self) -> Mapping[str, tuple[tuple[int, int], Start, int]]:
        """`<name>.weight` and `<name>.bias`."""
        return {
            f"{self.name}.weight": ((1, self.size), ones, self.size),
            f"{self.name}.bias": ((1, self.size), zeros, self.size),
        }

    def apply(self, x: Tensor, used: Pass) -> Tensor:
        """The shape of `x`."""
        normal = functional.layer_norm(x, (self.size,), eps=self.epsilon)
        return normal * used.tensors[f"{self.name}.weight"] + used.tensors[f"{self.name}.bias"]

    def describe(self) -> list[dict[str, Any]]:
        """One layer."""
        names = {"weight": f"{self.name}.weight", "bias": f"{self.name}.bias"}
        return [{"type": "layer_norm", **names, "epsilon": self.epsilon}]


class WithoutTensors:
    """A layer that has no parameters."""

    def starts(self) -> Mapping[str, tuple[tuple[int, int], Start, int]]:
        """None."""
        return {}


@dataclass(frozen=True)
class Relu(WithoutTensors):
    """max(x, 0)."""

    def apply(self, x: Tensor, used: Pass) -> Tensor:
        """The shape of `x`."""
        return torch.relu(x)

    def describe(self) -> list[dict[str, Any]]:
        """One layer."""
        return [{"type": "relu"}]


@dataclass(frozen=True)
class Elu(WithoutTensors):
    """x where it is positive, eˣ - 1 elsewhere (Clevert et al. 2016)."""

    def apply(self, x: Tensor, used: Pass) -> Tensor:
        """The shape of `x`."""
        return functional.elu(x)

    def describe(self) -> list[dict[str, Any]]:
        """One layer."""
        return [{"type": "elu"}]


@dataclass(frozen=True)
class AvgL1Norm(WithoutTensors):
    """x / max(mean|x|, ε) over the features (Fujimoto et al. 2023, Equation 3)."""

    epsilon: float = 1e-8

    def apply(self, x: Tensor, used: Pass) -> Tensor:
        """The shape of `x`."""
        return x / x.abs().mean(dim=-1, keepdim=True).clamp(min=self.epsilon)

    def describe(self) -> list[dict[str, Any]]:
        """One layer."""
        return [{"type": "avg_l1_norm", "epsilon": self.epsilon}]


@dataclass(frozen=True)
class Tanh(WithoutTensors):
    """tanh(x)."""

    def apply(self, x: Tensor, used: Pass) -> Tensor:
        """The shape of `x`."""
        return torch.tanh(x)

    def describe(self) -> list[dict[str, Any]]:
        """One layer."""
        return [{"type": "tanh"}]


@dataclass(frozen=True)
class Expectation(WithoutTensors):
    """The mean of a categorical distribution with given logits (Bellemare et al. 2017, arXiv:1707.06887).

    Its atoms are `num_atoms` equidistant values from `v_min` to `v_max`.
    """

    v_min: float
    v_max: float
    num_atoms: int

    def atoms(self, like: Tensor) -> Tensor:
        """The values z, `(num_atoms,)`, of the type and on the device of another tensor."""
        return torch.linspace(self.v_min, self.v_max, self.num_atoms, dtype=like.dtype, device=like.device)

    def mean(self, probabilities: Tensor) -> Tensor:
        """Σ p z: `(..., num_atoms)` to `(...)`."""
        return (probabilities * self.atoms(probabilities)).sum(dim=-1)

    def apply(self, x: Tensor, used: Pass) -> Tensor:
        """`(*members, B, num_atoms)` to `(*members, B, 1)`."""
        return self.mean(torch.softmax(x, dim=-1)).unsqueeze(-1)

    def describe(self) -> list[dict[str, Any]]:
        """Policies have no distribution."""
        raise NotImplementedError


@dataclass(frozen=True)
class AppendExtra(WithoutTensors):
    """Appends the second input, such as the action of a critic, to the features."""

    def apply(self, x: Tensor, used: Pass) -> Tensor:
        """`(*members, B, in + extra)`."""
        assert used.extra is not None
        return torch.cat([x, used.extra.expand(*x.shape[:-1], -1)], dim=-1)

    def describe(self) -> list[dict[str, Any]]:
        """Policies have one input."""
        raise NotImplementedError


@dataclass(frozen=True)
class Residual:
    """x + f(x)."""

    layers: tuple[Layer, ...]  # f, which keeps the size

    def starts(self) -> Mapping[str, tuple[tuple[int, int], Start, int]]:
        """Those of f."""
        return starts(self.layers)

    def apply(self, x: Tensor, used: Pass) -> Tensor:
        """The shape of `x`, with all member axes."""
        return x + apply(self.layers, x, used)

    def describe(self) -> list[dict[str, Any]]:
        """One layer."""
        return [{"type": "residual", "layers": describe(self.layers)}]


def starts(layers: Sequence[Layer]) -> dict[str, tuple[tuple[int, int], Start, int]]:
    """`Layer.starts` of all layers, in order."""
    return {name: start for layer in layers for name, start in layer.starts().items()}


def apply(layers: Sequence[Layer], x: Tensor, used: Pass) -> Tensor:
    """All layers in order; see `Layer.apply`."""
    for layer in layers:
        x = layer.apply(x, used)
    return x


def describe(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """All layers in order, as a policy file has them."""
    return [part for layer in layers for part in layer.describe()]


def dense_of(layers: Sequence[Layer]) -> Iterator[Dense]:
    """The dense layers in order, also those of residual blocks."""
    for layer in layers:
        if isinstance(layer, Dense):
            yield layer
        elif isinstance(layer, Residual):
            yield from dense_of(layer.layers)
