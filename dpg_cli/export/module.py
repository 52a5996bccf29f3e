"""A policy as a plain torch module, for torch's exporters: nn.Linear and the like, given the weights."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpg_cli.export.box import box_in_float32
from dpg_cli.layers import AvgL1Norm, Concatenate, Dense, Elu, Layer, LayerNorm, Normalize, Relu, Residual
from dpg_cli.policy import Policy


class Normalizer(nn.Module):
    """Subtract the mean, divide by the standard deviation, clip if there is a clip."""

    mean: Tensor
    std: Tensor

    def __init__(self, layer: Normalize):
        super().__init__()
        self.register_buffer("mean", _float32(layer.mean))
        self.register_buffer("std", _float32(layer.std))
        self.clip = layer.clip

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in)` to `(B, in)`."""
        y = (x - self.mean) / self.std
        return y if self.clip is None else y.clamp(-self.clip, self.clip)


class ResidualBlock(nn.Module):
    """x + f(x)."""

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in)` to `(B, in)`."""
        y: Tensor = x + self.f(x)
        return y


class Branches(nn.Module):
    """f(x), g(x), … side by side."""

    def __init__(self, branches: Iterable[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in)` to `(B, out)`."""
        return torch.cat([branch(x) for branch in self.branches], dim=-1)


class DivideByMeanSize(nn.Module):
    """x / max(mean|x|, ε) over the features."""

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in)` to `(B, in)`."""
        return x / x.abs().mean(dim=-1, keepdim=True).clamp(min=self.epsilon)


class ToBox(nn.Module):
    """Map actions from [-1, 1]^n to the environment's box, flat, and clip them to it."""

    half_range: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, policy: Policy):
        super().__init__()
        for name, values in box_in_float32(policy)._asdict().items():
            self.register_buffer(name, torch.from_numpy(values))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, n)` to `(B, n)`."""
        return torch.minimum(torch.maximum((x + 1.0) * self.half_range + self.low, self.low), self.high)


def plain_module(policy: Policy) -> nn.Sequential:
    """A module from observations `(B, obs_dim)` to actions `(B, action_dim)` in the environment's units, in float32."""
    return nn.Sequential(*map(_module, policy.layers), ToBox(policy)).eval().requires_grad_(False)


def _module(layer: Layer) -> nn.Module:
    if isinstance(layer, Dense):
        inputs, outputs = layer.weight.shape
        linear = nn.Linear(inputs, outputs, device="meta")  # without drawing weights that are replaced
        linear.weight = nn.Parameter(_float32(layer.weight.T.copy()))
        linear.bias = nn.Parameter(_float32(layer.bias))
        return linear
    if isinstance(layer, Normalize):
        return Normalizer(layer)
    if isinstance(layer, LayerNorm):
        norm = nn.LayerNorm(len(layer.weight), layer.epsilon, device="meta")
        norm.weight, norm.bias = nn.Parameter(_float32(layer.weight)), nn.Parameter(_float32(layer.bias))
        return norm
    if isinstance(layer, AvgL1Norm):
        return DivideByMeanSize(layer.epsilon)
    if isinstance(layer, Residual):
        return ResidualBlock(nn.Sequential(*map(_module, layer.layers)))
    if isinstance(layer, Concatenate):
        return Branches(nn.Sequential(*map(_module, branch)) for branch in layer.branches)
    return nn.ReLU() if isinstance(layer, Relu) else nn.ELU() if isinstance(layer, Elu) else nn.Tanh()


def _float32(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
