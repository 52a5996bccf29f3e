"""The networks of TD7: encoders, and actors and critics that take their embeddings.

Fujimoto et al. 2023, arXiv:2306.02451, Appendix B.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpg_cli.networks.actor_critic import Actor, Critic, Network, Numbers
from dpg_cli.networks.autograd import AutogradPasses
from dpg_cli.networks.layers import AppendExtra, AvgL1Norm, Dense, Elu, Layer, Relu, describe
from dpg_cli.networks.normalizer import Normalizer


class Encoder(Network):
    """Embeddings of a state, zˢ = f(s), and of a state and an action, zˢᵃ = g(zˢ, a).

    Args:
        obs_dim: size of an observation.
        action_dim: size of an action.
        sizes: units of the hidden layers of f, and of g.
        embedding_size: of zˢ and of zˢᵃ.
        generators: one CPU generator per seed.
        numbers: device and precision.
        normalizer: applied to observations first; None: no normalisation.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        sizes: Sequence[int],
        embedding_size: int,
        generators: Sequence[torch.Generator],
        numbers: Numbers,
        normalizer: Normalizer | None,
    ):
        self.f = [*_layers("state", [obs_dim, *sizes, embedding_size], Elu()), AvgL1Norm()]
        self.g = [AppendExtra(), *_layers("pair", [embedding_size + action_dim, *sizes, embedding_size], Elu())]
        super().__init__([*self.f, *self.g], generators, numbers, normalizer)
        self._f, self._g = (
            AutogradPasses(layers, numbers.products, has_large=self.has_large) for layers in (self.f, self.g)
        )

    def of_state(self, obs: Tensor, *, exact: bool = False) -> Tensor:
        """zˢ: `(S, B, obs_dim)` to `(S, B, embedding_size)`; `exact` ignores the lower precision of `products`."""
        return self._f.forward(self.named(), self._seen(obs), exact=exact)

    def of_pair(self, zs: Tensor, action: Tensor, *, exact: bool = False) -> Tensor:
        """zˢᵃ: `(S, B, embedding_size)` and `(S, B, action_dim)` to `(S, B, embedding_size)`."""
        return self._g.forward(self.named(), zs, action, exact=exact)

    def state_tensors(self) -> dict[str, Tensor]:
        """Those of `tensors()` that `of_state` needs."""
        return {name: tensor for name, tensor in self.tensors().items() if not name.startswith("pair.")}


def sale_actor(obs_dim: int, action_dim: int, sizes: Sequence[int], embedding_size: int) -> list[Layer]:
    """The layers of an actor π(s, zˢ) before its tanh; the embedding is their second input."""
    first, *_ = sizes
    return [
        Dense("first", obs_dim, first),
        AvgL1Norm(),
        AppendExtra(),
        *_layers("layers", [first + embedding_size, *sizes, action_dim], Relu()),
    ]


def describe_policy(actor: Actor, encoder: Encoder) -> list[dict[str, Any]]:
    """The layers of π(s, f(s)), for a policy file; see `dpg_cli.layers`."""
    normalize = [] if actor.normalizer is None else actor.normalizer.describe("normalizer")
    joined = actor.layers.index(AppendExtra())
    branches = [describe(actor.layers[:joined]), describe(encoder.f)]
    return [
        *normalize,
        {"type": "concatenate", "branches": branches},
        *describe(actor.layers[joined + 1 :]),
        {"type": "tanh"},
    ]


class SaleCritic(Critic):
    """Q(s, a, zˢᵃ, zˢ): K critics for each seed."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        sizes: Sequence[int],
        embedding_size: int,
        generators: Sequence[torch.Generator],
        numbers: Numbers,
        normalizer: Normalizer | None,
        num_critics: int,
    ):
        first, *_ = sizes
        layers: list[Layer] = [
            Dense("first", obs_dim + action_dim, first),
            AvgL1Norm(),
            AppendExtra(),
            *_layers("layers", [first + 2 * embedding_size, *sizes, 1], Elu()),
        ]
        super().__init__(layers, generators, numbers, normalizer, (num_critics,))

    def __call__(  # type: ignore[override]
        self, obs: Tensor, action: Tensor, zsa: Tensor, zs: Tensor, *, exact: bool = False
    ) -> Tensor:
        """Values `(K, S, B)` of observations `(S, B, obs_dim)`, actions and their embeddings, each `(S, B, ·)`."""
        pair, embeddings = torch.cat([self._seen(obs), action], dim=-1), torch.cat([zsa, zs], dim=-1)
        return self._autograd.forward(self.named(), pair, embeddings, exact=exact).squeeze(-1)


def _layers(name: str, sizes: Sequence[int], activation: Layer) -> list[Layer]:
    """Dense layers from each size to the next, with activations between them."""
    layers: list[Layer] = []
    for i, (m, n) in enumerate(itertools.pairwise(sizes)):
        layers += [Dense(f"{name}.{i}", m, n), activation]
    return layers[:-1]
