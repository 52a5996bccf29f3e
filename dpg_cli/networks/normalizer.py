"""Normalisation of observations."""

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Running mean and variance of each member's observations, merged as in Chan et al. 1979.

    Args:
        num_seeds: S.
        obs_dim: size of an observation.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    EPSILON = 1e-8  # added to the variance
    CLIP = 10.0

    def __init__(self, num_seeds: int, obs_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_seeds, 1, obs_dim, dtype=torch.float64))
        self.register_buffer("var", torch.ones(num_seeds, 1, obs_dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(num_seeds, 1, 1, dtype=torch.float64))

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

    def forward(self, obs: Tensor) -> Tensor:
        """`(S, B, obs_dim)`, normalised and clipped to ±10."""
        std = (self.var + self.EPSILON).sqrt()
        normalized = (obs - self.mean.to(obs.dtype)) / std.to(obs.dtype)
        return normalized.clamp(-self.CLIP, self.CLIP)
