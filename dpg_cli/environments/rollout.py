"""Acting in the training environments: `collect()`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dpg_cli.environments.group import EnvGroup
from dpg_cli.environments.stepper import Stepper, by_position, check_finite
from dpg_cli.noise import Noise
from dpg_cli.seeding import Purpose, generator, integer


class Transition(NamedTuple):
    """One step of E environments for each of S members."""

    obs: np.ndarray  # (S, E, obs_dim)
    action: np.ndarray  # (S, E, action_dim), in [-1, 1]
    reward: np.ndarray  # (S, E)
    next_obs: np.ndarray  # (S, E, obs_dim); at an episode's end its true final observation, never a reset's
    terminated: np.ndarray  # (S, E) bool
    truncated: np.ndarray  # (S, E) bool


class Episode(NamedTuple):
    """A finished training episode."""

    member: int
    episode_return: float
    length: int
    info: Mapping[str, float] = {}  # the numbers in the `info` of its last step


class Environments:
    """The training environments of all members, and the progress of their episodes.

    Args:
        envs: S members with E environments each, in order.
        seeds: one per member.
        copyable: whether `get_state` can copy them in the middle of an episode.

    Attributes:
        restarts: where `load_state` has started new episodes, and why.
    """

    def __init__(self, envs: EnvGroup, seeds: Sequence[int], *, copyable: bool = True):
        self.envs = envs
        self.copyable = copyable
        self.seeds = seeds
        self.restarts: list[str] = []
        self.num_envs = len(envs) // len(seeds)
        shape = (len(seeds), self.num_envs)
        space = envs.example.observation_space
        self.obs = np.empty((*shape, space.shape[0]), space.dtype)  # type: ignore[index]
        self._returns = np.zeros(shape)
        self._lengths = np.zeros(shape, np.int64)
        self.action_dim: int = envs.example.action_space.shape[0]  # type: ignore[index]
        self._stepper = Stepper(envs, seeds)
        self._random = [[generator(s, Purpose.RANDOM_ACTION, e) for e in range(shape[1])] for s in seeds]

    def reset(self) -> None:
        """Start every environment's first episode, each from its own seed."""
        self.envs.reset(self._env_seeds(), by_position(self.obs))
        check_finite(self.seeds, "step 0", obs=self.obs)

    def random_action(self) -> np.ndarray:
        """Uniform actions in [-1, 1], `(S, E, action_dim)`."""
        size = self.action_dim
        return np.array([[g.uniform(-1.0, 1.0, size) for g in member] for member in self._random])

    def step(self, step: int, action: np.ndarray) -> tuple[Transition, list[Episode]]:
        """Step every environment; start a new episode where one ended.

        Args:
            step: number of this environment step, for messages.
            action: `(S, E, action_dim)` in [-1, 1].

        Returns:
            The transition and the episodes that it ended.

        Raises:
            DivergedError: an action, a reward or an observation is not finite.
        """
        when = f"step {step}"
        obs, next_obs = self.obs, np.empty_like(self.obs)
        reward, terminated, truncated = self._stepper.step(when, action, next_obs)
        self._returns += reward
        self._lengths += 1
        over = terminated | truncated
        if b"\1" not in over.tobytes():  # faster than over.any()
            self.obs = next_obs
            return Transition(obs, action, reward, next_obs, terminated, truncated), []
        self.obs, episodes = next_obs.copy(), []
        ended = np.flatnonzero(over).tolist()
        for position, info in zip(ended, self.envs.infos(ended), strict=True):
            i = divmod(position, self.num_envs)
            episodes.append(Episode(i[0], float(self._returns[i]), int(self._lengths[i]), info))
            self._returns[i], self._lengths[i] = 0.0, 0
        self.envs.restart(ended, by_position(self.obs))
        check_finite(self.seeds, when, obs=self.obs)
        return Transition(obs, action, reward, next_obs, terminated, truncated), episodes

    def state(self, member: int) -> dict[str, Any]:
        """The state of one member's environments; without the simulators if they cannot be copied."""
        positions = range(member * self.num_envs, (member + 1) * self.num_envs)
        return {
            "simulators": self.envs.get_states(positions) if self.copyable else None,
            "obs": self.obs[member].copy(),
            "returns": self._returns[member].copy(),
            "lengths": self._lengths[member].copy(),
            "random": [g.bit_generator.state for g in self._random[member]],
        }

    def load_state(self, states: Sequence[Mapping[str, Any]], step: int) -> np.ndarray:
        """Restore states from `state()`; start a new episode where a simulator's is missing or does not fit.

        Args:
            states: one per member.
            step: environment step of the states; the seeds of new episodes depend on it.

        Returns:
            Where new episodes were started, `(S, E)` bool.

        Raises:
            ValueError: a state is invalid.
        """
        simulators: list[Any] = []
        for member, state in enumerate(states):
            for name, array in {"obs": self.obs, "returns": self._returns, "lengths": self._lengths}.items():
                array[member] = np.reshape(state[name], array[member].shape)
            for stream, own in zip(self._random[member], state["random"], strict=True):
                stream.bit_generator.state = own
            own_simulators = state["simulators"]
            simulators += [None if own_simulators is None else own_simulators[e] for e in range(self.num_envs)]
        reasons = self.envs.set_states(simulators, self._env_seeds(step), by_position(self.obs))
        anew = np.reshape([reason is not None for reason in reasons], self.obs.shape[:2])
        self.restarts = [
            f"seed {self.seeds[position // self.num_envs]}: a new episode starts: {reason}"
            for position, reason in enumerate(reasons)
            if reason is not None
        ]
        self._returns[anew], self._lengths[anew] = 0.0, 0
        return anew

    def _env_seeds(self, *index: int) -> list[int]:
        return [integer(s, Purpose.ENVIRONMENT, e, *index) for s in self.seeds for e in range(self.num_envs)]

    def close(self) -> None:
        """Close every environment."""
        self.envs.close()


class Policy(Protocol):
    """Chooses actions in training."""

    def act(self, obs: np.ndarray) -> np.ndarray:
        """`(S, E, obs_dim)` to actions `(S, E, action_dim)` in [-1, 1]."""


def collect(
    policy: Policy,
    environments: Environments,
    noise: Noise,
    *,
    step: int,
    total_steps: int,
    random_steps: int,
) -> Iterator[tuple[int, Transition, list[Episode]]]:
    """Act with exploration noise, one step of every environment at a time.

    All state is in the arguments, so that the caller can stop at any step and resume.

    Args:
        policy: chooses actions after the random phase.
        environments: already reset.
        noise: added to the policy's actions.
        step: environment steps already made for each seed.
        total_steps: where to stop; with E environments the last step may exceed it by up to E - 1.
        random_steps: number of environment steps with uniform actions.

    Yields:
        Environment steps made for each seed, the transition, and the episodes that it ended.
    """
    num_envs = environments.num_envs
    while step < total_steps:
        if step < random_steps:
            action = environments.random_action()
        else:
            action = np.clip(policy.act(environments.obs) + noise.sample(step), -1.0, 1.0)
        step += num_envs
        transition, episodes = environments.step(step, action)
        if episodes:
            noise.reset(transition.terminated | transition.truncated)
        yield step, transition, episodes
