"""Evaluation of a policy: `evaluate()` runs whole episodes without noise."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dpg_cli.algorithms import Algorithm
from dpg_cli.environments.group import EnvGroup
from dpg_cli.environments.make import has_time_limit
from dpg_cli.environments.stepper import Stepper, by_position, check_finite
from dpg_cli.errors import UserError
from dpg_cli.seeding import Purpose, integer

LONGEST_EPISODE = 100_000  # steps of an evaluation without a time limit


class StopRequested(Exception):  # noqa: N818 - not an error
    """An evaluation was abandoned because `stop` returned true."""


class Trajectories(NamedTuple):
    """Whole episodes, N for each of S members, padded to the length T of the longest."""

    obs: np.ndarray  # (T, S, N, obs_dim)
    reward: np.ndarray  # (T, S, N); 0 after an episode's end
    made: np.ndarray  # (T, S, N) bool; whether the episode had that step
    terminated: np.ndarray  # (S, N) bool; whether it ended by termination, not by truncation
    infos: Sequence[Sequence[Mapping[str, float]]] = ()  # S lists of N; the numbers in the `info` of the last step

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted returns, `(S, N)`."""
        total: np.ndarray = self.reward.sum(axis=0)
        return total

    @property
    def lengths(self) -> np.ndarray:
        """Steps, `(S, N)`."""
        steps: np.ndarray = self.made.sum(axis=0)
        return steps


def run_episodes(
    act: Callable[[np.ndarray], np.ndarray],
    envs: EnvGroup,
    env_seeds: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    step: int,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
    counted: str = "step",
) -> Trajectories:
    """Run one episode in every environment, all as one batch.

    Args:
        act: the policy, `(S, N, obs_dim)` to `(S, N, action_dim)`.
        envs: S members with N environments each, in order.
        env_seeds: for the reset of each environment, S lists of N.
        seeds: one per member, for messages.
        step: the environment step of the policy, for messages.
        stop: called before every step; true abandons the evaluation.
        progress: called after every step with the number of steps of the longest episode.
        counted: what `step` counts, for messages: `step`, or `update` offline.

    Raises:
        DivergedError: an action, a reward or an observation is not finite.
        SimulatorError: an environment raised.
        UserError: an episode without a time limit does not end.
        StopRequested: `stop` returned true.
    """
    space = envs.example.observation_space
    obs = np.empty((len(env_seeds), len(env_seeds[0]), *space.shape), space.dtype)  # type: ignore[misc]
    envs.reset([env_seed for member in env_seeds for env_seed in member], by_position(obs))
    when = f"evaluation at {counted} {step}"
    check_finite(seeds, when, obs=obs)
    stepper = Stepper(envs, seeds)
    running, terminated = np.ones(obs.shape[:2], bool), np.zeros(obs.shape[:2], bool)
    observations, rewards, made = [], [], []
    infos: list[list[Mapping[str, float]]] = [[{} for _ in member] for member in env_seeds]
    while running.any():
        if stop():
            raise StopRequested
        action = act(obs)
        observations.append(obs.copy())
        made.append(running.copy())
        reward, now_terminated, now_truncated = stepper.step(when, action, obs, running)
        terminated |= now_terminated
        ended = np.flatnonzero(now_terminated | now_truncated).tolist()
        for position, info in zip(ended, envs.infos(ended), strict=True):
            infos[position // running.shape[1]][position % running.shape[1]] = info
        running &= ~(now_terminated | now_truncated)
        rewards.append(reward)
        progress(len(rewards))
        if len(rewards) == LONGEST_EPISODE and running.any() and not has_time_limit(envs.example):
            raise UserError(
                f"{when}: an episode has not ended after {LONGEST_EPISODE:,} steps, and the environment has no "
                "time limit; a run with env.max_episode_steps=1000 has one, and init=RUN_DIR gives it these networks"
            )
    return Trajectories(np.stack(observations), np.stack(rewards), np.stack(made), terminated, infos)


class Evaluation(NamedTuple):
    """The deterministic policy of one member over N episodes."""

    returns: list[float]
    lengths: list[int]
    value_bias: float | None  # None if no state's remaining return is known well enough
    info: Mapping[str, float] = {}  # the numbers in `info`, averaged over the episodes


def evaluate(
    algorithm: Algorithm,
    envs: EnvGroup,
    seeds: Sequence[int],
    step: int,
    stop: Callable[[], bool] = lambda: False,
    act: Callable[[np.ndarray], np.ndarray] | None = None,
    progress: Callable[[int], None] = lambda _: None,
    counted: str = "step",
) -> list[Evaluation]:
    """Run every member's policy without noise.

    Episode i at step t uses the stream (seed, evaluation, t, i), so that evaluations do not affect each other.

    Args:
        algorithm: the policy and its critic.
        envs: S members with N environments each, in order.
        seeds: one per member.
        step: the environment step t.
        stop: called before every step; true abandons the evaluation.
        act: the policy; by default `algorithm.act_to_evaluate`.
        progress: called after every step with the number of steps of the longest episode.
        counted: what `step` counts, for messages: `step`, or `update` offline.

    Returns:
        One evaluation per member.

    Raises:
        DivergedError: an action, a reward, an observation or a value is not finite.
        StopRequested: `stop` returned true.
    """
    episodes = len(envs) // len(seeds)
    env_seeds = [[integer(seed, Purpose.EVALUATION, step, i) for i in range(episodes)] for seed in seeds]
    acts = act or algorithm.act_to_evaluate
    trajectories = run_episodes(
        acts, envs, env_seeds, seeds=seeds, step=step, stop=stop, progress=progress, counted=counted
    )
    q = values(algorithm, trajectories.obs)
    check_finite(seeds, f"evaluation at {counted} {step}", value=q.swapaxes(0, 1))
    biases = value_bias(trajectories, q, algorithm.discount)
    return [
        Evaluation(returns.tolist(), lengths.tolist(), bias, mean_info(infos))
        for returns, lengths, bias, infos in zip(
            trajectories.returns, trajectories.lengths, biases, trajectories.infos, strict=True
        )
    ]


def mean_info(infos: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number in the `info` of several episodes, over those that report it."""
    by_key: dict[str, list[float]] = {}
    for info in infos:
        for key, value in info.items():
            by_key.setdefault(key, []).append(value)
    return {key: float(np.mean(numbers)) for key, numbers in by_key.items()}


def values(algorithm: Algorithm, obs: np.ndarray, chunk: int = 100) -> np.ndarray:
    """Q(s, μ(s)) along trajectories, `(T, S, N, obs_dim)` to `(T, S, N)`, `chunk` steps at a time."""
    steps, members, episodes, obs_dim = obs.shape
    by_member = obs.swapaxes(0, 1)
    q = np.empty((members, steps, episodes), obs.dtype)
    for start in range(0, steps, chunk):
        part = by_member[:, start : start + chunk]
        q[:, start : start + chunk] = algorithm.value(part.reshape(members, -1, obs_dim)).reshape(part.shape[:-1])
    return q.swapaxes(0, 1)


def value_bias(trajectories: Trajectories, q: np.ndarray, discount: float) -> list[float | None]:
    """Mean of Q(s, μ(s)) minus the discounted return that followed, for each member; None if no state counts.

    Only states with a known return count: the episode terminated, or rewards after its truncation have a weight below
    1%, that is discount^k < 0.01 with k steps left.

    Args:
        trajectories: of the deterministic policy.
        q: the critic's values at their observations, `(T, S, N)`.
        discount: per step.
    """
    reward, made, terminated = trajectories.reward, trajectories.made, trajectories.terminated
    following = np.zeros_like(reward)
    tail = np.zeros(reward.shape[1:])
    for t in reversed(range(len(reward))):
        tail = reward[t] + discount * tail
        following[t] = tail
    left = trajectories.lengths - np.arange(len(reward))[:, None, None]
    known = made & (terminated | (discount ** np.maximum(left, 0) < 0.01))
    difference = q - following
    return [float(difference[:, s][known[:, s]].mean()) if known[:, s].any() else None for s in range(reward.shape[1])]
