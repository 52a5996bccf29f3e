"""Write a file that is kept only if it acts as the policy."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpg_cli.errors import ExportError
from dpg_cli.export.formats import Format
from dpg_cli.policy import Policy
from dpg_cli.storage.atomic import Disk, appearing, explaining

TOLERANCE = 1e-5  # of an action's range


def export(policy: Policy, chosen: Format, metadata: Mapping[str, Any], obs: np.ndarray, out: Path) -> float | None:
    """Export a policy to a file, which appears only after a check that it acts as the policy.

    Args:
        policy: to export.
        chosen: the format.
        metadata: plain data to store in the file.
        obs: flat observations for the check, `(N, obs_dim)`.
        out: the file, which is replaced if it exists.

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
            return None
        difference = largest_difference(policy, obs, actions)
        if not difference <= TOLERANCE:  # also if it is NaN
            raise ExportError(
                f"{out}: its actions differ from the policy's by {difference:.1e} of the action's range, more than "
                f"{TOLERANCE:.0e}; the file was not kept"
            )
    return difference


def largest_difference(policy: Policy, obs: np.ndarray, actions: np.ndarray) -> float:
    """The largest difference between actions and the policy's, relative to each action's range.

    Args:
        policy: to compare with.
        obs: flat observations, `(N, obs_dim)`.
        actions: `(N, action_dim)`, float32.
    """
    own = policy.from_flat(obs.astype(policy.dtype)).reshape(len(obs), -1).astype(np.float64)
    low, high = (bound.astype(np.float64).ravel() for bound in (policy.action_space.low, policy.action_space.high))
    fixed = low == high  # an action without a range is what it is in float32
    difference = np.abs(actions - np.where(fixed, own.astype(np.float32), own)) / np.where(fixed, 1.0, high - low)
    return float(difference.max())


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
