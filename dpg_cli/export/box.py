"""The box of a policy's actions in float32, the type of exported files."""

from typing import NamedTuple

import numpy as np

from dpg_cli.policy import Policy
from dpg_cli.spaces import scale


class Box(NamedTuple):
    """The constants that map [-1, 1]^n to a box, flat."""

    low: np.ndarray
    high: np.ndarray
    half_range: np.ndarray


def box_in_float32(policy: Policy) -> Box:
    """The box of a policy's actions. Bounds are rounded inwards, so that no action leaves the exact box."""
    low, half_range = scale(policy.action_space)
    high = policy.action_space.high.astype(np.float64).ravel()
    return Box(_rounded(low, high), _rounded(high, low), half_range.astype(np.float32))


def _rounded(bound: np.ndarray, opposite: np.ndarray) -> np.ndarray:
    nearest = bound.astype(np.float32)
    inwards: np.ndarray = np.nextafter(nearest, opposite.astype(np.float32))
    return np.where((nearest - bound) * (opposite - bound) < 0, inwards, nearest)
