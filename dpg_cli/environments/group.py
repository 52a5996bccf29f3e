"""A group of environments: the interface for training and evaluation, and environments in this process."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from dpg_cli.environments.make import FlatEnv, times_unstable
from dpg_cli.environments.plain_data import CannotCopy
from dpg_cli.environments.pool import Instance, Renewal, close
from dpg_cli.environments.returns import ReturnError, as_number, failure, numbers_in
from dpg_cli.environments.state import get_state, set_state
from dpg_cli.environments.threads import PLAIN_LOOP, EnvThreads
from dpg_cli.errors import SimulatorError, UserError

log = logging.getLogger(__name__)

Env = gym.Env[np.ndarray, np.ndarray]
Kind = Literal["training", "evaluation"]


class BadRewardError(Exception):
    """A reward is not finite, or too large to be stored."""

    def __init__(self, position: int):
        super().__init__(position)
        self.position = position


class Stepped(NamedTuple):
    """Arrays that receive what N environments return from a step."""

    obs: np.ndarray  # (N, obs_dim)
    reward: np.ndarray  # (N,)
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool


class EnvGroup(Protocol):
    """N environments of one kind, numbered by position from 0.

    Errors of environments are raised; of several errors, the one at the lowest position.
    """

    @property
    def example(self) -> Env:
        """One environment like the others, for its spaces and its specification."""

    def __len__(self) -> int:
        """N, the number of environments."""

    def reset(self, seeds: Sequence[int], obs: np.ndarray) -> None:
        """Start an episode in every environment, each with its own seed; `obs`, `(N, obs_dim)`, is overwritten."""

    def step(self, action: np.ndarray, stepped: Stepped, running: np.ndarray | None = None) -> None:
        """Step the environments.

        Args:
            action: `(N, action_dim)` in [-1, 1].
            stepped: receives the results of the environments that are stepped.
            running: `(N,)` bool, the environments to step; None for all.

        Raises:
            BadRewardError: a reward is not finite or too large; the environments after it may not have been stepped.
            ValueError: an observation does not have its space's shape.
        """

    def unstable(self) -> int | None:
        """The first position at which the last step made MuJoCo's simulation unstable; else None."""

    def infos(self, positions: Sequence[int]) -> list[dict[str, float]]:
        """The numbers in `info` at positions where the last step ended an episode."""

    def restart(self, positions: Sequence[int], obs: np.ndarray) -> None:
        """Start a new episode where the last training step ended one, and write its observation to `(N, obs_dim)`."""

    def get_states(self, positions: range) -> list[Any]:
        """States of the simulators at some positions; None where an attribute has come to be no plain data."""

    def set_states(self, states: Sequence[Any], seeds: Sequence[int], obs: np.ndarray) -> list[str | None]:
        """Restore the simulators' states; start a new episode where that is impossible.

        Args:
            states: one per environment; None where none was saved.
            seeds: of the new episodes.
            obs: `(N, obs_dim)`; receives the observations of new episodes.

        Returns:
            For each environment, why a new episode was started; None if its state was restored.

        Raises:
            ValueError: a state is invalid.
        """

    def close(self) -> None:
        """Close every environment."""


class LocalEnvs:
    """Environments in this process, an `EnvGroup`.

    Every evaluation starts from environments as they were created, so that none depends on those before it.

    Args:
        envs: in order, just created.
        kind: what they are for.
        threads: that step them.
        first: position of the first environment, for errors.
        create: creates an environment; None if no other is to be created.
        renewal: what evaluations do with their environments before they start. Those that cannot be put back are
            created again.
    """

    def __init__(
        self,
        envs: Sequence[Env],
        kind: Kind = "training",
        threads: EnvThreads = PLAIN_LOOP,
        first: int = 0,
        create: Callable[[], Env] | None = None,
        renewal: Renewal = "put back",
    ):
        self.threads = threads
        self._kind = kind
        self._first = first
        self._create, self._renewal = create, renewal
        self._used = False
        # Rewards of training must fit into the replay.
        stored = envs[0].observation_space.dtype if kind == "training" else np.dtype(np.float64)
        self._largest_reward = float(np.finfo(stored).max)
        self._hold(envs)

    def _hold(self, envs: Sequence[Env]) -> None:
        self.envs = envs
        self._instances = [Instance(env) for env in envs]
        steps: list[Callable[[np.ndarray], tuple[Any, ...]]] = [env.step for env in envs]
        self._own_actions: Callable[[np.ndarray], np.ndarray] = np.asarray
        flat = [env for env in envs if isinstance(env, FlatEnv)]
        if len(flat) == len(envs) > 1:  # one call maps all actions, as the boxes are equal; slower for one
            steps = [env.step_own for env in flat]
            self._own_actions = flat[0].own_actions
        self._steps = list(enumerate(steps))
        self._infos: list[Any] = [None] * len(envs)
        warnings = [(position, times_unstable(env)) for position, env in enumerate(envs)]
        self._warnings = [(position, times, bytes(times.nbytes)) for position, times in warnings if times is not None]

    @property
    def example(self) -> Env:
        """The first environment."""
        return self.envs[0]

    def __len__(self) -> int:
        """The number of environments."""
        return len(self.envs)

    def reset(self, seeds: Sequence[int], obs: np.ndarray) -> None:
        """Start an episode in every environment."""
        if self._used and self._kind == "evaluation":
            self._renew()
        self._used = True
        for position, (env, seed) in enumerate(zip(self.envs, seeds, strict=True)):
            put(obs, position, _reset(env, seed))

    def _renew(self) -> None:
        """Put every environment back into the state in which it was created, or create it again."""
        if self._renewal == "keep":
            return
        fresh = [self._renewal == "put back" and instance.put_back() for instance in self._instances]
        if all(fresh) or self._create is None:
            return
        for env, kept in zip(self.envs, fresh, strict=True):
            if not kept:
                close(env)
        try:
            self._hold([env if kept else self._create() for env, kept in zip(self.envs, fresh, strict=True)])
        except UserError as error:
            raise SimulatorError(f"an environment cannot be created again: {error}") from error

    def step(self, action: np.ndarray, stepped: Stepped, running: np.ndarray | None = None) -> None:
        """Step the environments."""
        obs, reward, terminated, truncated = stepped
        own, largest_reward = self._own_actions(action), self._largest_reward

        def work(part: Sequence[tuple[int, Callable[[np.ndarray], tuple[Any, ...]]]]) -> None:
            for i, step in part:
                try:
                    observed, number, terminated[i], truncated[i], self._infos[i] = step(own[i, ...])
                except (Exception, SystemExit) as error:
                    raise failure(self.envs[i], error) from error
                reward[i] = number if type(number) is float else as_number(number, self.envs[i])
                put(obs, i, observed)
                if not abs(reward[i]) <= largest_reward:
                    raise BadRewardError(self._first + i)

        steps = self._steps if running is None else [entry for entry in self._steps if running.item(entry[0])]
        self.threads.run(self._kind, work, steps)

    def unstable(self) -> int | None:
        """The first position whose simulation became unstable; else None."""
        for position, times, none in self._warnings:
            if times.tobytes() != none:  # ten times as fast as times.any()
                return self._first + position
        return None

    def infos(self, positions: Sequence[int]) -> list[dict[str, float]]:
        """The numbers in `info` at positions where the last step ended an episode."""
        return [numbers_in(self._infos[position]) for position in positions]

    def restart(self, positions: Sequence[int], obs: np.ndarray) -> None:
        """Start new episodes."""
        for position in positions:
            put(obs, position, _reset(self.envs[position]))

    def get_states(self, positions: range) -> list[Any]:
        """States of the simulators at some positions."""
        return [self._get_state(position) for position in positions]

    def _get_state(self, position: int) -> Any:
        try:
            return get_state(self.envs[position], self._instances[position].constants)
        except CannotCopy as error:
            log.warning("the state of an environment cannot be saved at this checkpoint: %s", error)
            return None

    def set_states(self, states: Sequence[Any], seeds: Sequence[int], obs: np.ndarray) -> list[str | None]:
        """Restore the simulators' states, or start new episodes."""
        return [self._set_state(*each, obs) for each in zip(range(len(self)), states, seeds, strict=True)]

    def _set_state(self, position: int, state: Any, seed: int, obs: np.ndarray) -> str | None:
        env = self.envs[position]
        env.reset(seed=seed)
        try:
            if state is None:
                raise CannotCopy("the state of the last one was not saved")
            set_state(env, state)
        except CannotCopy as error:  # such as another model, with other versions
            put(obs, position, env.reset(seed=seed)[0])
            return str(error)
        return None

    def close(self) -> None:
        """End the threads and close every environment, unless one hangs and is still being stepped."""
        if self.threads.close():
            for env in reversed(self.envs):
                close(env)


def put(array: np.ndarray, position: int, obs: np.ndarray) -> None:
    """Store an environment's observation in its row.

    Raises:
        ReturnError: it does not have its space's shape; NumPy would silently broadcast it.
    """
    if obs.shape != array.shape[1:]:
        raise ReturnError(f"an observation has shape {obs.shape}, but its space has shape {array.shape[1:]}")
    array[position] = obs


def _reset(env: Env, seed: int | None = None) -> np.ndarray:
    try:
        return env.reset(seed=seed)[0]
    except (Exception, SystemExit) as error:
        raise failure(env, error) from error
