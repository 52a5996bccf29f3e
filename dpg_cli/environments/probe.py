"""The probe at the start of a run: what can be saved, repeated and shared of an environment.

A few short episodes are run and leave no trace: classes, modules and global random generators are put back.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import wrappers

from dpg_cli.environments.pool import Pool
from dpg_cli.environments.returns import ReturnError, as_number, check_api
from dpg_cli.environments.shared import SharedState
from dpg_cli.environments.state import CannotCopy, Constants, Env, constants, get_state, layers, set_state
from dpg_cli.errors import UserError

EPISODES, LENGTH = 6, 5  # short episodes with resets as in training
SLOW = 1.0  # seconds to create an environment, from which on evaluations keep theirs
COMPARED = 60  # steps of the original and of its copy; 150 in all, because a simulator may be a real machine
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
        ignores_seed: whether two environments that are reset with one seed start differently.
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
    def can_renew(self) -> bool:
        """Whether every evaluation can create its environments anew, as it must if their state cannot be copied."""
        return self.copy_problem is not None and self.make_seconds < SLOW


def probe(env_id: str, pool: Pool, *, single: bool = False) -> Findings:
    """Run a few short episodes with two environments.

    Args:
        env_id: for messages.
        pool: gives the environments, and gets them back.
        single: whether only one environment can exist; it is then compared with itself.

    Raises:
        UserError: an environment cannot be created, or does not have Gymnasium's interface.
    """
    original = pool()
    fixed = constants(original)
    try:
        copy = original if single else pool()
    except UserError as error:
        original.close()
        remedy = "if only one can exist at a time, eval.episodes=0 trains without evaluations"
        raise UserError(f"{error}. One was created before; {remedy}") from error
    found = Findings(make_seconds=pool.seconds, statistics=_statistics(original))
    shared = SharedState(original)
    try:
        check_api(env_id, original)
        first = np.array(original.reset(seed=0)[0])
        if copy is not original or pool.put_back(original):
            found.ignores_seed = not _same(first, copy.reset(seed=0)[0])
        before = SharedState(original)
        actions = np.random.default_rng(0)
        for _ in range(EPISODES):
            original.reset()
            for _ in range(LENGTH):
                action, start = actions.uniform(-1, 1, original.action_space.shape), time.perf_counter()
                _step(original, action)
                found.step_seconds.append(time.perf_counter() - start)
        found.changes = before.changes()
        found.copy_problem = _copy_problem(original, copy, fixed, actions)
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
            pool.give_back(env)
    if not all(layer.metadata.get("thread_safe", True) for layer in layers(original)):
        found.thread_problem = "its metadata says that it is not thread-safe"
    elif found.changes:
        found.thread_problem = f"its steps or resets change {found.changes[0]}"
    return found


def ignores_seed(pool: Pool, *, single: bool) -> bool:
    """Whether two environments that are reset with one seed start differently.

    Args:
        pool: gives the environments, and gets them back.
        single: whether to compare one environment with itself.
    """
    one = pool()
    shared = SharedState(one)
    try:
        first = np.array(one.reset(seed=0)[0])
        if single and not pool.put_back(one):
            return False
        other = one if single else pool()
        differs = not _same(first, other.reset(seed=0)[0])
        if other is not one:
            pool.give_back(other)
    except Exception:  # raised by the environment; the evaluation reports it
        return False
    finally:
        shared.restore()
        pool.give_back(one)
    return differs


def _copy_problem(original: Env, copy: Env, fixed: Constants, actions: np.random.Generator) -> str | None:
    """Why a copy of the original's state does not behave like the original; None if it does."""
    chosen = actions.uniform(-1, 1, (COMPARED, *(original.action_space.shape or ())))

    def steps(env: Env) -> list[Any]:
        return [np.array(env.reset()[0]) if i == COMPARED // 2 else _step(env, a) for i, a in enumerate(chosen)]

    state = get_state(original, fixed)
    expected = steps(original)
    copy.reset(seed=1)
    set_state(copy, state)
    for index, (a, b) in enumerate(zip(expected, steps(copy), strict=True)):
        if not _same(a, b):
            return f"a copy of it diverges after {index + 1} {'steps' if index else 'step'}"
    return None


def _step(env: Env, action: np.ndarray) -> tuple[Any, ...]:
    obs, reward, terminated, truncated, _ = env.step(action)
    obs = np.array(obs)  # it may lie in the environment's own memory
    if terminated or truncated:
        obs = np.array(env.reset()[0])
    return obs, as_number(reward, env), terminated, truncated


def _statistics(env: Env) -> str | None:
    return next((type(layer).__name__ for layer in layers(env) if isinstance(layer, STATISTICS)), None)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.array_equal(a, b, equal_nan=True))
