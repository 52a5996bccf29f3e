"""Actor and critic networks for many members at once.

Every weight and bias carries leading *member* axes: `(S, in, out)` for the actors of S seeds, `(K, S, in, out)` for K
critics each. One member is just a small number. Inputs are `(S, B, features)`: B rows for each seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dpg_cli.precision import is_large, prepare_product

NARROW = 16  # MKL takes several times as long for a product with fewer columns than for its transpose


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
        normalizer: applied to observations first; None for none.
        critics: `()` for members `(S,)`, `(K,)` for members `(K, S)`.

    Attributes:
        flat: the parameters, `(P,)`: weight and bias of each layer in turn.
        products: precision of the large matrix products of an update; that of the parameters unless it is set.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        generators: Sequence[torch.Generator],
        dtype: torch.dtype,
        normalizer: "Normalizer | None",
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
        self._kept: dict[torch.dtype, Kept] = {}
        self._place: Kept | None = None  # of gradients

    @property
    def layers(self) -> list[Layer]:
        """The layers in turn."""
        views = self.views(self.flat.detach())
        return [Layer(*pair) for pair in zip(views[::2], views[1::2], strict=True)]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views of a tensor like `flat`: weight and bias of each layer in turn, `(*members, rows, columns)`."""
        return _blocks(flat, self.shapes)

    def tensors(self) -> dict[str, Tensor]:
        """All that the network is, by name; views, each `(*members, rows, columns)`."""
        layers = {f"layers.{i}.{name}": t for i, own in enumerate(self.layers) for name, t in own._asdict().items()}
        if self.normalizer is None:
            return layers
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

    def _seen(self, obs: Tensor) -> Tensor:
        """Observations as the layers take them."""
        if self.normalizer is None:
            return obs
        normalized: Tensor = self.normalizer(obs)
        return normalized

    def _mlp(
        self, x: Tensor, extra: Tensor | None = None, index: int = 0, *, first: bool = False, exact: bool = False
    ) -> Tensor:
        """All layers in turn, by torch's automatic differentiation where it is enabled.

        Args:
            x: `(S, B, in)`.
            extra: `(S, B, ·)`, appended to the input of the layer `index`.
            index: counted from 0.
            first: the first of K critics alone, its parameters taken as constants.
            exact: in the precision of the parameters, whatever `products` says.

        Returns:
            `(*members, B, out)`.
        """
        if not torch.is_grad_enabled():
            return self._recorded(x, extra, index, first=first, exact=exact)[0]
        members = self._members(first)
        flat = self.flat.detach() if first else self.flat
        layers = self._dense(first, exact)
        y: Tensor = _MLP.apply(x, extra, index, members, flat, self.shapes, layers)  # type: ignore[no-untyped-call]
        return y.view(*members, *y.shape[-2:])

    def _recorded(
        self, x: Tensor, extra: Tensor | None = None, index: int = 0, *, first: bool = False, exact: bool = False
    ) -> tuple[Tensor, "Tape"]:
        """As `_mlp`, without torch's differentiation, and the record for ours."""
        members = self._members(first)
        y, tape = _forward(x, extra, index, members, self._dense(first, exact))
        return _in(x.dtype, y).view(*members, *y.shape[-2:]), tape

    def static_tensors(self) -> list[Tensor]:
        """Every tensor that a pass reads or writes and that outlives it."""
        kept = [kept.flat for kept in (*self._kept.values(), self._place) if kept is not None]
        buffers = [] if self.normalizer is None else list(self.normalizer.buffers())
        return [self.flat.detach(), *kept, *buffers]

    def _gradient(self, grad: Tensor, tape: "Tape") -> Tensor:
        """The gradient of the parameters, `(P,)`, given that of the output; in one place, for one use at a time."""
        place = self._place
        if torch.compiler.is_compiling():
            place = self._views_of(torch.empty_like)
        elif place is None or place.at != self.flat.data_ptr():
            place = self._place = self._kept_views_of(torch.empty_like)
        _backward(grad.flatten(0, -3), tape, place.layers)
        return place.flat

    def _members(self, first: bool) -> torch.Size:
        return self.shapes[0][1:-2] if first else self.shapes[0][:-2]

    def _dense(self, first: bool, exact: bool) -> list["Dense"]:
        """The layers as products take them: of all members in a row, or of the first of K critics."""
        flat = self.flat  # once, since a module's attributes are slow
        dtype = flat.dtype if exact else self.products
        kept = self._kept.get(dtype)
        if torch.compiler.is_compiling():  # where views cost nothing
            kept = self._views_of(lambda flat: flat.to(dtype))
        elif kept is None or kept.at != flat.data_ptr():
            kept = self._kept[dtype] = self._kept_views_of(lambda flat: flat.to(dtype))
        elif dtype is not flat.dtype:
            kept.flat.copy_(flat.detach())  # every time: nothing says when they were changed
        return kept.of_first if first else kept.layers

    @torch.inference_mode(False)  # tensors of that mode could not be used outside
    def _kept_views_of(self, make: Callable[[Tensor], Tensor]) -> "Kept":
        return self._views_of(make)._replace(at=self.flat.data_ptr())

    def _views_of(self, make: Callable[[Tensor], Tensor]) -> "Kept":
        """What `make` gives of the parameters, and its layers."""
        flat = make(self.flat.detach())
        layers = _dense(flat, self.shapes)
        if flat.dtype is not self.flat.dtype:
            exact = _dense(self.flat.detach(), self.shapes)
            layers = [own if own.large else other for own, other in zip(layers, exact, strict=True)]
        members = self.shapes[0][-3]  # S
        of_first = [_layer(layer.weight[:members], layer.bias[:members]) for layer in layers]
        return Kept(0, flat, layers, of_first)


class Dense(NamedTuple):
    """A layer of N members: views of the parameters, or of a rounded copy of them where the layer is large."""

    weight: Tensor  # (N, in, out)
    bias: Tensor  # (N, 1, out)
    transposed: Tensor  # (N, out, in), the weight
    large: bool  # as `is_large` says
    narrow: bool  # whether it has fewer outputs than `NARROW`, on a CPU


class Kept(NamedTuple):
    """Views of a tensor like the parameters, kept since to make them takes as long as a product."""

    at: int  # where the parameters lie; elsewhere in a copy of the network, or on another device
    flat: Tensor  # (P,)
    layers: list[Dense]
    of_first: list[Dense]  # of the first of K critics


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
        normalizer: applied to observations first; None for none.
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

    def forward(self, obs: Tensor, *, exact: bool = False) -> Tensor:
        """`(S, B, obs_dim)` to actions `(S, B, action_dim)`; `exact`: not in the lower precision of an update."""
        return torch.tanh(self._mlp(self._seen(obs), exact=exact))

    def with_backward(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Actions, and how their gradient becomes that of the parameters.

        Args:
            obs: `(S, B, obs_dim)`.

        Returns:
            Actions `(S, B, action_dim)`, and a function of a gradient of that shape. What it gives, `(P,)`, holds until
            this network's next one. In between neither the parameters nor the actions may be changed.
        """
        y, tape = self._recorded(self._seen(obs))
        action = torch.tanh(y)
        return action, lambda grad: self._gradient(torch.ops.aten.tanh_backward(grad, action), tape)


class Critic(Network):
    """Q(s, a): K critics for each seed.

    Args:
        obs_dim: size of an observation.
        action_dim: size of an action.
        hidden_sizes: sizes of the hidden layers.
        generators: one CPU generator a seed.
        dtype: of the parameters.
        normalizer: applied to observations first; None for none.
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
        return self._mlp(self._seen(obs), action, self.action_index).squeeze(-1)

    def with_backward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Values, and how their gradient becomes that of the parameters.

        Args:
            obs: `(S, B, obs_dim)`.
            action: `(S, B, action_dim)`.

        Returns:
            Values `(K, S, B)`, and a function of a gradient of that shape. What it gives, `(P,)`, holds until this
            network's next one. In between the parameters may not be changed.
        """
        y, tape = self._recorded(self._seen(obs), action, self.action_index)
        return y.squeeze(-1), lambda grad: self._gradient(grad.unsqueeze(-1), tape)

    def q1(self, obs: Tensor, action: Tensor, *, exact: bool = False) -> Tensor:
        """The first critic's values, `(S, B)`: what the actor ascends, by the action alone.

        `exact`: not in the lower precision of an update.
        """
        return self._mlp(self._seen(obs), action, self.action_index, first=True, exact=exact).squeeze(-1)

    def q1_with_action_gradient(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The first critic's values, `(S, B)`, and ∇ₐQ₁(s, a) at each of them, `(S, B, action_dim)`."""
        y, tape = self._recorded(self._seen(obs), action, self.action_index, first=True)
        grad = _backward(torch.ones_like(y), tape, None, of_extra=True)
        assert grad is not None
        return y.squeeze(-1), _in(action.dtype, grad)


class Tape(NamedTuple):
    """What a forward pass of N members leaves for its gradients."""

    layers: Sequence[Dense]
    inputs: list[Tensor]  # of each layer, (N, B, ·)
    entry: int  # the layer that `extra` entered at
    extra_size: int  # 0 without one


def _forward(
    x: Tensor, extra: Tensor | None, index: int, members: Sequence[int], layers: Sequence[Dense]
) -> tuple[Tensor, Tape]:
    """The layers of N members.

    Args:
        x: `(S, B, in)`.
        extra: `(S, B, ·)`, appended to the input of the layer `index`.
        index: counted from 0.
        members: `(S,)`, or `(K, S)` for K critics of each seed; N in all.
        layers: in turn.

    Returns:
        `(N, B, out)`, in the precision of the last layer, and the record.
    """
    inputs, rows = [], x.shape[-2]
    for i, (weight, bias, transposed, large, narrow) in enumerate(layers):
        if i > 0:
            x = x.relu_()
        if extra is not None and i == index:
            x = torch.cat([x, extra if i == 0 else _of_each(extra, members)], dim=-1)
        if i == 0:
            x = _of_each(x, members)
        x = _in(weight.dtype, x)
        inputs.append(x)
        prepare_product(rows, large=large)
        if not x.is_cpu:
            x = torch.bmm(x, weight).add_(bias)  # the sum joins what surrounds it when an update is compiled
        elif narrow and rows >= NARROW:
            x = torch.baddbmm(bias.mT, transposed.contiguous(), x.mT).mT  # contiguous, which is another factor of 2
        else:
            x = torch.baddbmm(bias, x, weight)
    return x, Tape(layers, inputs, index, 0 if extra is None else extra.shape[-1])


def _backward(grad: Tensor, tape: Tape, into: Sequence[Dense] | None, *, of_extra: bool = False) -> Tensor | None:
    """The gradients, written out.

    It is what automatic differentiation does by a third of the operations: ReLU in place, and no gradient that nobody
    asked for. tests/test_networks.py holds it to torch's own in float64.

    Args:
        grad: of the output, `(N, B, out)`.
        tape: the record of the forward pass.
        into: where to put the gradient of the parameters, layer by layer; None for nowhere.
        of_extra: whether to return the gradient of `extra`, `(N, B, ·)`.
    """
    grad_extra = None
    for i in reversed(range(len(tape.inputs))):
        x, (weight, _, transposed, large, narrow) = tape.inputs[i], tape.layers[i]
        grad = _in(weight.dtype, grad)
        prepare_product(grad.shape[-2], large=large)
        if into is not None:
            _sum_of_products(x, grad, narrow=narrow, out=into[i].weight)
            torch.sum(grad, dim=-2, keepdim=True, dtype=into[i].bias.dtype, out=into[i].bias)
        if i == tape.entry and tape.extra_size:
            width = x.shape[-1] - tape.extra_size  # of what the layer before gave
            if of_extra:
                grad_extra = _product(grad, transposed[..., width:])
            x, transposed = x[..., :width], transposed[..., :width]
        if i > 0 and (into is not None or i > tape.entry):
            grad = _product(grad, transposed)
            torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)
    return grad_extra


class _MLP(torch.autograd.Function):
    """`_forward` and `_backward` as torch's automatic differentiation takes them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        extra: Tensor | None,
        index: int,
        members: Sequence[int],
        flat: Tensor,
        shapes: Sequence[torch.Size],
        layers: Sequence[Dense],
    ) -> Tensor:
        """`layers` are those of `flat`, which gets the gradient."""
        y, tape = _forward(x, extra, index, members, layers)
        ctx.save_for_backward(flat, *tape.inputs)  # so that torch sees whether one of them is changed in between
        ctx.tape, ctx.shapes, ctx.members = tape._replace(inputs=[]), shapes, members
        return _in(flat.dtype, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of `extra` and `flat`."""
        flat, *inputs = ctx.saved_tensors
        _, of_extra, _, _, of_flat, *_ = ctx.needs_input_grad
        grad_flat, into = None, None
        if of_flat:
            grad_flat = torch.empty_like(flat)
            into = _dense(grad_flat, ctx.shapes)
        grad_extra = _backward(grad, ctx.tape._replace(inputs=inputs), into, of_extra=of_extra)
        if grad_extra is not None:  # of each of K critics; all have the same
            grad_extra = _in(grad.dtype, grad_extra).view(-1, ctx.members[-1], *grad_extra.shape[-2:]).sum(dim=0)
        return None, grad_extra, None, None, grad_flat, None, None


def _of_each(x: Tensor, members: Sequence[int]) -> Tensor:
    """`(S, B, ·)` to `(N, B, ·)`, the same for each of K critics."""
    return x if len(members) == 1 else x.expand(*members, *x.shape[-2:]).flatten(0, -3)


def _in(dtype: torch.dtype, x: Tensor) -> Tensor:
    """`x.to(dtype)`, which takes its time where there is nothing to do, too."""
    return x if x.dtype is dtype else x.to(dtype)


def _blocks(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Views of a tensor like a network's parameters: weight and bias of each layer in turn."""
    parts = torch.split(flat, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _dense(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Dense]:
    """The layers in a tensor like a network's parameters, all members in a row."""
    blocks = [block.flatten(0, -3) for block in _blocks(flat, shapes)]
    return [_layer(weight, bias) for weight, bias in zip(blocks[::2], blocks[1::2], strict=True)]


def _layer(weight: Tensor, bias: Tensor) -> Dense:
    inputs, outputs = weight.shape[-2:]
    return Dense(weight, bias, weight.mT, is_large(inputs, outputs), weight.is_cpu and outputs < NARROW)


def _product(grad: Tensor, transposed: Tensor) -> Tensor:
    """`grad @ transposed`."""
    return grad * transposed if grad.shape[-1] == 1 else torch.bmm(grad, transposed)


def _sum_of_products(x: Tensor, grad: Tensor, *, narrow: bool, out: Tensor) -> None:
    """`x.mT @ grad` into `out`, which may be of a higher precision."""
    if narrow:
        out.copy_(torch.bmm(grad.mT, x).mT)
    elif out.dtype is x.dtype:
        torch.bmm(x.mT, grad, out=out)
    else:
        out.copy_(torch.bmm(x.mT, grad))
