"""Actor and critic networks for many members at once.

Every weight and bias carries leading *member* axes: `(S, in, out)` for the actors of S seeds, `(K, S, in, out)` for K
critics each. A single member has an axis of size 1. Inputs are `(S, B, features)`: B rows for each seed.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dpg_cli.networks.autograd import AutogradPasses
from dpg_cli.networks.dense import Passes, blocks
from dpg_cli.networks.layers import AppendExtra, Dense, Layer, Relu, dense_of, describe, starts
from dpg_cli.networks.normalizer import Normalizer
from dpg_cli.precision import is_large

N = TypeVar("N", bound="Network")
MOST_PARAMETERS = 2**59  # torch counts bytes in 63 bits
Gradient = Tensor | list[Tensor]  # of a network's parameters: like `flat`, or like its views in order


class Numbers(NamedTuple):
    """How a network computes.

    Attributes:
        device: of all tensors; "meta" for a network that only has shapes.
        parameters: dtype of the parameters.
        products: dtype of the large matrix products of an update.
        autograd: whether gradients are always torch's own, as a compiler needs it.
    """

    device: torch.device | str = "cpu"
    parameters: torch.dtype = torch.float32
    products: torch.dtype = torch.float32
    autograd: bool = False


class Network:
    """Layers of every member.

    The parameters are one flat tensor, so that an optimizer's step or a target's average is one operation. They are
    drawn from each seed's own generator. Plain ReLU layers use hand-written passes, all others torch's automatic
    differentiation; where gradients are recorded, so do plain ones.

    Args:
        layers: in order.
        generators: one CPU generator per seed.
        numbers: device and precision.
        normalizer: applied to observations first; None: no normalisation.
        critics: `()` for members `(S,)`, `(K,)` for members `(K, S)`.

    Raises:
        MemoryError: no machine can hold so many parameters.

    Attributes:
        members: `(S,)` or `(K, S)`.
        flat: the parameters, `(P,)`.
        shapes: of each tensor in `flat` by name, in order, `(*members, rows, columns)`.
        has_large: whether it has large matrix products; see `precision.is_large`.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        generators: Sequence[torch.Generator],
        numbers: Numbers,
        normalizer: Normalizer | None,
        critics: tuple[int, ...] = (),
    ):
        self.layers, self.normalizer = list(layers), normalizer
        about = starts(layers)
        self.members = (*critics, len(generators))
        self.shapes = {name: torch.Size((*self.members, *shape)) for name, (shape, _, _) in about.items()}
        count = sum(map(math.prod, self.shapes.values()))  # torch's own product overflows
        if count > MOST_PARAMETERS:
            raise MemoryError
        self.flat = torch.empty(count, dtype=numbers.parameters, device=numbers.device)
        if not self.flat.is_meta:
            for view, (shape, start, fan_in) in zip(self.views(self.flat), about.values(), strict=True):
                # Drawn in float64 and per seed: precision and other seeds do not change what a seed starts from.
                draws = [start((*critics, *shape), fan_in, generator) for generator in generators]
                view.copy_(torch.stack(draws, dim=-3))
            self.flat.requires_grad_()
        self.has_large = any(is_large(layer.inputs, layer.outputs) for layer in dense_of(layers))
        self._autograd = AutogradPasses(layers, numbers.products, has_large=self.has_large)
        self._by_hand: Passes | None = None
        if not numbers.autograd and _is_plain(layers):
            index = next((i // 2 for i, layer in enumerate(layers) if isinstance(layer, AppendExtra)), 0)
            self._by_hand = Passes(list(self.shapes.values()), numbers.products, index)

    @property
    def by_hand(self) -> bool:
        """Whether its gradients are hand-written, so that they may be computed in inference mode."""
        return self._by_hand is not None

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views of a tensor like `flat`, in order, `(*members, rows, columns)`."""
        return blocks(flat, list(self.shapes.values()))

    def named(self, *, first: bool = False) -> dict[str, Tensor]:
        """The parameters by name, as views; with `first`, as constants and of the first of K critics."""
        if first:
            return {name: tensor.detach()[0] for name, tensor in self.named().items()}
        return dict(zip(self.shapes, self.views(self.flat), strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and statistics of the normaliser by name, as views `(*members, rows, columns)`."""
        own = {name: tensor.detach() for name, tensor in self.named().items()}
        if self.normalizer is None:
            return own
        return own | {f"normalizer.{name}": tensor for name, tensor in self.normalizer.tensors().items()}

    def static_tensors(self) -> list[Tensor]:
        """Every tensor that a pass reads or writes and that persists between passes."""
        statistics = [] if self.normalizer is None else list(self.normalizer.tensors().values())
        kept = [] if self._by_hand is None else self._by_hand.static_tensors()
        return [self.flat.detach(), *kept, *statistics]

    def target(self: N) -> N:
        """A target network that starts equal to this one and shares its normaliser, but no parameters."""
        target = copy.deepcopy(self, {id(self.normalizer): self.normalizer})
        target.flat.requires_grad_(False)
        return target

    # --- passes, for actors and critics ---

    def _forward(self, obs: Tensor, extra: Tensor | None = None, *, first: bool = False, exact: bool = False) -> Tensor:
        x = self._seen(obs)
        if self._by_hand is None or torch.is_grad_enabled():
            return self._autograd.forward(self.named(first=first), x, extra, exact=exact)
        return self._by_hand.forward(self.flat, x, extra, first=first, exact=exact)

    def _with_backward(self, obs: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Callable[[Tensor], Gradient]]:
        x = self._seen(obs)
        if self._by_hand is None:
            return self._autograd.with_backward(self.named(), x, extra)
        return self._by_hand.with_backward(self.flat, x, extra)

    def _first_with_gradient_of_extra(self, obs: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        x = self._seen(obs)
        if self._by_hand is None:
            return self._autograd.with_gradient_of_extra(self.named(first=True), x, extra)
        return self._by_hand.first_with_gradient_of_extra(self.flat, x, extra)

    def _seen(self, obs: Tensor) -> Tensor:
        """Observations as the first layer takes them: normalised, if there is a normaliser."""
        return obs if self.normalizer is None else self.normalizer(obs)


class Actor(Network):
    """μ(s): layers and a tanh, so that actions lie in [-1, 1]."""

    @property
    def obs_dim(self) -> int:
        """Size of an observation."""
        return next(dense_of(self.layers)).inputs

    @property
    def action_dim(self) -> int:
        """Size of an action."""
        return [*dense_of(self.layers)][-1].outputs

    def description(self) -> list[dict[str, Any]]:
        """The layers in order, with the names of their `tensors()`, as plain data for a policy file; see `layers`."""
        normalize = [] if self.normalizer is None else self.normalizer.describe("normalizer")
        return [*normalize, *describe(self.layers), {"type": "tanh"}]

    def __call__(self, obs: Tensor, extra: Tensor | None = None, *, exact: bool = False) -> Tensor:
        """Actions.

        Args:
            obs: `(S, B, obs_dim)`.
            extra: `(S, B, ·)`, the second input of layers that have one.
            exact: whether to ignore the lower precision of `products`.

        Returns:
            `(S, B, action_dim)`.
        """
        return torch.tanh(self._forward(obs, extra, exact=exact))

    def with_backward(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Gradient]]:
        """Actions, and a function from their gradient to that of the parameters.

        Args:
            obs: `(S, B, obs_dim)`.

        Returns:
            Actions `(S, B, action_dim)`, and a function of a gradient of that shape. Its result may be overwritten by
            this network's next gradient. Until it is called, neither parameters nor actions may be changed.
        """
        y, backward = self._with_backward(obs)
        action = torch.tanh(y)
        return action, lambda grad: backward(torch.ops.aten.tanh_backward(grad, action))


class Critic(Network):
    """Q(s, a): K critics for each seed."""

    def __call__(self, obs: Tensor, action: Tensor) -> Tensor:
        """`(S, B, obs_dim)` and `(S, B, action_dim)` to values `(K, S, B)`."""
        return self._forward(obs, action).squeeze(-1)

    def logits(self, obs: Tensor, action: Tensor) -> Tensor:
        """The distributions of a critic whose last layer is an `Expectation`, by their logits.

        `(S, B, obs_dim)` and `(S, B, action_dim)` to `(K, S, B, num_atoms)`.
        """
        return self._autograd.without_last().forward(self.named(), self._seen(obs), action)

    def with_backward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Callable[[Tensor], Gradient]]:
        """Values, and a function from their gradient to that of the parameters.

        Args:
            obs: `(S, B, obs_dim)`.
            action: `(S, B, action_dim)`.

        Returns:
            Values `(K, S, B)`, and a function of a gradient of that shape. Its result may be overwritten by this
            network's next gradient. Until it is called, the parameters may not be changed.
        """
        y, backward = self._with_backward(obs, action)
        return y.squeeze(-1), lambda grad: backward(grad.unsqueeze(-1))

    def q1(self, obs: Tensor, action: Tensor, *, exact: bool = False) -> Tensor:
        """The first critic's values, `(S, B)`, which the actor ascends. Only the action gets a gradient.

        `exact` ignores the lower precision of `products`.
        """
        return self._forward(obs, action, first=True, exact=exact).squeeze(-1)

    def q1_with_action_gradient(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The first critic's values, `(S, B)`, and ∇ₐQ₁(s, a) at each of them, `(S, B, action_dim)`."""
        y, gradient = self._first_with_gradient_of_extra(obs, action)
        return y.squeeze(-1), gradient


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy tensors to those of the same names.

    Raises:
        ValueError: names or shapes differ.
    """
    given, own = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (source, target))
    if given != own:
        raise ValueError(f"expected tensors {own}, got {given}")
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _is_plain(layers: Sequence[Layer]) -> bool:
    """Whether there are only dense layers with ReLU between them; a second input may enter before any of them."""
    kinds = [type(layer) for layer in layers if not isinstance(layer, AppendExtra)]
    return kinds == ([Dense, Relu] * len(kinds))[: len(kinds)] and kinds[-1] is Dense
