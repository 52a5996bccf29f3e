"""Acting in environments: `collect()` for training, `evaluate()` for measuring."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dpg_cli.algorithms import Algorithm
from dpg_cli.environments.group import BadRewardError, EnvGroup, Stepped
from dpg_cli.errors import DivergedError
from dpg_cli.noise import Noise
from dpg_cli.seeding import Purpose, generator, integer

log = logging.getLogger(__name__)


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
    """Steps the environments of all members and checks what they return.

    Args:
        envs: S members with E environments each, in order.
        seeds: one a member.
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
            obs: `(S, E, obs_dim)`; the observations are written to it.
            running: `(S, E)`, the environments to step; None for all.

        Returns:
            Reward, terminated and truncated, `(S, E)`, with 0 and False for environments that were not stepped.

        Raises:
            DivergedError: an action, a reward, an observation or a simulation is not finite.
            ValueError: an observation has another shape than its space says.
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


class Environments:
    """The training environments of all members, and where each stands in its episode.

    Args:
        envs: S members with E environments each, in order.
        seeds: one a member.
        copyable: whether `env_state` can copy them in the middle of an episode.
    """

    def __init__(self, envs: EnvGroup, seeds: Sequence[int], *, copyable: bool = True):
        self.envs = envs
        self.copyable = copyable
        self.seeds = seeds
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
        reward, terminated, truncated = self._stepper.step(when, action, next_obs)
        self._returns += reward
        self._lengths += 1
        over = terminated | truncated
        if b"\1" not in over.tobytes():  # takes less time than over.any()
            self.obs = next_obs
            return Transition(obs, action, reward, next_obs, terminated, truncated), []
        self.obs, episodes = next_obs.copy(), []
        ended = np.flatnonzero(over).tolist()
        for position in ended:
            i = divmod(position, self.num_envs)
            episodes.append(Episode(i[0], float(self._returns[i]), int(self._lengths[i])))
            self._returns[i], self._lengths[i] = 0.0, 0
        self.envs.restart(ended, by_position(self.obs))
        check_finite(self.seeds, when, obs=self.obs)
        return Transition(obs, action, reward, next_obs, terminated, truncated), episodes

    def state(self, member: int) -> dict[str, Any]:
        """Where the environments of one member stand; without the simulators where they cannot be copied."""
        positions = range(member * self.num_envs, (member + 1) * self.num_envs)
        return {
            "simulators": self.envs.get_states(positions) if self.copyable else None,
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
        for position, reason in enumerate(reasons):
            if reason is not None:
                log.warning("seed %d: a new episode begins: %s", self.seeds[position // self.num_envs], reason)
        self._returns[anew], self._lengths[anew] = 0.0, 0
        return anew

    def _env_seeds(self, *index: int) -> list[int]:
        return [integer(s, Purpose.ENVIRONMENT, e, *index) for s in self.seeds for e in range(self.num_envs)]

    def close(self) -> None:
        """Close every environment."""
        self.envs.close()


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
    envs: EnvGroup,
    env_seeds: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    step: int,
    stop: Callable[[], bool] = lambda: False,
) -> Trajectories:
    """Run one episode in every environment, all as one batch.

    Args:
        act: the policy, `(S, N, obs_dim)` to `(S, N, action_dim)`.
        envs: S members with N environments each, in order.
        env_seeds: what each environment is reset with, S lists of N.
        seeds: one a member, for messages.
        step: the environment step of the policy, for messages.
        stop: asked before every step whether to give up.

    Raises:
        DivergedError: an action, a reward or an observation is not finite.
        StopRequested: `stop` said so.
    """
    space = envs.example.observation_space
    obs = np.empty((len(env_seeds), len(env_seeds[0]), *space.shape), space.dtype)  # type: ignore[misc]
    envs.reset([env_seed for member in env_seeds for env_seed in member], by_position(obs))
    when = f"evaluation at step {step}"
    check_finite(seeds, when, obs=obs)
    stepper = Stepper(envs, seeds)
    running, terminated = np.ones(obs.shape[:2], bool), np.zeros(obs.shape[:2], bool)
    observations, rewards, made = [], [], []
    while running.any():
        if stop():
            raise StopRequested
        action = act(obs)
        observations.append(obs.copy())
        made.append(running.copy())
        reward, now_terminated, now_truncated = stepper.step(when, action, obs, running)
        terminated |= now_terminated
        running &= ~(now_terminated | now_truncated)
        rewards.append(reward)
    return Trajectories(np.stack(observations), np.stack(rewards), np.stack(made), terminated)


class Evaluation(NamedTuple):
    """The deterministic policy of one member over N episodes."""

    returns: list[float]
    lengths: list[int]
    value_bias: float | None  # None where no state's remaining return is known well enough


def evaluate(
    algorithm: Algorithm,
    envs: EnvGroup,
    seeds: Sequence[int],
    step: int,
    stop: Callable[[], bool] = lambda: False,
    act: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[Evaluation]:
    """Run every member's policy without noise.

    Episode i at step t starts from the stream (seed, evaluation, t, i): an evaluation leaves nothing behind.

    Args:
        algorithm: the policy and its critic.
        envs: S members with N environments each, in order.
        seeds: one a member.
        step: the environment step t.
        stop: asked before every step whether to give up.
        act: the policy, where it is computed in another way than by `algorithm.act`.

    Returns:
        One evaluation a member.

    Raises:
        DivergedError: an action, a reward, an observation or a value is not finite.
        StopRequested: `stop` said so.
    """
    episodes = len(envs) // len(seeds)
    env_seeds = [[integer(seed, Purpose.EVALUATION, step, i) for i in range(episodes)] for seed in seeds]
    trajectories = run_episodes(act or algorithm.act, envs, env_seeds, seeds=seeds, step=step, stop=stop)
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


def by_position(array: np.ndarray) -> np.ndarray:
    """`(S, E, ...)` as `(S * E, ...)`, the same memory where it is contiguous."""
    return array.reshape(-1, array.shape[-1])


def check_finite(seeds: Sequence[int], when: str, **quantities: np.ndarray) -> None:
    """Raise for the first quantity, `(S, ...)`, that holds NaN or infinity.

    Raises:
        DivergedError: it names seed, `when` and quantity.
    """
    for name, values in quantities.items():
        if b"\0" in np.isfinite(values).tobytes():  # takes half as long as .all()
            member = int(np.argwhere(~np.isfinite(values))[0][0])
            raise DivergedError(f"seed {seeds[member]}, {when}: {name} is not finite")
