"""Step the environments of all members, and check that what they return is finite."""

from collections.abc import Sequence

import numpy as np

from dpg_cli.environments.group import BadRewardError, EnvGroup, Stepped
from dpg_cli.errors import DivergedError


class Stepper:
    """Steps the environments of all members and checks what they return.

    Args:
        envs: S members with E environments each, in order.
        seeds: one per member.
    """

    def __init__(self, envs: EnvGroup, seeds: Sequence[int]):
        self._envs = envs
        self._seeds = seeds
        self._shape = (len(seeds), len(envs) // len(seeds))

    def step(
        self, when: str, action: np.ndarray, obs: np.ndarray, running: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step environments and check that everything they return is finite.

        Args:
            when: for messages.
            action: `(S, E, action_dim)` in [-1, 1].
            obs: `(S, E, obs_dim)`; receives the observations.
            running: `(S, E)`, the environments to step; None for all.

        Returns:
            Reward, terminated and truncated, `(S, E)`, with 0 and False for environments that were not stepped.

        Raises:
            DivergedError: an action, a reward, an observation or a simulation is not finite.
            ValueError: an observation does not have its space's shape.
        """
        check_finite(self._seeds, when, action=action)
        reward = np.zeros(self._shape)
        terminated, truncated = np.zeros(self._shape, bool), np.zeros(self._shape, bool)
        stepped = Stepped(by_position(obs), reward.reshape(-1), terminated.reshape(-1), truncated.reshape(-1))
        try:
            self._envs.step(by_position(action), stepped, None if running is None else running.reshape(-1))
        except BadRewardError as bad:
            raise DivergedError(f"seed {self._seed(bad.position)}, {when}: reward is not finite") from None
        check_finite(self._seeds, when, obs=obs)
        if (position := self._envs.unstable()) is not None:
            raise DivergedError(
                f"seed {self._seed(position)}, {when}: the simulation became unstable and was reset by MuJoCo"
            )
        return reward, terminated, truncated

    def _seed(self, position: int) -> int:
        return self._seeds[position // self._shape[1]]


def by_position(array: np.ndarray) -> np.ndarray:
    """`(S, E, ...)` as `(S * E, ...)`, in the same memory if it is contiguous."""
    return array.reshape(-1, array.shape[-1])


def check_finite(seeds: Sequence[int], when: str, **quantities: np.ndarray) -> None:
    """Check that quantities, each `(S, ...)`, hold no NaN or infinity.

    Raises:
        DivergedError: one does; the message names the seed, `when` and the quantity.
    """
    for name, values in quantities.items():
        if b"\0" in np.isfinite(values).tobytes():  # takes half as long as .all()
            member = int(np.argwhere(~np.isfinite(values))[0][0])
            raise DivergedError(f"seed {seeds[member]}, {when}: {name} is not finite")
