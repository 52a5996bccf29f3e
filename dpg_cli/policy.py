"""Use a trained policy in Python: `load_policy(run)`. It needs neither the environment nor torch."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from dpg_cli.errors import UserError
from dpg_cli.spaces import flat_size, flattener, own_actions, scale
from dpg_cli.storage.checkpoint_folder import find
from dpg_cli.storage.policy_file import StoredPolicy, read_policy
from dpg_cli.storage.untrusted import read_yaml


class Policy:
    """A trained policy: `action = policy(obs)`.

    Attributes:
        env_id: the environment that it was trained in.
        observation_space: of that environment.
        action_space: of that environment.
        step: the environment step at which it was saved.
        config: the run's `config.yaml`, as plain dictionaries and lists.
        metadata: what the policy file says about itself, as plain data.
        layers: from a flat observation to an action in [-1, 1].
        dtype: of the arithmetic.
        obs_dim: size of a flat observation.
    """

    def __init__(self, stored: StoredPolicy, config: dict[str, Any]):
        self._stored = stored
        self.env_id, self.step, self.config = stored.env_id, stored.step, config
        self.observation_space, self.action_space = stored.observation_space, stored.action_space
        self.metadata, self.layers, self.dtype = stored.metadata, stored.layers, stored.dtype
        self.obs_dim = flat_size(self.observation_space)
        self._flatten = flattener(self.observation_space, self.dtype)
        self._low, self._half_range = scale(self.action_space)

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets a policy be pickled, for workers in other processes."""
        return Policy, (self._stored, self.config)

    def __call__(self, obs: Any) -> np.ndarray:
        """The action for an observation.

        Args:
            obs: as the environment returns it: an array, or a dictionary or tuple of arrays. Extra leading axes, the
                same for all arrays, are a batch.

        Returns:
            The action as the environment takes it: its units, shape and type, within its bounds. Leading axes are those
            of `obs`. The array is new at every call.

        Raises:
            UserError: the observation does not fit the observation space, or a number in it is not finite.
        """
        flat = self._flatten(obs)
        if not np.isfinite(flat).all():
            raise UserError(
                f"the observation holds a number that is not finite in {self.dtype} (NaN, infinite or too large)"
            )
        return own_actions(self.scaled(flat), self._low, self._half_range, self.action_space)

    def scaled(self, flat: np.ndarray) -> np.ndarray:
        """The action in [-1, 1]^n, `(..., n)`, for flat observations, `(..., obs_dim)` in `dtype`, without checks."""
        x = flat
        for layer in self.layers:
            x = layer(x)
        return x

    def reset(self) -> None:
        """Start an episode. Policies without memory, as all are at present, need no reset: this does nothing."""


def load_policy(run: str | os.PathLike[str], checkpoint: str | int = "best") -> Policy:
    """Load a trained policy from a run folder, which may come from a stranger: nothing in it is executed.

    Args:
        run: the run folder; of several seeds, the folder of one, `RUN_DIR/seed_0`.
        checkpoint: `best`, `latest` or a step.

    Raises:
        UserError: there is no such run or checkpoint, a file is damaged, or an earlier version of dpg-cli wrote the
            policy without a description of itself.
    """
    folder = Path(run)
    if not os.path.isdir(folder):  # a name that is too long raises in Path.is_dir
        raise UserError(f"{folder}: no such folder")
    if seeds := sorted((path for path in folder.glob("seed_*") if re.fullmatch(r"seed_\d+", path.name)), key=_seed):
        names = ", ".join(path.name for path in seeds)
        raise UserError(f"{folder}: holds several seeds, {names}; load one of them, such as {seeds[0]}")
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder}: not a run folder: it has no config.yaml")
    config = read_yaml(folder / "config.yaml")
    return Policy(read_policy(find(folder, str(checkpoint))), config)


def _seed(folder: Path) -> int:
    return int(folder.name.removeprefix("seed_"))
