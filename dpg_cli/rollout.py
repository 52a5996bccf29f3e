"""Acting in environments: `collect()` for training, `evaluate()` for measuring."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from dpg_cli.algorithms import Algorithm
from dpg_cli.env_state import CannotCopy, get_state, set_state
from dpg_cli.env_threads import PLAIN_LOOP, EnvThreads
from dpg_cli.envs import FlatEnv
from dpg_cli.errors import DivergedError
from dpg_cli.noise import Noise
from dpg_cli.seeding import Purpose, generator, integer

log = logging.getLogger(__name__)

Env = gym.Env[np.ndarray, np.ndarray]
UNSTABLE = ("mjWARN_BADQPOS", "mjWARN_BADQVEL", "mjWARN_BADQACC")  # MuJoCo then starts the simulation anew by itself


class Transition(NamedTuple):
    """One step of E environments for each of S members."""

    obs: np.ndarray  # (S, E, obs_dim)
    action: np.ndarray  # (S, E, action_dim), in [-1, 1]
    reward: np.ndarray  # (S, E)
    next_obs: np.ndarray  # (S, E, obs_dim); where an episode ended its true last observation, never a reset's
    terminated: np.ndarray  # (S, E) bool
    truncated: np.ndarray  # (S, E) bool


class StopRequested(Exception):  # noqa: N818 - no error
    """Whoever watches asked to stop, and an evaluation was given up."""


class Episode(NamedTuple):
    """A finished training episode."""

    member: int
    episode_return: float
    length: int


class Stepper:
    """Steps the environments of all members, one action each.

    Args:
        envs: by member and index, S lists of E.
        seeds: one a member.
        kind: what the environments are for, for `EnvThreads`.
        largest_reward: a larger one counts as not finite.
    """

    def __init__(self, envs: Sequence[Sequence[Env]], seeds: Sequence[int], kind: str, largest_reward: float):
        self._shape = (len(envs), len(envs[0]))
        self._seeds = seeds
        self._kind = kind
        self._largest_reward = largest_reward
        every = [((s, e), env, seeds[s]) for s, member in enumerate(envs) for e, env in enumerate(member)]
        steps: list[Callable[[np.ndarray], tuple[Any, ...]]] = [env.step for _, env, _ in every]
        self._own_actions: Callable[[np.ndarray], np.ndarray] = np.asarray
        flat = [env for _, env, _ in every if isinstance(env, FlatEnv)]
        if len(flat) == len(every) > 1:  # they have one box, so one call maps all actions; for one alone it is slower
            steps = [env.step_own for env in flat]
            self._own_actions = flat[0].own_actions
        self._steps = [(i, step, seed) for (i, _, seed), step in zip(every, steps, strict=True)]
        warnings = [(times_unstable(env), seed) for _, env, seed in every]
        self._warnings = [(times, bytes(times.nbytes), seed) for times, seed in warnings if times is not None]

    def step(
        self,
        when: str,
        action: np.ndarray,
        obs: np.ndarray,
        threads: EnvThreads,
        running: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int]]]:
        """Step environments and check that everything they return is finite.

        Args:
            when: for messages.
            action: `(S, E, action_dim)` in [-1, 1].
            obs: `(S, E, obs_dim)`; the observations are written to it.
            threads: step the environments.
            running: `(S, E)`, the environments to step; None for all.

        Returns:
            Reward, terminated and truncated, `(S, E)`, with 0 and False for environments that were not stepped; and
            the `(member, index)` of each environment whose episode ended, in order.

        Raises:
            DivergedError: an action, a reward, an observation or a simulation is not finite.
            ValueError: an observation has another shape than its space says.
        """
        check_finite(self._seeds, when, action=action)
        own, largest_reward = self._own_actions(action), self._largest_reward
        reward = np.zeros(self._shape)
        terminated, truncated = np.zeros(self._shape, bool), np.zeros(self._shape, bool)
        ended = []

        def work(part: Sequence[tuple[tuple[int, int], Callable[[np.ndarray], tuple[Any, ...]], int]]) -> None:
            for i, step, seed in part:
                observed, reward[i], terminated[i], truncated[i], _ = step(own[i])
                put(obs, i, observed)
                if not abs(reward[i]) <= largest_reward:
                    raise DivergedError(f"seed {seed}, {when}: reward is not finite")
                if terminated[i] or truncated[i]:
                    ended.append(i)

        steps = self._steps if running is None else [entry for entry in self._steps if running.item(entry[0])]
        threads.run(self._kind, work, steps)
        check_finite(self._seeds, when, obs=obs)
        for times, none, seed in self._warnings:
            if times.tobytes() != none:  # ten times as fast as times.any()
                raise DivergedError(f"seed {seed}, {when}: the simulation became unstable and was reset by MuJoCo")
        ended.sort()
        return reward, terminated, truncated, ended


class Environments:
    """The training environments of all members, and where each stands in its episode.

    Args:
        envs: by member and index, S lists of E.
        seeds: one a member.
        copyable: whether `env_state` can copy them in the middle of an episode.
        threads: step them.
    """

    def __init__(
        self,
        envs: Sequence[Sequence[Env]],
        seeds: Sequence[int],
        *,
        copyable: bool = True,
        threads: EnvThreads = PLAIN_LOOP,
    ):
        self.envs = envs
        self.copyable = copyable
        self.threads = threads
        self.seeds = seeds
        self.num_envs = len(envs[0])
        shape = (len(envs), self.num_envs)
        space = envs[0][0].observation_space
        self.obs = np.empty((*shape, space.shape[0]), space.dtype)  # type: ignore[index]
        self._returns = np.zeros(shape)
        self._lengths = np.zeros(shape, np.int64)
        self.action_dim: int = envs[0][0].action_space.shape[0]  # type: ignore[index]
        largest_reward = float(np.finfo(self.obs.dtype).max)  # that the replay can keep
        self._stepper = Stepper(envs, seeds, "training", largest_reward)
        self._random = [[generator(s, Purpose.RANDOM_ACTION, e) for e in range(shape[1])] for s in seeds]
        self._all = [((s, e), env, seeds[s]) for s, member in enumerate(envs) for e, env in enumerate(member)]

    def reset(self) -> None:
        """Start every environment's first episode, each from its own seed."""
        for index, env, seed in self._all:
            put(self.obs, index, env.reset(seed=integer(seed, Purpose.ENVIRONMENT, index[1]))[0])
        check_finite(self.seeds, "step 0", obs=self.obs)

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
        when = f"step {step}"
        obs, next_obs = self.obs, np.empty_like(self.obs)
        reward, terminated, truncated, ended = self._stepper.step(when, action, next_obs, self.threads)
        self._returns += reward
        self._lengths += 1
        self.obs, episodes = next_obs.copy() if ended else next_obs, []
        for i in ended:
            episodes.append(Episode(i[0], float(self._returns[i]), int(self._lengths[i])))
            self._returns[i], self._lengths[i] = 0.0, 0
            put(self.obs, i, self.envs[i[0]][i[1]].reset()[0])
        if episodes:
            check_finite(self.seeds, when, obs=self.obs)
        return Transition(obs, action, reward, next_obs, terminated, truncated), episodes

    def state(self, member: int) -> dict[str, Any]:
        """Where the environments of one member stand; without the simulators where they cannot be copied."""
        return {
            "simulators": [get_state(env) for env in self.envs[member]] if self.copyable else None,
            "obs": self.obs[member].copy(),
            "returns": self._returns[member].copy(),
            "lengths": self._lengths[member].copy(),
            "random": [g.bit_generator.state for g in self._random[member]],
        }

    def load_state(self, states: Sequence[Mapping[str, Any]], step: int) -> np.ndarray:
        """Go on from `state()`, one a member; where a simulator could not be copied, begin a new episode.

        Args:
            states: one a member.
            step: the environment step at which they were taken, which the new episodes' seeds come from.

        Returns:
            Where new episodes were begun, `(S, E)`.
        """
        for member, state in enumerate(states):
            for name, array in {"obs": self.obs, "returns": self._returns, "lengths": self._lengths}.items():
                array[member] = np.reshape(state[name], array[member].shape)
            for stream, own in zip(self._random[member], state["random"], strict=True):
                stream.bit_generator.state = own
        anew = np.zeros(self.obs.shape[:2], bool)
        for i, env, seed in self._all:
            own_seed = integer(seed, Purpose.ENVIRONMENT, i[1], step)
            env.reset(seed=own_seed)
            try:
                if states[i[0]]["simulators"] is None:
                    raise CannotCopy("the one under way could not be copied")
                set_state(env, states[i[0]]["simulators"][i[1]])
            except CannotCopy as error:  # with other versions, its model may be another one
                log.warning("seed %d: a new episode begins: %s", seed, error)
                put(self.obs, i, env.reset(seed=own_seed)[0])
                self._returns[i], self._lengths[i] = 0.0, 0
                anew[i] = True
        return anew

    def close(self) -> None:
        """Close every environment."""
        for _, env, _ in self._all:
            env.close()


class Policy(Protocol):
    """What acts in training."""

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
    """Act and explore, one step of every environment at a time.

    All state lives in the arguments, so that whoever holds them can stop here and go on.

    Args:
        policy: chooses actions after the random phase.
        environments: already reset.
        noise: added to the policy's actions.
        step: environment steps already made for each seed.
        total_steps: stop once so many are made; with E environments the last step may go up to E - 1 over.
        random_steps: so many are uniform actions.

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


class Trajectories(NamedTuple):
    """Whole episodes, N for each of S members, padded to the longest, T steps."""

    obs: np.ndarray  # (T, S, N, obs_dim)
    reward: np.ndarray  # (T, S, N); 0 after an episode's end
    made: np.ndarray  # (T, S, N) bool; whether the episode had that step
    terminated: np.ndarray  # (S, N) bool; whether it ended by termination, not by truncation

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
    envs: Sequence[Sequence[Env]],
    env_seeds: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    step: int,
    stop: Callable[[], bool] = lambda: False,
    threads: EnvThreads = PLAIN_LOOP,
) -> Trajectories:
    """Run one episode in every environment, all as one batch.

    Args:
        act: the policy, `(S, N, obs_dim)` to `(S, N, action_dim)`.
        envs: by member and episode, S lists of N.
        env_seeds: what each environment is reset with.
        seeds: one a member, for messages.
        step: the environment step of the policy, for messages.
        stop: asked before every step whether to give up.
        threads: step the environments.

    Raises:
        DivergedError: an action, a reward or an observation is not finite.
        StopRequested: `stop` said so.
    """
    space = envs[0][0].observation_space
    obs = np.empty((len(envs), len(envs[0]), *space.shape), space.dtype)  # type: ignore[misc]
    for s, member in enumerate(envs):
        for i, env in enumerate(member):
            put(obs, (s, i), env.reset(seed=env_seeds[s][i])[0])
    when = f"evaluation at step {step}"
    check_finite(seeds, when, obs=obs)
    stepper = Stepper(envs, seeds, "evaluation", float(np.finfo(np.float64).max))
    running, terminated = np.ones(obs.shape[:2], bool), np.zeros(obs.shape[:2], bool)
    observations, rewards, made = [], [], []
    while running.any():
        if stop():
            raise StopRequested
        action = act(obs)
        observations.append(obs.copy())
        made.append(running.copy())
        reward, now_terminated, _, ended = stepper.step(when, action, obs, threads, running)
        terminated |= now_terminated
        for index in ended:
            running[index] = False
        rewards.append(reward)
    return Trajectories(np.stack(observations), np.stack(rewards), np.stack(made), terminated)


class Evaluation(NamedTuple):
    """The deterministic policy of one member over N episodes."""

    returns: list[float]
    lengths: list[int]
    value_bias: float | None  # None where no state's remaining return is known well enough


def evaluate(
    algorithm: Algorithm,
    envs: Sequence[Sequence[Env]],
    seeds: Sequence[int],
    step: int,
    stop: Callable[[], bool] = lambda: False,
    act: Callable[[np.ndarray], np.ndarray] | None = None,
    threads: EnvThreads = PLAIN_LOOP,
) -> list[Evaluation]:
    """Run every member's policy without noise.

    Episode i at step t starts from the stream (seed, evaluation, t, i): an evaluation leaves nothing behind.

    Args:
        algorithm: the policy and its critic.
        envs: by member and episode, S lists of N.
        seeds: one a member.
        step: the environment step t.
        stop: asked before every step whether to give up.
        act: the policy, where it is computed in another way than by `algorithm.act`.
        threads: step the environments.

    Returns:
        One evaluation a member.

    Raises:
        DivergedError: an action, a reward, an observation or a value is not finite.
        StopRequested: `stop` said so.
    """
    env_seeds = [[integer(seed, Purpose.EVALUATION, step, i) for i in range(len(envs[0]))] for seed in seeds]
    trajectories = run_episodes(
        act or algorithm.act, envs, env_seeds, seeds=seeds, step=step, stop=stop, threads=threads
    )
    q = values(algorithm, trajectories.obs)
    check_finite(seeds, f"evaluation at step {step}", value=q.swapaxes(0, 1))
    biases = value_bias(trajectories, q, algorithm.discount)
    return [
        Evaluation(returns.tolist(), lengths.tolist(), bias)
        for returns, lengths, bias in zip(trajectories.returns, trajectories.lengths, biases, strict=True)
    ]


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
    """Mean of Q(s, μ(s)) minus the discounted return that followed, for each member.

    Only states count whose return is known: the episode ended by termination, or what its truncation cut off is
    worth less than 1%, discount^k < 0.01 with k steps left.

    Args:
        trajectories: of the deterministic policy.
        q: the critic's values at their observations, `(T, S, N)`.
        discount: a step.
    """
    _, reward, made, terminated = trajectories
    following = np.zeros_like(reward)
    tail = np.zeros(reward.shape[1:])
    for t in reversed(range(len(reward))):
        tail = reward[t] + discount * tail
        following[t] = tail
    left = trajectories.lengths - np.arange(len(reward))[:, None, None]
    known = made & (terminated | (discount ** np.maximum(left, 0) < 0.01))
    difference = q - following
    return [float(difference[:, s][known[:, s]].mean()) if known[:, s].any() else None for s in range(reward.shape[1])]


def put(array: np.ndarray, index: tuple[int, int], obs: np.ndarray) -> None:
    """Store an environment's observation at `(member, index)`.

    Raises:
        ValueError: it has another shape than its space says, which NumPy would stretch without a word.
    """
    if obs.shape != array.shape[2:]:
        raise ValueError(f"the environment observed {obs.shape} numbers; its space says {array.shape[2:]}")
    array[index] = obs


def check_finite(seeds: Sequence[int], when: str, **quantities: np.ndarray) -> None:
    """Raise for the first quantity, `(S, ...)`, that holds NaN or infinity.

    Raises:
        DivergedError: it names seed, `when` and quantity.
    """
    for name, values in quantities.items():
        if b"\0" in np.isfinite(values).tobytes():  # takes half as long as .all()
            member = int(np.argwhere(~np.isfinite(values))[0][0])
            raise DivergedError(f"seed {seeds[member]}, {when}: {name} is not finite")


def times_unstable(env: Env) -> np.ndarray | None:
    """How often MuJoCo met a number that is not finite, by kind, now and later; None without MuJoCo."""
    data = getattr(env.unwrapped, "data", None)
    if data is None or not type(data).__module__.startswith("mujoco"):
        return None
    kinds = [int(getattr(sys.modules["mujoco"].mjtWarning, name)) for name in UNSTABLE]
    numbers: np.ndarray = data.warning.number[min(kinds) : max(kinds) + 1]  # they are neighbours: a view, no copy
    return numbers
