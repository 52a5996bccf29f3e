"""The choices of `network=`: what layers actors and critics have."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from annotated_types import Interval, MinLen

from dpg_cli.networks.layers import (
    AppendExtra,
    Dense,
    Elu,
    Layer,
    LayerNorm,
    Relu,
    Residual,
    Start,
    Tanh,
    he_normal,
    near_zero,
    orthogonal,
    scaled_uniform,
    zeros,
)
from dpg_cli.ranges import Count

Blocks = Annotated[int, Interval(ge=1, le=100)]
Sizes = Annotated[list[Count], MinLen(1)]


class Architecture(Protocol):
    """Makes the layers of actors and critics. Its fields are the keys of `configs/network/<name>.yaml`."""

    clip: ClassVar[float | None]  # bound of normalised observations

    def actor(self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int]) -> list[Layer]:
        """Layers from an observation to an action before its tanh."""

    def critic(
        self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int], action_layer: int, outputs: int = 1
    ) -> list[Layer]:
        """Layers from an observation to a value, or to several outputs; the action is their second input.

        Raises:
            ValueError: there is no layer `action_layer`.
        """


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Dense layers with ReLU between them, of the sizes `algo.hidden_sizes`; they start as `nn.Linear` does."""

    clip: ClassVar[float | None] = 10.0

    def actor(self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int]) -> list[Layer]:
        """As `Architecture.actor`."""
        return _dense_layers([obs_dim, *hidden_sizes], [*hidden_sizes, action_dim])

    def critic(
        self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int], action_layer: int, outputs: int = 1
    ) -> list[Layer]:
        """As `Architecture.critic`; the action enters at the layer `action_layer`, of which 1 is the first."""
        inputs = [obs_dim, *hidden_sizes]
        if not 1 <= action_layer <= len(inputs):
            raise ValueError(
                f"critic_action_layer={action_layer}: must be from 1 to {len(inputs)}, the number of layers"
            )
        inputs[action_layer - 1] += action_dim
        layers = _dense_layers(inputs, [*hidden_sizes, outputs])
        layers.insert(2 * (action_layer - 1), AppendExtra())
        return layers


@dataclass(frozen=True, kw_only=True)
class SimBa:
    """Residual blocks with layer normalisation (Lee et al. 2025, arXiv:2410.09754)."""

    clip: ClassVar[float | None] = None

    actor_size: Count
    actor_blocks: Blocks
    critic_size: Count
    critic_blocks: Blocks

    def actor(self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int]) -> list[Layer]:
        """As `Architecture.actor`; it has its own sizes."""
        return _simba_layers(obs_dim, self.actor_size, self.actor_blocks, action_dim)

    def critic(
        self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int], action_layer: int, outputs: int = 1
    ) -> list[Layer]:
        """As `Architecture.critic`; the action always enters at the first layer."""
        return [AppendExtra(), *_simba_layers(obs_dim + action_dim, self.critic_size, self.critic_blocks, outputs)]


@dataclass(frozen=True, kw_only=True)
class LayerNormMlp:
    """Dense layers of the sizes `actor_sizes` and `critic_sizes`: layer normalisation and tanh after the first, ELU
    after the others; the networks of D4PG in Acme (`LayerNormMLP`).
    """

    clip: ClassVar[float | None] = 10.0

    actor_sizes: Sizes
    critic_sizes: Sizes

    def actor(self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int]) -> list[Layer]:
        """As `Architecture.actor`; it has its own sizes."""
        return _layer_norm_layers(obs_dim, self.actor_sizes, action_dim, near_zero)

    def critic(
        self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int], action_layer: int, outputs: int = 1
    ) -> list[Layer]:
        """As `Architecture.critic`; the action always enters at the first layer."""
        return [AppendExtra(), *_layer_norm_layers(obs_dim + action_dim, self.critic_sizes, outputs, scaled_uniform)]


ARCHITECTURES: dict[str, type[Architecture]] = {"layer_norm": LayerNormMlp, "mlp": Mlp, "simba": SimBa}


def _dense_layers(inputs: Sequence[int], outputs: Sequence[int]) -> list[Layer]:
    layers: list[Layer] = []
    for i, (m, n) in enumerate(zip(inputs, outputs, strict=True)):
        layers += [Dense(f"layers.{i}", m, n), Relu()]
    return layers[:-1]


def _layer_norm_layers(inputs: int, sizes: Sequence[int], outputs: int, last: Start) -> list[Layer]:
    layers: list[Layer] = [
        Dense("layers.0", inputs, sizes[0], scaled_uniform, zeros),
        LayerNorm("norm", sizes[0], epsilon=1e-5),  # haiku's
        Tanh(),
    ]
    for i, (m, n) in enumerate(itertools.pairwise(sizes), start=1):
        layers += [Dense(f"layers.{i}", m, n, scaled_uniform, zeros), Elu()]
    return [*layers, Dense(f"layers.{len(sizes)}", sizes[-1], outputs, last, zeros)]


def _simba_layers(inputs: int, size: int, blocks: int, outputs: int) -> list[Layer]:
    return [
        Dense("embedding", inputs, size, orthogonal, zeros),
        *(_simba_block(f"blocks.{i}", size) for i in range(blocks)),
        LayerNorm("norm", size),
        Dense("head", size, outputs, orthogonal, zeros),
    ]


def _simba_block(name: str, size: int) -> Residual:
    """A residual block, h + W₂ relu(W₁ LN(h)), four times as wide inside."""
    return Residual(
        (
            LayerNorm(f"{name}.norm", size),
            Dense(f"{name}.expand", size, 4 * size, he_normal, zeros),
            Relu(),
            Dense(f"{name}.project", 4 * size, size, he_normal, zeros),
        )
    )
