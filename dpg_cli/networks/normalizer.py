"""Normalisation of observations."""

from typing import Any

import torch
from torch import Tensor


class Normalizer:
    """Running mean and variance of each member's observations, merged as in Chan et al. 1979; or fixed ones.

    Args:
        num_seeds: S.
        obs_dim: size of an observation.
        clip: bound of normalised observations; None: unbounded.
        device: of the statistics.
    """

    EPSILON = 1e-8  # added to the variance

    def __init__(self, num_seeds: int, obs_dim: int, clip: float | None, device: torch.device | str = "cpu"):
        self._clip = clip
        self.mean = torch.zeros(num_seeds, 1, obs_dim, dtype=torch.float64, device=device)
        self.var = torch.ones(num_seeds, 1, obs_dim, dtype=torch.float64, device=device)
        self.count = torch.zeros(num_seeds, 1, 1, dtype=torch.float64, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """The statistics by name, `(S, 1, ·)`."""
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def describe(self, name: str) -> list[dict[str, Any]]:
        """The layer in a policy file in which `tensors()` have names that begin with `name`; see `dpg_cli.layers`."""
        constants = {"epsilon": self.EPSILON, "clip": self._clip}
        return [{"type": "normalize", "mean": f"{name}.mean", "var": f"{name}.var", **constants}]

    def update(self, obs: Tensor) -> None:
        """Update the statistics with new observations, `(S, N, obs_dim)`."""
        obs = obs.to(self.mean.dtype)
        n = obs.shape[-2]
        total = self.count + n
        delta = obs.mean(dim=-2, keepdim=True) - self.mean
        squares = self.var * self.count + obs.var(dim=-2, keepdim=True, correction=0) * n
        squares += delta.square() * self.count * n / total
        self.mean += delta * n / total
        self.var.copy_(squares / total)
        self.count.copy_(total)

    def fix(self, mean: Tensor, std: Tensor, count: int) -> None:
        """Set the statistics of all members to those of a data set.

        Args:
            mean: `(obs_dim,)`.
            std: `(obs_dim,)`, positive; what observations are divided by.
            count: of observations. If `update` follows, those of the data set weigh as much as new ones.
        """
        self.mean.copy_(mean)
        self.var.copy_(std.square() - self.EPSILON)
        self.count.fill_(count)

    def __call__(self, obs: Tensor) -> Tensor:
        """`(S, B, obs_dim)`, normalised."""
        std = (self.var + self.EPSILON).sqrt()
        normalized = (obs - self.mean.to(obs.dtype)) / std.to(obs.dtype)
        return normalized if self._clip is None else normalized.clamp(-self._clip, self._clip)
