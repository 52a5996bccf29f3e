"""Acting in environments: `collect()` for training, `evaluate()` for measuring."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from dpg_cli.algorithms import Algorithm
from dpg_cli.errors import DivergedError
from dpg_cli.noise import Noise
from dpg_cli.seeding import Purpose, generator, integer

Env = gym.Env[np.ndarray, np.ndarray]


class Transition(NamedTuple):
    """One step of E environments for each of S members."""

    obs: np.ndarray  # (S, E, obs_dim)
    action: np.ndarray  # (S, E, action_dim), in [-1, 1]
    reward: np.ndarray  # (S, E)
    next_obs: np.ndarray  # (S, E, obs_dim); where an episode ended its true last observation, never a reset's
    terminated: np.ndarray  # (S, E) bool
    truncated: np.ndarray  # (S, E) bool


class Episode(NamedTuple):
    """A finished training episode."""

    member: int
    episode_return: float
    length: int


class Environments:
    """The training environments of all members, and where each stands in its episode.

    Args:
        envs: by member and index, S lists of E.
        seeds: one a member.
    """

    def __init__(self, envs: Sequence[Sequence[Env]], seeds: Sequence[int]):
        self.envs = envs
        self.seeds = seeds
        shape = (len(envs), len(envs[0]))
        space = envs[0][0].observation_space
        self.obs = np.empty((*shape, space.shape[0]), space.dtype)  # type: ignore[index]
        self._returns = np.zeros(shape)
        self._lengths = np.zeros(shape, np.int64)
        self.action_dim: int = envs[0][0].action_space.shape[0]  # type: ignore[index]
        self._random = [[generator(s, Purpose.RANDOM_ACTION, e) for e in range(shape[1])] for s in seeds]

    def reset(self) -> None:
        """Start every environment's first episode, each from its own seed."""
        for index, env, seed in self._each():
            self.obs[index] = env.reset(seed=integer(seed, Purpose.ENVIRONMENT, index[1]))[0]
        check_finite(self.seeds, 0, obs=self.obs)

    def random_action(self) -> np.ndarray:
        """Uniform actions in [-1, 1], `(S, E, action_dim)`."""
        size = self.action_dim
        return np.array([[g.uniform(-1.0, 1.0, size) for g in member] for member in self._random])

    def step(self, step: int, action: np.ndarray) -> tuple[Transition, list[Episode]]:
        """Step every environment; begin a new episode where one ended.

        Args:
            step: the environment step that this is, for messages.
            action: `(S, E, action_dim)` in [-1, 1].

        Returns:
            The transition and the episodes that it ended.

        Raises:
            DivergedError: an action, a reward or an observation is not finite.
        """
        check_finite(self.seeds, step, action=action)
        obs, next_obs = self.obs, np.empty_like(self.obs)
        reward = np.empty(action.shape[:2])
        terminated, truncated = np.empty(action.shape[:2], bool), np.empty(action.shape[:2], bool)
        for i, env, _ in self._each():
            next_obs[i], reward[i], terminated[i], truncated[i], _ = env.step(action[i])
        check_finite(self.seeds, step, reward=reward, obs=next_obs)
        self._returns += reward
        self._lengths += 1
        self.obs = next_obs.copy()
        episodes = []
        for member, index in np.argwhere(terminated | truncated):
            i = (int(member), int(index))
            episodes.append(Episode(i[0], float(self._returns[i]), int(self._lengths[i])))
            self._returns[i], self._lengths[i] = 0.0, 0
            self.obs[i] = self.envs[i[0]][i[1]].reset()[0]
        if episodes:
            check_finite(self.seeds, step, obs=self.obs)
        return Transition(obs, action, reward, next_obs, terminated, truncated), episodes

    def close(self) -> None:
        """Close every environment."""
        for _, env, _ in self._each():
            env.close()

    def _each(self) -> Iterator[tuple[tuple[int, int], Env, int]]:
        for s, (member, seed) in enumerate(zip(self.envs, self.seeds, strict=True)):
            for e, env in enumerate(member):
                yield (s, e), env, seed


def collect(
    algorithm: Algorithm,
    environments: Environments,
    noise: Noise,
    *,
    step: int,
    total_steps: int,
    random_steps: int,
) -> Iterator[tuple[int, Transition, list[Episode]]]:
    """Act and explore, one step of every environment at a time.

    All state lives in the arguments, so that whoever holds them can stop here and go on.

    Args:
        algorithm: chooses actions after the random phase.
        environments: already reset.
        noise: added to the policy's actions.
        step: environment steps already made for each seed.
        total_steps: stop once so many are made; with E environments the last step may go up to E - 1 over.
        random_steps: so many are uniform actions.

    Yields:
        Environment steps made for each seed, the transition, and the episodes that it ended.
    """
    num_envs = environments.obs.shape[1]
    while step < total_steps:
        if step < random_steps:
            action = environments.random_action()
        else:
            action = np.clip(algorithm.act(environments.obs) + noise.sample(step), -1.0, 1.0)
        step += num_envs
        transition, episodes = environments.step(step, action)
        if episodes:
            noise.reset(transition.terminated | transition.truncated)
        yield step, transition, episodes


class Evaluation(NamedTuple):
    """The deterministic policy of one member over N episodes."""

    returns: list[float]
    lengths: list[int]
    value_bias: float | None  # None where no state's remaining return is known well enough


def evaluate(
    algorithm: Algorithm, envs: Sequence[Sequence[Env]], seeds: Sequence[int], step: int
) -> list[Evaluation]:
    """Run every member's policy without noise, all episodes as one batch.

    Episode i at step t starts from the stream (seed, evaluation, t, i), so an evaluation leaves nothing behind.

    Args:
        algorithm: the policy and its critic.
        envs: by member and episode, S lists of N.
        seeds: one a member.
        step: the environment step t.

    Returns:
        One evaluation a member.

    Raises:
        DivergedError: an action, a reward or an observation is not finite.
    """
    obs = np.array(
        [
            [env.reset(seed=integer(seed, Purpose.EVALUATION, step, i))[0] for i, env in enumerate(member)]
            for member, seed in zip(envs, seeds, strict=True)
        ]
    )
    running = np.ones(obs.shape[:2], bool)
    terminated = np.zeros(obs.shape[:2], bool)
    observations, rewards, made = [], [], []
    while running.any():
        action = algorithm.act(obs)
        check_finite(seeds, step, action=action)
        observations.append(obs.copy())
        made.append(running.copy())
        reward = np.zeros(obs.shape[:2])
        for s, i in np.argwhere(running):
            obs[s, i], reward[s, i], terminated[s, i], truncated, _ = envs[s][i].step(action[s, i])
            running[s, i] = not (terminated[s, i] or truncated)
        check_finite(seeds, step, reward=reward, obs=obs)
        rewards.append(reward)

    reward, steps = np.stack(rewards), np.stack(made)  # (T, S, N); 0 and false after an episode's end
    lengths = steps.sum(axis=0)
    returns = reward.sum(axis=0)
    bias = _value_bias(algorithm, observations, reward, steps, lengths, terminated)
    return [
        Evaluation(returns[s].tolist(), lengths[s].tolist(), bias[s]) for s in range(len(seeds))
    ]


def _value_bias(
    algorithm: Algorithm,
    observations: Sequence[np.ndarray],
    reward: np.ndarray,
    steps: np.ndarray,
    lengths: np.ndarray,
    terminated: np.ndarray,
) -> list[float | None]:
    """Mean of Q(s, μ(s)) minus the discounted return that followed, for each member.

    Only states count whose return is known: the episode ended by termination, or what a truncation cut off is
    worth less than 1%, discount^k < 0.01 with k steps left.
    """
    q = np.stack([algorithm.value(obs) for obs in observations])
    following = np.zeros_like(reward)
    tail = np.zeros(reward.shape[1:])
    for t in reversed(range(len(reward))):
        tail = reward[t] + algorithm.discount * tail
        following[t] = tail
    left = lengths - np.arange(len(reward))[:, None, None]
    known = steps & (terminated | (algorithm.discount ** np.maximum(left, 0) < 0.01))
    return [
        float((q - following)[:, s][known[:, s]].mean()) if known[:, s].any() else None
        for s in range(reward.shape[1])
    ]


def check_finite(seeds: Sequence[int], step: int, **quantities: np.ndarray) -> None:
    """Raise for the first quantity, `(S, ...)`, that holds NaN or infinity.

    Raises:
        DivergedError: it names seed, step and quantity.
    """
    for name, values in quantities.items():
        if not np.isfinite(values).all():
            member = int(np.argwhere(~np.isfinite(values))[0][0])
            raise DivergedError(f"seed {seeds[member]}, step {step}: {name} is not finite")
