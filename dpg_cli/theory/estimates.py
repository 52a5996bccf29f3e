"""Estimates of the deterministic and of the stochastic policy gradient from samples, and their variances.

Symbols are those of `regulator.py`.
"""

import torch
from torch import Tensor

from dpg_cli.theory.regulator import Regulator


def deterministic_samples(regulator: Regulator, gain: Tensor, obs: Tensor) -> Tensor:
    """One estimate of ∇J from each state: ∇μ(s) ∇ₐQ(s, a) / (1 - γ) at a = μ(s).

    Args:
        regulator: the problem.
        gain: K.
        obs: states from (1 - γ) ρ, `(size, n)`.

    Returns:
        `(size, m, n)`.
    """
    action_gradient = obs @ regulator.action_gradient(gain).T
    return torch.einsum("bi,bj->bij", action_gradient, obs) / (1 - regulator.discount)


def score_samples(
    regulator: Regulator, gain: Tensor, obs: Tensor, sigma: float, xi: Tensor, *, baseline: bool = False
) -> Tensor:
    """One estimate of ∇J from each state and action: ∇ log π(a|s) (Q(s, a) - b(s)) / (1 - γ) at a = K s + σ ξ.

    Args:
        regulator: the problem.
        gain: K.
        obs: states from the Gaussian policy's (1 - γ) ρ, `(size, n)`.
        sigma: σ.
        xi: ξ, `(size, m)`.
        baseline: whether b(s) is Q(s, K s); else it is 0.

    Returns:
        `(size, m, n)`.
    """
    mean = obs @ gain.T
    weight = regulator.q(gain, obs, mean + sigma * xi, sigma)
    if baseline:
        weight = weight - regulator.q(gain, obs, mean, sigma)
    score = torch.einsum("bi,bj->bij", xi / sigma, obs)
    return score * weight[:, None, None] / (1 - regulator.discount)


def score_variance(regulator: Regulator, gain: Tensor, obs: Tensor, sigma: float, *, baseline: bool = False) -> Tensor:
    """The variance of `score_samples` given the state, summed over ∇J's entries.

    With Q(s, K s + σ ξ) - b(s) = q + σ gᵀξ - σ² ξᵀH ξ and E[‖ξ‖² f(ξ)] = (m + d) E[f(ξ)] for f of degree d,

        ‖s‖² (m q² / σ² + (m + 1) ‖g‖² - 2 (m + 2) q tr H + σ² (m + 4) ((tr H)² + 2 tr H²)) / (1 - γ)².

    The variance of `deterministic_samples` given the state is 0.

    Args:
        regulator: the problem.
        gain: K.
        obs: states, `(size, n)`.
        sigma: σ.
        baseline: as in `score_samples`; with it q is 0.

    Returns:
        `(size,)`.
    """
    m = len(gain)
    q = torch.zeros(len(obs), dtype=obs.dtype) if baseline else regulator.q(gain, obs, obs @ gain.T, sigma)
    g = obs @ regulator.action_gradient(gain).T
    curvature = regulator.curvature(gain)
    trace, square = curvature.trace(), (curvature @ curvature).trace()
    variance = m * q**2 / sigma**2 + (m + 1) * g.square().sum(dim=-1)
    variance = variance - 2 * (m + 2) * q * trace + sigma**2 * (m + 4) * (trace**2 + 2 * square)
    return obs.square().sum(dim=-1) * variance / (1 - regulator.discount) ** 2


def total_variance(samples: Tensor) -> Tensor:
    """The variance of estimates `(size, m, n)`, summed over their entries: a scalar."""
    return samples.var(dim=0).sum()
