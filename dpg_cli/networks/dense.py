"""Dense layers with ReLU between them, for N members at once, with hand-written gradients.

A small network spends most of its time on operations between the matrix products. There are few of them here: views of
the parameters are kept, ReLU works in place, and only requested gradients are computed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpg_cli.precision import is_large, prepare_product

NARROW = 16  # MKL takes several times as long for a product with fewer columns than for its transpose


class Dense(NamedTuple):
    """A layer of N members: views of the parameters, or of a rounded copy if the layer is large."""

    weight: Tensor  # (N, in, out)
    bias: Tensor  # (N, 1, out)
    transposed: Tensor  # (N, out, in), the weight
    large: bool  # see `is_large`
    narrow: bool  # whether it has fewer outputs than `NARROW`, on a CPU


class Kept(NamedTuple):
    """Views of a tensor like the parameters, kept because making them takes as long as a product."""

    at: int  # address of the parameters; a copy of the network, or one moved to another device, has another
    flat: Tensor  # (P,)
    layers: list[Dense]
    of_first: list[Dense]  # of the first of K critics


class Tape(NamedTuple):
    """The record of a forward pass of N members, for its gradients."""

    layers: Sequence[Dense]
    inputs: list[Tensor]  # of each layer, (N, B, ·)
    entry: int  # the layer at which `extra` entered
    extra_size: int  # 0 without `extra`


class Passes:
    """Forward and backward passes through the layers of a network with one member, or K critics, per seed.

    Each pass takes the parameters, `flat` of `(P,)`: their address and their values may change between passes.

    Args:
        shapes: of weight and bias of each layer in order, `(*members, rows, columns)`; members are `(S,)` or `(K, S)`.
        products: dtype of the large matrix products of an update.
        index: of the layer at whose input the second input enters, from 0.
    """

    def __init__(self, shapes: Sequence[torch.Size], products: torch.dtype, index: int = 0):
        self._shapes, self._products, self._index = shapes, products, index
        self._kept: dict[torch.dtype, Kept] = {}
        self._place: Kept | None = None  # for gradients

    def forward(
        self, flat: Tensor, x: Tensor, extra: Tensor | None = None, *, first: bool = False, exact: bool = False
    ) -> Tensor:
        """Apply all layers.

        Args:
            flat: the parameters.
            x: `(S, B, in)`.
            extra: `(S, B, ·)`, the second input.
            first: whether to apply only the first of K critics.
            exact: whether to compute in the parameters' precision instead of `products`.

        Returns:
            `(*members, B, out)`.
        """
        return self._recorded(flat, x, extra, first=first, exact=exact)[0]

    def with_backward(
        self, flat: Tensor, x: Tensor, extra: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The output, and a function from its gradient to that of the parameters, `(P,)`.

        The next call of such a function overwrites the result.
        """
        y, tape = self._recorded(flat, x, extra)
        return y, lambda grad: self._gradient(flat, grad, tape)

    def first_with_gradient_of_extra(self, flat: Tensor, x: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """The output of the first of K critics, and the gradient of its sum with respect to `extra`."""
        y, tape = self._recorded(flat, x, extra, first=True)
        grad_extra = backward(torch.ones_like(y), tape, None, of_extra=True)
        assert grad_extra is not None
        return y, as_type(y.dtype, grad_extra)

    def static_tensors(self) -> list[Tensor]:
        """Every tensor except the parameters that a pass reads or writes and that persists between passes."""
        return [kept.flat for kept in (*self._kept.values(), self._place) if kept is not None]

    def _recorded(
        self, flat: Tensor, x: Tensor, extra: Tensor | None, *, first: bool = False, exact: bool = False
    ) -> tuple[Tensor, Tape]:
        """As `forward`; also returns the tape for the gradients."""
        members = self._members(first)
        y, tape = forward(x, extra, self._index, members, self._layers(flat, first, exact))
        return as_type(x.dtype, y).view(*members, *y.shape[-2:]), tape

    def _gradient(self, flat: Tensor, grad: Tensor, tape: Tape) -> Tensor:
        place = self._place
        if place is None or place.at != flat.data_ptr():
            place = self._place = self._kept_views_of(flat, torch.empty_like)
        backward(grad.flatten(0, -3), tape, place.layers)
        return place.flat

    def _members(self, first: bool) -> torch.Size:
        return self._shapes[0][1:-2] if first else self._shapes[0][:-2]

    def _layers(self, flat: Tensor, first: bool, exact: bool) -> list[Dense]:
        """The layers with all members, or only those of the first of K critics, along one axis."""
        dtype = flat.dtype if exact else self._products
        kept = self._kept.get(dtype)
        if kept is None or kept.at != flat.data_ptr():
            kept = self._kept[dtype] = self._kept_views_of(flat, lambda flat: flat.to(dtype))
        elif dtype is not flat.dtype:
            kept.flat.copy_(flat)  # every time: changes of the parameters are not tracked
        return kept.of_first if first else kept.layers

    @torch.inference_mode(False)  # inference tensors could not be used outside that mode
    def _kept_views_of(self, parameters: Tensor, make: Callable[[Tensor], Tensor]) -> Kept:
        """The tensor that `make` returns for the parameters, and its layers."""
        flat = make(parameters.detach())
        layers = dense_layers(flat, self._shapes)
        if flat.dtype is not parameters.dtype:
            exact = dense_layers(parameters.detach(), self._shapes)
            layers = [own if own.large else other for own, other in zip(layers, exact, strict=True)]
        members = self._shapes[0][-3]  # S
        of_first = [dense_layer(layer.weight[:members], layer.bias[:members]) for layer in layers]
        return Kept(parameters.data_ptr(), flat, layers, of_first)


def forward(
    x: Tensor, extra: Tensor | None, index: int, members: Sequence[int], layers: Sequence[Dense]
) -> tuple[Tensor, Tape]:
    """Apply the layers of N members.

    Args:
        x: `(S, B, in)`.
        extra: `(S, B, ·)`, appended to the input of the layer `index`.
        index: of that layer, from 0.
        members: `(S,)`, or `(K, S)` for K critics of each seed; N in all.
        layers: in order.

    Returns:
        `(N, B, out)`, in the precision of the last layer, and the tape.
    """
    inputs, rows = [], x.shape[-2]
    for i, (weight, bias, transposed, large, narrow) in enumerate(layers):
        if i > 0:
            x = x.relu_()
        if extra is not None and i == index:
            x = torch.cat([x, extra if i == 0 else _of_each(extra, members)], dim=-1)
        if i == 0:
            x = _of_each(x, members)
        x = as_type(weight.dtype, x)
        inputs.append(x)
        prepare_product(rows, large=large)
        if not x.is_cpu:
            x = torch.bmm(x, weight).add_(bias)  # baddbmm would first copy the bias to every row
        elif narrow and rows >= NARROW:
            x = torch.baddbmm(bias.mT, transposed.contiguous(), x.mT).mT  # contiguous for another factor of 2
        else:
            x = torch.baddbmm(bias, x, weight)
    return x, Tape(layers, inputs, index, 0 if extra is None else extra.shape[-1])


def backward(grad: Tensor, tape: Tape, into: Sequence[Dense] | None, *, of_extra: bool = False) -> Tensor | None:
    """The gradients of a forward pass.

    It needs a third of the operations of automatic differentiation: ReLU works in place, and only requested gradients
    are computed. tests/networks/test_networks.py compares it with torch's own gradients in float64.

    Args:
        grad: of the output, `(N, B, out)`.
        tape: of the forward pass.
        into: receives the gradient of the parameters, layer by layer; None: it is not computed.
        of_extra: whether to return the gradient of `extra`, `(N, B, ·)`, instead of None.
    """
    grad_extra = None
    for i in reversed(range(len(tape.inputs))):
        x, (weight, _, transposed, large, narrow) = tape.inputs[i], tape.layers[i]
        grad = as_type(weight.dtype, grad)
        prepare_product(grad.shape[-2], large=large)
        if into is not None:
            _sum_of_products(x, grad, narrow=narrow, out=into[i].weight)
            torch.sum(grad, dim=-2, keepdim=True, dtype=into[i].bias.dtype, out=into[i].bias)
        if i == tape.entry and tape.extra_size:
            width = x.shape[-1] - tape.extra_size  # of the output of the layer before
            if of_extra:
                grad_extra = _product(grad, transposed[..., width:])
            x, transposed = x[..., :width], transposed[..., :width]
        if i > 0 and (into is not None or i > tape.entry):
            grad = _product(grad, transposed)
            torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)
    return grad_extra


def _of_each(x: Tensor, members: Sequence[int]) -> Tensor:
    """`(S, B, ·)` to `(N, B, ·)`, repeated for each of K critics."""
    return x if len(members) == 1 else x.expand(*members, *x.shape[-2:]).flatten(0, -3)


def as_type(dtype: torch.dtype, x: Tensor) -> Tensor:
    """`x.to(dtype)`, without the time that it takes even if `x` has that type already."""
    return x if x.dtype is dtype else x.to(dtype)


def blocks(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Views of a tensor like a network's parameters: weight and bias of each layer in order."""
    parts = torch.split(flat, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def dense_layers(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Dense]:
    """The layers in a tensor like a network's parameters, with all members along one axis."""
    parts = [block.flatten(0, -3) for block in blocks(flat, shapes)]
    return [dense_layer(weight, bias) for weight, bias in zip(parts[::2], parts[1::2], strict=True)]


def dense_layer(weight: Tensor, bias: Tensor) -> Dense:
    """One layer from its weight `(N, in, out)` and bias `(N, 1, out)`."""
    inputs, outputs = weight.shape[-2:]
    return Dense(weight, bias, weight.mT, is_large(inputs, outputs), weight.is_cpu and outputs < NARROW)


def _product(grad: Tensor, transposed: Tensor) -> Tensor:
    """`grad @ transposed`."""
    return grad * transposed if grad.shape[-1] == 1 else torch.bmm(grad, transposed)


def _sum_of_products(x: Tensor, grad: Tensor, *, narrow: bool, out: Tensor) -> None:
    """`x.mT @ grad` into `out`, which may have a higher precision."""
    if narrow:
        out.copy_(torch.bmm(grad.mT, x).mT)
    elif out.dtype is x.dtype:
        torch.bmm(x.mT, grad, out=out)
    else:
        out.copy_(torch.bmm(x.mT, grad))
