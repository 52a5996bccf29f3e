"""Write a file that is kept only if it acts as the policy."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from dpg_cli.errors import ExportError
from dpg_cli.export.formats import Format
from dpg_cli.policy import Policy
from dpg_cli.spaces import own_actions, scale
from dpg_cli.storage.atomic import Disk, appearing, explaining

TOLERANCE = 1e-5  # of an action's range


def export(
    policy: Policy,
    chosen: Format,
    metadata: Mapping[str, Any],
    obs: np.ndarray,
    out: Path,
    verified: Callable[[], None] = lambda: None,
) -> float | None:
    """Export a policy to a file, which appears only after a check that it acts as the policy.

    Args:
        policy: to export.
        chosen: the format.
        metadata: plain data to store in the file.
        obs: flat observations for the check, `(N, obs_dim)`.
        out: the file, which is replaced if it exists.
        verified: called when the file is about to appear.

    Returns:
        The largest difference between its actions and the policy's, in units of the actions' ranges; None if the file
        cannot be run here.

    Raises:
        ExportError: the difference is above `TOLERANCE`.
        DiskError: the file cannot be written.
    """
    obs = obs.astype(np.float32)
    with explaining(out), appearing(Disk(), out) as file:
        with _quiet():
            file.write_bytes(chosen.write(policy, metadata, out.stem))
            actions = chosen.run(file, obs, out.stem)
        if actions is None:
            verified()
            return None
        box = at_least_float32(policy.action_space)
        own = own_actions(policy.scaled(obs.astype(policy.dtype)), *scale(box), box)
        difference = largest_difference(actions, own, box)
        if not difference <= TOLERANCE:  # also if it is NaN
            exact = own_actions(policy.scaled(obs.astype(np.float64)), *scale(box), box)
            rounding = largest_difference(own, exact, box)
            reason = f", and float32 rounds the policy's own by {rounding:.0e}; algo.normalize_obs=true helps"
            raise ExportError(
                f"{out} was not kept: its actions differ from the policy's by {difference:.1e} of their range, more "
                f"than {TOLERANCE:.0e}{reason if rounding > TOLERANCE / 4 else ''}"
            )
        verified()
    return difference


def at_least_float32(box: spaces.Box) -> spaces.Box:
    """A box of actions whose type holds what a file returns: float16 would round by more than `TOLERANCE`."""
    dtype = np.promote_types(box.dtype, np.float32)
    return spaces.Box(box.low.astype(dtype), box.high.astype(dtype), dtype=dtype.type)


def largest_difference(actions: np.ndarray, expected: np.ndarray, box: spaces.Box) -> float:
    """The largest difference between actions, relative to each action's range.

    Args:
        actions: `(N, *box)`, or flat.
        expected: `(N, *box)`.
        box: of the actions.
    """
    actions, expected = (part.reshape(len(part), -1).astype(np.float64) for part in (actions, expected))
    low, high = (bound.ravel().astype(np.float64) for bound in (box.low, box.high))
    fixed = low == high  # an action without a range is what it is in float32
    expected = np.where(fixed, expected.astype(np.float32), expected)
    return float((np.abs(actions - expected) / np.where(fixed, 1.0, high - low)).max())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of exporters about their own parts."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
