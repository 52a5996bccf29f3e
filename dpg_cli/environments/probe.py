"""The probe at the start of a run: what can be saved, repeated and shared of an environment.

A few short episodes are run and leave no trace: classes, modules and global random generators are put back.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import wrappers

from dpg_cli.environments.plain_data import CannotCopy
from dpg_cli.environments.pool import Pool, Renewal
from dpg_cli.environments.returns import ReturnError, as_number, explain_old_interface
from dpg_cli.environments.shared import SharedState
from dpg_cli.environments.state import Constants, Env, constants, get_state, layers, set_state
from dpg_cli.errors import UserError

# A simulator may be a real machine: 160 steps in all, SEEDED three times and COMPARED twice.
SEEDED = 10  # steps of an episode whose seed is given
EPISODES, LENGTH = 6, 5  # short episodes with resets as in training
COMPARED = 50  # steps of the original and of its copy
SLOW = 1.0  # seconds to create an environment, from which on evaluations keep theirs
STATISTICS = (
    *(wrappers.NormalizeObservation, wrappers.NormalizeReward),
    *(wrappers.vector.NormalizeObservation, wrappers.vector.NormalizeReward),
)


@dataclass
class Findings:
    """What the probe has found.

    Attributes:
        copy_problem: why a state in the middle of an episode cannot be saved; None if it can.
        changes: what steps or resets change outside of the environment, by name.
        thread_problem: why environments can only be stepped in a plain loop; None if nothing speaks against it.
        ignores_seed: whether two environments that are reset with one seed differ.
        statistics: a wrapper with running statistics, by its class name; None without one.
        step_seconds: of single steps.
        make_seconds: to create an environment.
    """

    copy_problem: str | None = None
    changes: Sequence[str] = ()
    thread_problem: str | None = None
    ignores_seed: bool = False
    statistics: str | None = None
    step_seconds: list[float] = field(default_factory=list)
    make_seconds: float = 0.0

    @property
    def renewal(self) -> Renewal:
        """How evaluations get environments as they were created; environments that are slow to create are kept."""
        if self.copy_problem is None:
            return "put back"
        return "create" if self.make_seconds < SLOW else "keep"


def probe(
    env_id: str, pool: Pool, *, single: bool = False, progress: Callable[[int], object] = lambda _: None
) -> Findings:
    """Run a few short episodes with two environments.

    Args:
        env_id: for messages.
        pool: gives the environments, and gets them back.
        single: whether only one environment can exist; it is then compared with itself.
        progress: called after each step with the number of steps.

    Raises:
        UserError: an environment cannot be created, or does not have Gymnasium's interface.
    """
    original = pool()
    fixed = constants(original)
    try:
        copy = original if single else pool()
    except UserError as error:
        pool.discard(original)
        remedy = "num_seeds=1 num_envs=1 eval.episodes=0 trains with a single one, without evaluations"
        raise UserError(f"{error}. One was created before; if only one can exist at a time, {remedy}") from error
    found = Findings(make_seconds=pool.seconds, statistics=_statistics(original))
    shared, reusable = SharedState(original), False
    tried = _Tried(progress)
    try:
        try:
            first = tried.seeded_episode(original)
        except ReturnError:
            raise
        except (TypeError, ValueError, AttributeError):
            explain_old_interface(env_id, original)
            raise
        # Seeded resets may seed the global generators.
        changes = {name for name in shared.changes() if not name.endswith("generator")}
        shared.restore()
        if copy is not original or pool.put_back(original):
            found.ignores_seed = not _same(first, tried.seeded_episode(copy))
        shared.restore()
        before = SharedState(original)
        found.step_seconds = tried.training(original)
        found.changes = sorted(changes.union(before.changes()))
        found.copy_problem = _copy_problem(original, copy, fixed, tried)
        if found.copy_problem is None:
            shared.restore()
            if not (pool.put_back(original) and (found.ignores_seed or _same(first, tried.seeded_episode(original)))):
                found.copy_problem = "it cannot be put back into the state in which it was created"
        reusable = found.copy_problem is None
    except UserError:
        raise
    except ReturnError as error:
        raise UserError(f"env.id={env_id}: {error}") from error
    except CannotCopy as error:
        found.copy_problem = str(error)
    except (Exception, SystemExit) as error:  # raised by the environment; training shows whether it matters
        found.copy_problem, found.thread_problem = f"trying it raised {type(error).__name__}", "it could not be tried"
    finally:
        shared.restore()
        for env in {id(env): env for env in (original, copy)}.values():
            if (reusable and pool.put_back(env)) or single:
                pool.keep(env)
            else:
                pool.discard(env)
    if not all(layer.metadata.get("thread_safe", True) for layer in layers(original)):
        found.thread_problem = "its metadata says that it is not thread-safe"
    elif found.changes:
        found.thread_problem = f"its steps or resets change {found.changes[0]}"
    return found


def ignores_seed(pool: Pool, *, single: bool) -> bool:
    """Whether two environments that are reset with one seed differ.

    Args:
        pool: gives the environments.
        single: whether only one environment can exist; it is then compared with itself, if it can be put back.
    """
    one = pool()
    other = one if single else pool()
    shared, tried = SharedState(one), _Tried()
    try:
        first = tried.seeded_episode(one)
        shared.restore()
        differs = (not single or pool.put_back(one)) and not _same(first, tried.seeded_episode(other))
    except Exception:  # raised by the environment; the evaluation reports it
        differs = False
    finally:
        shared.restore()
        if single:
            pool.put_back(one)
            pool.keep(one)
        else:  # no probe has shown that they can be reused
            pool.discard(one)
            pool.discard(other)
    return differs


class _Tried:
    """Tries environments, and counts the steps."""

    def __init__(self, progress: Callable[[int], object] = lambda _: None):
        self._progress = progress
        self._steps = 0

    def step(self, env: Env, action: np.ndarray) -> tuple[Any, ...]:
        """Make one step, with a reset where an episode ends; what it returned."""
        obs, reward, terminated, truncated, _ = env.step(action)
        self._steps += 1
        self._progress(self._steps)
        obs = _obs(obs, env)
        if terminated or truncated:
            obs = _obs(env.reset()[0], env)
        return obs, as_number(reward, env), terminated, truncated

    def seeded_episode(self, env: Env) -> tuple[Any, ...]:
        """What an episode with a seed returns, always with the same actions."""
        obs = _obs(env.reset(seed=0)[0], env)
        return obs, *(self.step(env, action) for action in _actions(env, 0, SEEDED))

    def training(self, env: Env) -> list[float]:
        """Run short episodes with resets as in training; the seconds of each step."""
        seconds = []
        for episode in range(EPISODES):
            env.reset()
            for action in _actions(env, 1 + episode, LENGTH):
                start = time.perf_counter()
                self.step(env, action)
                seconds.append(time.perf_counter() - start)
        return seconds


def _copy_problem(original: Env, copy: Env, fixed: Constants, tried: _Tried) -> str | None:
    """Why a copy of the original's state does not behave like the original; None if it does."""
    chosen = _actions(original, 100, COMPARED)

    def steps(env: Env) -> list[Any]:
        return [_obs(env.reset()[0], env) if i == COMPARED // 2 else tried.step(env, a) for i, a in enumerate(chosen)]

    state, shared = get_state(original, fixed), SharedState(original)
    expected = steps(original)
    copy.reset(seed=1)
    shared.restore()
    set_state(copy, state)
    for index, (a, b) in enumerate(zip(expected, steps(copy), strict=True)):
        if not _same(a, b):
            return f"a copy of it diverges after {index + 1} {'steps' if index else 'step'}"
    return None


def _actions(env: Env, seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *(env.action_space.shape or ())))


def _obs(obs: Any, env: Env) -> np.ndarray:
    """A copy of an observation, which may lie in the environment's own memory.

    Raises:
        ValueError: it does not have its space's shape.
    """
    copied = np.array(obs)
    if copied.shape != env.observation_space.shape:
        raise ValueError(f"an observation has shape {copied.shape}, its space has shape {env.observation_space.shape}")
    return copied


def _statistics(env: Env) -> str | None:
    return next((type(layer).__name__ for layer in layers(env) if isinstance(layer, STATISTICS)), None)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.array_equal(a, b, equal_nan=True))
