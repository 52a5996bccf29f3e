"""Environments as one group: what training and evaluation ask of them, wherever they run."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from dpg_cli.environments.make import FlatEnv, times_unstable
from dpg_cli.environments.state import CannotCopy, get_state, set_state
from dpg_cli.environments.threads import PLAIN_LOOP, EnvThreads

Env = gym.Env[np.ndarray, np.ndarray]
Kind = Literal["training", "evaluation"]


class BadRewardError(Exception):
    """A reward is not finite, or larger than can be stored."""

    def __init__(self, position: int):
        super().__init__(position)
        self.position = position


class Stepped(NamedTuple):
    """What N environments return from a step, in arrays that are written to."""

    obs: np.ndarray  # (N, obs_dim)
    reward: np.ndarray  # (N,)
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool


class EnvGroup(Protocol):
    """N environments of one kind. A position counts them in order, from 0.

    Whatever an environment raises is raised; of several errors the first in the order of the environments.
    """

    @property
    def example(self) -> Env:
        """One environment like the others, for its spaces and its specification."""

    def __len__(self) -> int:
        """N."""

    def reset(self, seeds: Sequence[int], obs: np.ndarray) -> None:
        """Begin an episode in every environment, each with its own seed; observations are written to `(N, obs_dim)`."""

    def step(self, action: np.ndarray, stepped: Stepped, running: np.ndarray | None = None) -> None:
        """Step the environments.

        Args:
            action: `(N, action_dim)` in [-1, 1].
            stepped: written to where an environment was stepped.
            running: `(N,)` bool, the environments to step; None for all.

        Raises:
            BadRewardError: a reward is not finite or too large; the environments after it may not have been stepped.
            ValueError: an observation has another shape than its space says.
        """

    def unstable(self) -> int | None:
        """The first position at which the last step made MuJoCo's simulation unstable."""

    def restart(self, positions: Sequence[int], obs: np.ndarray) -> None:
        """Begin a new episode where the last training step ended one; observations are written to `(N, obs_dim)`."""

    def get_states(self, positions: range) -> list[Any]:
        """States of simulators.

        Raises:
            CannotCopy: an environment holds something that is no plain data.
        """

    def set_states(self, states: Sequence[Any], seeds: Sequence[int], obs: np.ndarray) -> list[str | None]:
        """Go on from states, one for each environment; begin a new episode where that is not possible.

        Args:
            states: None for an environment without one.
            seeds: of the new episodes.
            obs: `(N, obs_dim)`; the observations of new episodes are written to it.

        Returns:
            For each environment why a new episode was begun, None if it was not.

        Raises:
            ValueError: no environment has such a state.
        """

    def close(self) -> None:
        """Close every environment."""


class LocalEnvs:
    """Environments in this process, an `EnvGroup`.

    Args:
        envs: in order.
        kind: what they are for.
        threads: step them.
        first: the position of the first, for errors.
    """

    def __init__(
        self,
        envs: Sequence[Env],
        kind: Kind = "training",
        threads: EnvThreads = PLAIN_LOOP,
        first: int = 0,
    ):
        self.envs = envs
        self.threads = threads
        self._kind = kind
        self._first = first
        # A training's rewards must fit into the replay.
        stored = envs[0].observation_space.dtype if kind == "training" else np.dtype(np.float64)
        self._largest_reward = float(np.finfo(stored).max)
        steps: list[Callable[[np.ndarray], tuple[Any, ...]]] = [env.step for env in envs]
        self._own_actions: Callable[[np.ndarray], np.ndarray] = np.asarray
        flat = [env for env in envs if isinstance(env, FlatEnv)]
        if len(flat) == len(envs) > 1:  # they have one box, so one call maps all actions; for one alone it is slower
            steps = [env.step_own for env in flat]
            self._own_actions = flat[0].own_actions
        self._steps = list(enumerate(steps))
        warnings = [(position, times_unstable(env)) for position, env in enumerate(envs)]
        self._warnings = [(position, times, bytes(times.nbytes)) for position, times in warnings if times is not None]

    @property
    def example(self) -> Env:
        """The first."""
        return self.envs[0]

    def __len__(self) -> int:
        """How many."""
        return len(self.envs)

    def reset(self, seeds: Sequence[int], obs: np.ndarray) -> None:
        """Begin an episode in every environment."""
        for position, (env, seed) in enumerate(zip(self.envs, seeds, strict=True)):
            put(obs, position, env.reset(seed=seed)[0])

    def step(self, action: np.ndarray, stepped: Stepped, running: np.ndarray | None = None) -> None:
        """Step the environments."""
        obs, reward, terminated, truncated = stepped
        own, largest_reward = self._own_actions(action), self._largest_reward

        def work(part: Sequence[tuple[int, Callable[[np.ndarray], tuple[Any, ...]]]]) -> None:
            for i, step in part:
                observed, reward[i], terminated[i], truncated[i], _ = step(own[i])
                put(obs, i, observed)
                if not abs(reward[i]) <= largest_reward:
                    raise BadRewardError(self._first + i)

        steps = self._steps if running is None else [entry for entry in self._steps if running.item(entry[0])]
        self.threads.run(self._kind, work, steps)

    def unstable(self) -> int | None:
        """The first whose simulation became unstable."""
        for position, times, none in self._warnings:
            if times.tobytes() != none:  # ten times as fast as times.any()
                return self._first + position
        return None

    def restart(self, positions: Sequence[int], obs: np.ndarray) -> None:
        """Begin new episodes."""
        for position in positions:
            put(obs, position, self.envs[position].reset()[0])

    def get_states(self, positions: range) -> list[Any]:
        """States of simulators."""
        return [get_state(self.envs[position]) for position in positions]

    def set_states(self, states: Sequence[Any], seeds: Sequence[int], obs: np.ndarray) -> list[str | None]:
        """Go on from states, or begin new episodes."""
        return [self._set_state(*each, obs) for each in zip(range(len(self)), states, seeds, strict=True)]

    def _set_state(self, position: int, state: Any, seed: int, obs: np.ndarray) -> str | None:
        env = self.envs[position]
        env.reset(seed=seed)
        try:
            if state is None:
                raise CannotCopy("the one under way could not be copied")
            set_state(env, state)
        except CannotCopy as error:  # with other versions, its model may be another one
            put(obs, position, env.reset(seed=seed)[0])
            return str(error)
        return None

    def close(self) -> None:
        """End the threads and close every environment, unless one hangs and is still being stepped."""
        with contextlib.ExitStack() as each:  # also those after one that raises
            if self.threads.close():
                for env in reversed(self.envs):
                    each.callback(env.close)


def put(array: np.ndarray, position: int, obs: np.ndarray) -> None:
    """Store an environment's observation in its row.

    Raises:
        ValueError: it has another shape than its space says, which NumPy would stretch without a word.
    """
    if obs.shape != array.shape[1:]:
        raise ValueError(f"the environment observed {obs.shape} numbers; its space says {array.shape[1:]}")
    array[position] = obs
