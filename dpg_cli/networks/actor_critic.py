"""Actor and critic networks for many members at once.

Every weight and bias carries leading *member* axes: `(S, in, out)` for the actors of S seeds, `(K, S, in, out)` for K
critics each. A single member has an axis of size 1. Inputs are `(S, B, features)`: B rows for each seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpg_cli.networks.dense import Passes, blocks
from dpg_cli.networks.normalizer import Normalizer


class Layer(NamedTuple):
    """A dense layer of every member; views of a network's parameters."""

    weight: Tensor  # (*members, in, out)
    bias: Tensor  # (*members, 1, out)


class Network(nn.Module):
    """Dense layers with ReLU between them, for every member.

    The parameters are one flat tensor, so that an optimizer's step or a target's average is one operation. Weights and
    biases start uniform in ±1/√in, as in `nn.Linear`, drawn from each seed's own generator. (torch's own initialisers
    treat a three-dimensional weight as a convolution's and get the fan-in wrong.)

    Args:
        sizes: inputs and outputs of each layer.
        generators: one CPU generator per seed.
        dtype: of the parameters.
        normalizer: applied to observations first; None: no normalisation.
        critics: `()` for members `(S,)`, `(K,)` for members `(K, S)`.

    Attributes:
        flat: the parameters, `(P,)`: weight and bias of each layer in order.
        passes: forward and backward; `passes.products` is the dtype of an update's large products.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        generators: Sequence[torch.Generator],
        dtype: torch.dtype,
        normalizer: Normalizer | None,
        critics: tuple[int, ...] = (),
    ):
        super().__init__()
        self.normalizer = normalizer

        def uniform(bound: float, rows: int, columns: int) -> Tensor:
            # Drawn in float64 and per seed: precision and other seeds do not change what a seed starts from.
            draws = [
                torch.empty(*critics, rows, columns, dtype=torch.float64).uniform_(-bound, bound, generator=g)
                for g in generators
            ]
            return torch.stack(draws, dim=-3).to(dtype)

        blocks = [uniform(1 / math.sqrt(m), rows, n) for m, n in sizes for rows in (m, 1)]
        self.shapes = [block.shape for block in blocks]
        self.flat = nn.Parameter(torch.cat([block.flatten() for block in blocks]))
        self.passes = Passes(self.shapes, dtype)

    @property
    def layers(self) -> list[Layer]:
        """The layers in order."""
        views = self.views(self.flat.detach())
        return [Layer(*pair) for pair in zip(views[::2], views[1::2], strict=True)]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views of a tensor like `flat`: weight and bias of each layer in order, `(*members, rows, columns)`."""
        return blocks(flat, self.shapes)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and statistics of the normaliser by name, as views `(*members, rows, columns)`."""
        layers = {f"layers.{i}.{name}": t for i, own in enumerate(self.layers) for name, t in own._asdict().items()}
        if self.normalizer is None:
            return layers
        return layers | {f"normalizer.{name}": tensor for name, tensor in self.normalizer.named_buffers()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors that `tensors()` of such a network returned.

        Raises:
            ValueError: names or shapes differ.
        """
        own = self.tensors()
        shapes = [{name: tuple(t.shape) for name, t in named.items()} for named in (own, tensors)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"expected tensors {shapes[0]}, got {shapes[1]}")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def static_tensors(self) -> list[Tensor]:
        """Every tensor that a pass reads or writes and that persists between passes."""
        buffers = [] if self.normalizer is None else list(self.normalizer.buffers())
        return [self.flat.detach(), *self.passes.static_tensors(), *buffers]

    def _seen(self, obs: Tensor) -> Tensor:
        """Observations as the first layer takes them: normalised, if there is a normaliser."""
        if self.normalizer is None:
            return obs
        normalized: Tensor = self.normalizer(obs)
        return normalized


class Actor(Network):
    """μ(s): ReLU layers and a tanh, so that actions lie in [-1, 1].

    Args:
        obs_dim: size of an observation.
        action_dim: size of an action.
        hidden_sizes: sizes of the hidden layers.
        generators: one CPU generator per seed.
        dtype: of the parameters.
        normalizer: applied to observations first; None: no normalisation.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        dtype: torch.dtype,
        normalizer: Normalizer | None,
    ):
        super().__init__(list(pairwise([obs_dim, *hidden_sizes, action_dim])), generators, dtype, normalizer)
        self.obs_dim, self.action_dim, self.dtype = obs_dim, action_dim, dtype

    def description(self) -> list[dict[str, Any]]:
        """The layers in order, with the names of their `tensors()`, as plain data for a policy file; see `layers`."""
        found: list[dict[str, Any]] = []
        if self.normalizer is not None:
            constants = {"epsilon": self.normalizer.EPSILON, "clip": self.normalizer.CLIP}
            found.append({"type": "normalize", "mean": "normalizer.mean", "var": "normalizer.var", **constants})
        for i in range(len(self.layers)):
            found += [{"type": "dense", "weight": f"layers.{i}.weight", "bias": f"layers.{i}.bias"}, {"type": "relu"}]
        return [*found[:-1], {"type": "tanh"}]

    def forward(self, obs: Tensor, *, exact: bool = False) -> Tensor:
        """`(S, B, obs_dim)` to actions `(S, B, action_dim)`; `exact` ignores the lower precision of `products`."""
        return torch.tanh(self.passes.forward(self.flat, self._seen(obs), exact=exact))

    def with_backward(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Actions, and a function from their gradient to that of the parameters.

        Args:
            obs: `(S, B, obs_dim)`.

        Returns:
            Actions `(S, B, action_dim)`, and a function of a gradient of that shape. Its result, `(P,)`, is overwritten
            by this network's next gradient. Until it is called, neither parameters nor actions may be changed.
        """
        y, tape = self.passes.recorded(self.flat, self._seen(obs))
        action = torch.tanh(y)
        return action, lambda grad: self.passes.gradient(self.flat, torch.ops.aten.tanh_backward(grad, action), tape)


class Critic(Network):
    """Q(s, a): K critics for each seed.

    Args:
        obs_dim: size of an observation.
        action_dim: size of an action.
        hidden_sizes: sizes of the hidden layers.
        generators: one CPU generator per seed.
        dtype: of the parameters.
        normalizer: applied to observations first; None: no normalisation.
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
        normalizer: Normalizer | None,
        num_critics: int,
        action_layer: int,
    ):
        inputs, outputs = [obs_dim, *hidden_sizes], [*hidden_sizes, 1]
        if not 1 <= action_layer <= len(inputs):
            raise ValueError(
                f"critic_action_layer={action_layer}: must be from 1 to {len(inputs)}, the number of layers"
            )
        self.action_index = action_layer - 1
        inputs[self.action_index] += action_dim
        super().__init__(list(zip(inputs, outputs, strict=True)), generators, dtype, normalizer, (num_critics,))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """`(S, B, obs_dim)` and `(S, B, action_dim)` to values `(K, S, B)`."""
        return self.passes.forward(self.flat, self._seen(obs), action, self.action_index).squeeze(-1)

    def with_backward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Values, and a function from their gradient to that of the parameters.

        Args:
            obs: `(S, B, obs_dim)`.
            action: `(S, B, action_dim)`.

        Returns:
            Values `(K, S, B)`, and a function of a gradient of that shape. Its result, `(P,)`, is overwritten by this
            network's next gradient. Until it is called, the parameters may not be changed.
        """
        y, tape = self.passes.recorded(self.flat, self._seen(obs), action, self.action_index)
        return y.squeeze(-1), lambda grad: self.passes.gradient(self.flat, grad.unsqueeze(-1), tape)

    def q1(self, obs: Tensor, action: Tensor, *, exact: bool = False) -> Tensor:
        """The first critic's values, `(S, B)`, which the actor ascends. Only the action gets a gradient.

        `exact` ignores the lower precision of `products`.
        """
        return self.passes.forward(
            self.flat, self._seen(obs), action, self.action_index, first=True, exact=exact
        ).squeeze(-1)

    def q1_with_action_gradient(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The first critic's values, `(S, B)`, and ∇ₐQ₁(s, a) at each of them, `(S, B, action_dim)`."""
        y, tape = self.passes.recorded(self.flat, self._seen(obs), action, self.action_index, first=True)
        return y.squeeze(-1), self.passes.gradient_of_extra(torch.ones_like(y), tape)
