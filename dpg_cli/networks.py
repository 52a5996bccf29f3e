"""Actor and critic networks for many members at once.

Every parameter carries leading *member* axes: `(S, in, out)` for the actors of S seeds, `(K, S, in, out)` for K
critics each. One member is just a small number. Inputs are `(S, B, features)`: B rows for each seed.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """A dense layer for every member.

    Initialised as `nn.Linear` is, uniform in ±1/√in for weights and biases, each seed from its own generator.
    (torch's own initialisers take a three-dimensional weight for a convolution and get the fan-in wrong.)

    Args:
        in_features: size of the input.
        out_features: size of the output.
        generators: one CPU generator a seed.
        dtype: of the parameters.
        critics: `()` for members `(S,)`, `(K,)` for members `(K, S)`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        generators: Sequence[torch.Generator],
        dtype: torch.dtype,
        critics: tuple[int, ...] = (),
    ):
        super().__init__()
        bound = 1 / math.sqrt(in_features)

        def uniform(rows: int) -> nn.Parameter:
            # Drawn in float64 and by seed, so that neither precision nor company changes what a seed starts from.
            draws = [
                torch.empty(*critics, rows, out_features, dtype=torch.float64).uniform_(-bound, bound, generator=g)
                for g in generators
            ]
            return nn.Parameter(torch.stack(draws, dim=-3).to(dtype))

        self.weight = uniform(in_features)  # (*members, in, out)
        self.bias = uniform(1)  # (*members, 1, out)

    def forward(self, x: Tensor, first: bool = False) -> Tensor:
        """`(S, B, in)` or `(*members, B, in)` to `(*members, B, out)`; `first`: of the first of K critics alone."""
        weight, bias = (self.weight[:1], self.bias[:1]) if first else (self.weight, self.bias)
        members = weight.shape[:-2]
        x = x.expand(*members, *x.shape[-2:])
        out = torch.baddbmm(bias.flatten(0, -3), x.reshape(-1, *x.shape[-2:]), weight.flatten(0, -3))
        return out.view(*members, *out.shape[-2:])


class Normalizer(nn.Module):
    """Running mean and variance of the observations, by member (Chan et al. 1979 for the merging).

    Args:
        num_seeds: S.
        obs_dim: size of an observation.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    CLIP = 10.0

    def __init__(self, num_seeds: int, obs_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_seeds, 1, obs_dim, dtype=torch.float64))
        self.register_buffer("var", torch.ones(num_seeds, 1, obs_dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(num_seeds, 1, 1, dtype=torch.float64))

    def update(self, obs: Tensor) -> None:
        """Take `(S, N, obs_dim)` new observations into the statistics."""
        obs = obs.to(self.mean.dtype)
        n = obs.shape[-2]
        total = self.count + n
        delta = obs.mean(dim=-2, keepdim=True) - self.mean
        squares = self.var * self.count + obs.var(dim=-2, keepdim=True, correction=0) * n
        squares += delta.square() * self.count * n / total
        self.mean += delta * n / total
        self.var.copy_(squares / total)
        self.count.copy_(total)

    def forward(self, obs: Tensor) -> Tensor:
        """`(S, B, obs_dim)`, normalised and clipped to ±10."""
        std = (self.var + 1e-8).sqrt()
        normalized = (obs - self.mean.to(obs.dtype)) / std.to(obs.dtype)
        return normalized.clamp(-self.CLIP, self.CLIP)


class Actor(nn.Module):
    """μ(s): ReLU layers and a tanh, so that actions lie in [-1, 1].

    Args:
        obs_dim: size of an observation.
        action_dim: size of an action.
        hidden_sizes: sizes of the hidden layers.
        generators: one CPU generator a seed.
        dtype: of the parameters.
        normalizer: applied to observations first; `nn.Identity()` for none.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        dtype: torch.dtype,
        normalizer: nn.Module,
    ):
        super().__init__()
        sizes = [obs_dim, *hidden_sizes, action_dim]
        self.obs_dim, self.action_dim, self.dtype = obs_dim, action_dim, dtype
        self.normalizer = normalizer
        self.layers = nn.ModuleList(Linear(m, n, generators, dtype) for m, n in pairwise(sizes))

    def forward(self, obs: Tensor) -> Tensor:
        """`(S, B, obs_dim)` to actions `(S, B, action_dim)`."""
        x = self.normalizer(obs)
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.relu(layer(x))
        return torch.tanh(last(x))


class Critic(nn.Module):
    """Q(s, a): K critics for each seed.

    Args:
        obs_dim: size of an observation.
        action_dim: size of an action.
        hidden_sizes: sizes of the hidden layers.
        generators: one CPU generator a seed.
        dtype: of the parameters.
        normalizer: applied to observations first; `nn.Identity()` for none.
        num_critics: K.
        action_layer: the layer at which the action enters; 1 is the first.

    Raises:
        ValueError: there is no layer `action_layer`.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        dtype: torch.dtype,
        normalizer: nn.Module,
        num_critics: int,
        action_layer: int,
    ):
        super().__init__()
        inputs, outputs = [obs_dim, *hidden_sizes], [*hidden_sizes, 1]
        if not 1 <= action_layer <= len(inputs):
            raise ValueError(
                f"critic_action_layer={action_layer}: must be from 1 to {len(inputs)}, the number of layers"
            )
        self.action_index = action_layer - 1
        inputs[self.action_index] += action_dim
        self.normalizer = normalizer
        self.layers = nn.ModuleList(
            Linear(m, n, generators, dtype, (num_critics,)) for m, n in zip(inputs, outputs, strict=True)
        )

    def forward(self, obs: Tensor, action: Tensor, first: bool = False) -> Tensor:
        """`(S, B, obs_dim)` and `(S, B, action_dim)` to values `(K, S, B)`; `first`: of the first critic alone."""
        x: Tensor = self.normalizer(obs)
        for index, layer in enumerate(self.layers):
            if index > 0:
                x = torch.relu(x)
            if index == self.action_index:
                x = torch.cat([x, action.expand(*x.shape[:-1], -1)], dim=-1)
            x = layer(x, first)
        return x.squeeze(-1)

    def q1(self, obs: Tensor, action: Tensor) -> Tensor:
        """The first critic's values, `(S, B)`: what the actor ascends."""
        q: Tensor = self(obs, action, first=True)
        return q[0]
