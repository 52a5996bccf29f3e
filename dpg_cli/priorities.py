"""Priorities of transitions, by which a replay samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpg_cli.ranges import Fraction

CHILDREN = 128  # of a node of the tree
LARGEST_ERROR = 1e38  # larger ones count as this, so that all sums are finite until a diverging run is stopped


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Every stored transition is equally likely."""


@dataclass(frozen=True, kw_only=True)
class Lap:
    """Transitions with large errors are more likely; see `Priorities`."""

    alpha: Fraction


SAMPLINGS: dict[str, type[Uniform | Lap]] = {"lap": Lap, "uniform": Uniform}


class Priorities:
    """LAP's priorities, max(|δ|, 1)^α, for each member's ring of transitions (Fujimoto et al. 2020, arXiv:2007.06049).

    A transition is chosen with probability proportional to its priority. A new one gets the largest priority so far.
    There are no importance weights: the Huber loss of the critics, whose gradient is the sign of δ beyond 1, replaces
    them.

    The sums are a tree in float64: a node is the sum of `CHILDREN` nodes below it, and is computed anew whenever one of
    them changes. So the sums stay those of the priorities, after any number of changes. All operations run on the
    device, with shapes that do not depend on the data, so that they can be captured.

    Args:
        members: S.
        capacity: of each ring.
        alpha: α.
        device: of the tree.
    """

    def __init__(self, members: int, capacity: int, alpha: float, device: torch.device | str = "cpu"):
        self._alpha = alpha
        self._levels: list[Tensor] = []  # (S, ·): the priorities, sums of them, sums of those; the last has few
        size = capacity
        while not self._levels or size > 1:
            padded = -(-size // CHILDREN) * CHILDREN
            self._levels.append(torch.zeros(members, padded, dtype=torch.float64, device=device))
            size = padded // CHILDREN
        self._largest = torch.ones(members, 1, dtype=torch.float64, device=device)
        self._member = torch.arange(members, device=device)[:, None]

    @staticmethod
    def memory(members: int, capacity: int) -> int:
        """Bytes of the tree."""
        return members * (capacity + 2 * CHILDREN) * 8 * (CHILDREN + 1) // CHILDREN

    def static_tensors(self) -> list[Tensor]:
        """Every tensor that is read or written and persists, for `capture.Static`."""
        return [*self._levels, self._largest, self._member]

    def add(self, places: Tensor) -> None:
        """Give new transitions at places `(E,)` of each ring the largest priority so far."""
        everywhere = places.to(self._member.device).expand(len(self._member), -1)
        self._levels[0].scatter_(1, everywhere, self._largest.expand_as(everywhere))
        self._sum_up(everywhere)

    def find(self, shares: Tensor) -> Tensor:
        """The transition at which a share of the total priority is reached.

        Args:
            shares: `(S, B)` in [0, 1), float64.

        Returns:
            Places in the rings, `(S, B)`.
        """
        place = torch.zeros_like(shares, dtype=torch.int64)
        rest = shares
        for level in reversed(self._levels):
            reached = self._children(level, place).cumsum(dim=-1)  # (S, B, CHILDREN)
            last = reached[..., -1]
            if level is self._levels[-1]:
                rest = shares * last
            # Rounding must not lead beyond the last child with a priority.
            rest = torch.minimum(rest, last * (1 - 2**-52))
            child = (reached <= rest.unsqueeze(-1)).sum(dim=-1)
            before = reached.gather(-1, (child - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
            rest = rest - torch.where(child > 0, before, 0.0)
            place = place * CHILDREN + child
        return place

    def update(self, places: Tensor, td_error: Tensor) -> None:
        """Set priorities.

        Args:
            places: in the rings, `(S, B)`.
            td_error: `(K, S, B)`, of each critic. The largest counts.
        """
        priority = td_error.abs().amax(dim=0).clamp(1.0, LARGEST_ERROR).pow(self._alpha).to(torch.float64)
        self._levels[0].scatter_(1, places, 0.0)
        # A transition may occur twice in a batch: the larger one counts, whatever the order of the writes is.
        self._levels[0].scatter_reduce_(1, places, priority, "amax")
        self._largest.copy_(torch.maximum(self._largest, priority.amax(dim=-1, keepdim=True)))
        self._sum_up(places)

    def reset_largest(self) -> None:
        """Let new transitions get the largest priority that is stored, not the largest so far."""
        self._largest.copy_(self._levels[0].amax(dim=-1, keepdim=True))

    def state(self, member: int, places: Tensor) -> dict[str, Any]:
        """The priorities of one member's transitions at places `(n,)`, in that order."""
        return {"priorities": self._levels[0][member, places], "largest": self._largest[member]}

    def load_state(self, states: Sequence[Mapping[str, Any]], places: Tensor) -> None:
        """Restore `state()`, one per member.

        Args:
            states: one per member.
            places: of the stored transitions, `(n,)`. If a state holds more priorities, the first ones are dropped.

        Raises:
            ValueError: a stored transition has no valid priority.
        """
        self._levels[0].zero_()
        for member, state in enumerate(states):
            own, largest = state["priorities"], state["largest"]
            if not all(isinstance(t, Tensor) and t.dtype is torch.float64 and t.dim() == 1 for t in (own, largest)):
                raise ValueError("the priorities have another shape or type")
            if len(own) < len(places) or len(largest) != 1:
                raise ValueError(f"{len(own)} priorities do not fit {len(places)} transitions")
            if not ((own >= 1).all() and (own <= largest).all() and 1 <= largest <= 2 * LARGEST_ERROR):
                raise ValueError("a priority is not valid")
            self._levels[0][member, places] = own[len(own) - len(places) :].to(self._member.device)
            self._largest[member] = largest
        for level, above in zip(self._levels, self._levels[1:], strict=False):
            sums = level.view(len(level), -1, CHILDREN).sum(dim=-1)
            above.zero_()
            above[:, : sums.shape[1]] = sums

    def _sum_up(self, places: Tensor) -> None:
        """Compute the sums above priorities at places `(S, B)` anew."""
        for level, above in zip(self._levels, self._levels[1:], strict=False):
            places = places // CHILDREN
            above.scatter_(1, places, self._children(level, places).sum(dim=-1))

    def _children(self, level: Tensor, parents: Tensor) -> Tensor:
        """The nodes below each of `(S, B)` nodes: `(S, B, CHILDREN)`."""
        nodes = level.view(-1, CHILDREN)
        index = parents + self._member * (level.shape[1] // CHILDREN)
        return nodes.index_select(0, index.flatten()).view(*parents.shape, CHILDREN)
