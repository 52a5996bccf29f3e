"""Forward and backward passes of any layers, by torch's automatic differentiation."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dpg_cli.networks.layers import Layer, Pass, apply
from dpg_cli.precision import prepare_product


class AutogradPasses:
    """Passes in plain operations, which `torch.compile` can fuse.

    Args:
        layers: of the network.
        products: dtype of the large matrix products of an update.
        has_large: whether there are such products.
    """

    def __init__(self, layers: Sequence[Layer], products: torch.dtype, *, has_large: bool):
        self.layers, self.products, self._has_large = layers, products, has_large

    def forward(
        self, tensors: Mapping[str, Tensor], x: Tensor, extra: Tensor | None = None, *, exact: bool = False
    ) -> Tensor:
        """Apply all layers.

        Args:
            tensors: by name, `(*members, rows, columns)`.
            x: `(S, B, in)`.
            extra: `(S, B, ·)`, the second input.
            exact: whether to compute in the parameters' precision instead of `products`.

        Returns:
            `(*members, B, out)`.
        """
        if not torch.compiler.is_compiling():
            prepare_product(x.shape[-2], large=self._has_large)
        return apply(self.layers, x, Pass(tensors, extra, x.dtype if exact else self.products))

    def without_last(self) -> "AutogradPasses":
        """The passes of all layers except the last."""
        return AutogradPasses(self.layers[:-1], self.products, has_large=self._has_large)

    def with_backward(
        self, tensors: Mapping[str, Tensor], x: Tensor, extra: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        """The output, and a function from its gradient to those of the tensors, in their order."""
        y, backward, *_ = torch.func.vjp(lambda own: self.forward(own, x, extra), dict(tensors))
        # The optimizer's kernel reads a gradient as it lies in memory.
        return y, lambda grad: [part.contiguous() for part in backward(grad)[0].values()]

    def with_gradient_of_extra(self, tensors: Mapping[str, Tensor], x: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the gradient of its sum with respect to `extra`."""
        y, backward, *_ = torch.func.vjp(lambda own: self.forward(tensors, x, own), extra)
        return y, backward(torch.ones_like(y))[0]
