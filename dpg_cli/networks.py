"""Actor and critic networks for many members at once.

Every weight and bias carries leading *member* axes: `(S, in, out)` for the actors of S seeds, `(K, S, in, out)` for K
critics each. One member is just a small number. Inputs are `(S, B, features)`: B rows for each seed.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEW_ROWS = 32  # so few gain nothing from products of lower precision


class Layer(NamedTuple):
    """A dense layer of every member; views of a network's parameters."""

    weight: Tensor  # (*members, in, out)
    bias: Tensor  # (*members, 1, out)


class Network(nn.Module):
    """Dense layers with ReLU between them, for every member.

    The parameters are one flat tensor, so that an optimizer's step or a target's average is one operation. They start
    as those of `nn.Linear` do, uniform in ±1/√in for weights and biases, each seed's from its own generator. (torch's
    own initialisers take a three-dimensional weight for a convolution and get the fan-in wrong.)

    Args:
        sizes: inputs and outputs of each layer.
        generators: one CPU generator a seed.
        dtype: of the parameters.
        normalizer: applied to observations first; `nn.Identity()` for none.
        critics: `()` for members `(S,)`, `(K,)` for members `(K, S)`.

    Attributes:
        flat: the parameters, `(P,)`: weight and bias of each layer in turn.
        products: precision of large matrix products; that of the parameters unless it is set.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        generators: Sequence[torch.Generator],
        dtype: torch.dtype,
        normalizer: nn.Module,
        critics: tuple[int, ...] = (),
    ):
        super().__init__()
        self.normalizer = normalizer
        self.products = dtype

        def uniform(bound: float, rows: int, columns: int) -> Tensor:
            # Drawn in float64 and by seed, so that neither precision nor company changes what a seed starts from.
            draws = [
                torch.empty(*critics, rows, columns, dtype=torch.float64).uniform_(-bound, bound, generator=g)
                for g in generators
            ]
            return torch.stack(draws, dim=-3).to(dtype)

        blocks = [uniform(1 / math.sqrt(m), rows, n) for m, n in sizes for rows in (m, 1)]
        self.shapes = [block.shape for block in blocks]
        self.flat = nn.Parameter(torch.cat([block.flatten() for block in blocks]))

    @property
    def layers(self) -> list[Layer]:
        """The layers in turn."""
        views = self.views(self.flat.detach())
        return [Layer(*pair) for pair in zip(views[::2], views[1::2], strict=True)]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views of a tensor like `flat`: weight and bias of each layer in turn, `(*members, rows, columns)`."""
        return [block.view(shape) for block, shape in zip(_split(flat, self.shapes), self.shapes, strict=True)]

    def tensors(self) -> dict[str, Tensor]:
        """All that the network is, by name; views, each `(*members, rows, columns)`."""
        layers = {f"layers.{i}.{name}": t for i, own in enumerate(self.layers) for name, t in own._asdict().items()}
        return layers | {f"normalizer.{name}": tensor for name, tensor in self.normalizer.named_buffers()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what `tensors()` gave.

        Raises:
            ValueError: other names or shapes.
        """
        own = self.tensors()
        shapes = [{name: tuple(t.shape) for name, t in named.items()} for named in (own, tensors)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"should hold {shapes[0]}, holds {shapes[1]}")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def _mlp(self, x: Tensor, extra: Tensor | None = None, index: int = 0, *, first: bool = False) -> Tensor:
        """All layers in turn.

        Args:
            x: `(S, B, in)`.
            extra: `(S, B, ·)`, appended to the input of the layer `index`.
            index: counted from 0.
            first: the first of K critics alone, its parameters taken as constants.

        Returns:
            `(*members, B, out)`.
        """
        members = self.shapes[0][1:-2] if first else self.shapes[0][:-2]
        products = self.products if x.shape[-2] >= FEW_ROWS else x.dtype
        y: Tensor = _MLP.apply(  # type: ignore[no-untyped-call]
            _of_each(x, members),
            None if extra is None else _of_each(extra, members),
            index,
            self.flat.detach() if first else self.flat,
            self.shapes,
            products,
        )
        return y.view(*members, *y.shape[-2:])


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


class Actor(Network):
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
        super().__init__(list(pairwise([obs_dim, *hidden_sizes, action_dim])), generators, dtype, normalizer)
        self.obs_dim, self.action_dim, self.dtype = obs_dim, action_dim, dtype

    def forward(self, obs: Tensor) -> Tensor:
        """`(S, B, obs_dim)` to actions `(S, B, action_dim)`."""
        return torch.tanh(self._mlp(self.normalizer(obs)))


class Critic(Network):
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
        return self._mlp(self.normalizer(obs), action, self.action_index).squeeze(-1)

    def q1(self, obs: Tensor, action: Tensor) -> Tensor:
        """The first critic's values, `(S, B)`: what the actor ascends, by the action alone."""
        return self._mlp(self.normalizer(obs), action, self.action_index, first=True).squeeze(-1)


class _MLP(torch.autograd.Function):
    """The layers of N members, with the backward pass written out.

    It does what automatic differentiation does by a third of the operations: ReLU in place both ways, no gradient that
    nobody asked for, sums of products where a layer has one output. tests/test_networks.py holds it to torch's own
    differentiation in float64.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        extra: Tensor | None,
        index: int,
        flat: Tensor,
        shapes: Sequence[torch.Size],
        products: torch.dtype,
    ) -> Tensor:
        """`(N, B, in)` and `(N, B, ·)` to `(N, B, out)`, by the first N members of `flat`."""
        blocks = zip(_split(flat.to(products), shapes), shapes, strict=True)
        views = [block.view(-1, *shape[-2:])[: len(x)] for block, shape in blocks]
        weights, biases = views[::2], views[1::2]
        x, inputs = x.to(products), []
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if i > 0:
                x = x.relu_()
            if extra is not None and i == index:
                x = torch.cat([x, extra.to(products)], dim=-1)
            inputs.append(x)
            x = (x * weight.mT).sum(dim=-1, keepdim=True) + bias if _single(weight) else torch.baddbmm(bias, x, weight)
        ctx.index, ctx.extra_size = index, 0 if extra is None else extra.shape[-1]
        ctx.save_for_backward(flat, *inputs, *weights)
        ctx.shapes = shapes
        return x.to(flat.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of `extra` and `flat`."""
        flat, *saved = ctx.saved_tensors
        inputs, weights = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        _, of_extra, _, of_flat, *_ = ctx.needs_input_grad
        grad_flat, grad_extra, grads = None, None, []
        if of_flat:
            grad_flat = torch.empty_like(flat)
            blocks = zip(_split(grad_flat, ctx.shapes), ctx.shapes, strict=True)
            grads = [block.view(-1, *shape[-2:]) for block, shape in blocks]
        grad = grad.to(weights[0].dtype)
        for i in reversed(range(len(weights))):
            x, weight = inputs[i], weights[i]
            if of_flat:
                grads[2 * i].copy_((x * grad).sum(dim=-2).unsqueeze(-1) if _single(weight) else torch.bmm(x.mT, grad))
                torch.sum(grad, dim=-2, keepdim=True, dtype=flat.dtype, out=grads[2 * i + 1])
            width = x.shape[-1] - (ctx.extra_size if i == ctx.index else 0)  # of what the layer before gave
            if i == ctx.index and of_extra:
                grad_extra = _times_transposed(grad, weight[:, width:]).to(flat.dtype)
            if i > 0 and (of_flat or i > ctx.index):
                grad = _times_transposed(grad, weight[:, :width])
                torch.ops.aten.threshold_backward.grad_input(grad, x[..., :width], 0, grad_input=grad)
        return None, grad_extra, None, grad_flat, None, None


def _of_each(x: Tensor, members: Sequence[int]) -> Tensor:
    """`(S, B, ·)` to `(N, B, ·)`, the same for each of K critics."""
    return x.expand(*members, *x.shape[-2:]).flatten(0, -3)


def _split(flat: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
    blocks: Sequence[Tensor] = torch.split(flat, [shape.numel() for shape in shapes])
    return blocks


def _single(weight: Tensor) -> bool:
    """Whether a layer has one output, for which a sum is faster than a product with one column."""
    return weight.shape[-1] == 1


def _times_transposed(grad: Tensor, weight: Tensor) -> Tensor:
    """`grad @ weight.mT`."""
    return grad * weight.mT if _single(weight) else torch.bmm(grad, weight.mT)
