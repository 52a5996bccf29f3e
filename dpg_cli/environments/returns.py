"""What an environment may return, and the errors of one that returns something else or raises."""

import contextlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpg_cli.environments.state import Env
from dpg_cli.errors import DiskError, DivergedError, SimulatorError, UserError

RESET = "reset(self, *, seed=None, options=None) returns (obs, info)"
STEP = "step(self, action) returns (obs, reward, terminated, truncated, info)"


class ReturnError(ValueError):
    """An environment returned something that is not a reward or an observation of its space."""


def failure(env: Env, error: BaseException) -> BaseException:
    """The error to raise where an environment has raised one."""
    ours = isinstance(error, MemoryError | UserError | DivergedError | DiskError | SimulatorError)
    if ours or (isinstance(error, SystemExit) and type(error) is not SystemExit):  # such as that of a second Ctrl-C
        return error
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return SimulatorError(f"the environment {type(env.unwrapped).__name__} raised {what}")


def as_number(reward: Any, env: Env) -> float:
    """A reward as a number: a Python or NumPy number, a bool, or an array or tensor with one element.

    Raises:
        ReturnError: it is something else; names the environment's class and the value.
    """
    if isinstance(reward, int | float | np.number | np.bool):
        return float(reward)
    try:
        array = np.asarray(reward, np.float64) if reward is not None else np.empty(0)
    except (TypeError, ValueError, RuntimeError):
        array = np.empty(0)
    if array.size != 1:
        text = " ".join(repr(reward).split())
        raise ReturnError(f"{type(env.unwrapped).__name__}.step() returned the reward {text[:200]}, not a number")
    return float(array.item())


def numbers_in(info: Any) -> dict[str, float]:
    """The finite numbers in an `info`, by name: also arrays and tensors with one element; booleans as 0 and 1."""
    found = {}
    for key, value in info.items() if isinstance(info, Mapping) else ():
        if not (isinstance(value, bool | int | float) or getattr(value, "shape", None) in ((), (1,))):
            continue
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # such as a tensor on another device
            array = np.asarray(value)
            if (
                array.dtype.kind in "biuf"
                and math.isfinite(array.item())
                and isinstance(key, str)
                and key.isprintable()
            ):
                found[key] = float(array.item())
    return found


def check_api(env_id: str, env: Env) -> None:
    """Reset an environment and take a step, to see that it has Gymnasium's interface.

    Raises:
        UserError: it has that of gym before 0.26.
        ReturnError: the reward is not a number.
    """
    inner: Any = env.unwrapped
    name = type(inner).__name__
    parameters = inspect.signature(inner.reset).parameters.values()
    if not any(p.name == "seed" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        raise UserError(f"env.id={env_id}: {name}.reset() takes no seed; in Gymnasium {RESET}")
    first = inner.reset(seed=0)
    if not (isinstance(first, tuple) and len(first) == 2 and isinstance(first[1], dict)):
        raise UserError(f"env.id={env_id}: {name}.reset() returned only an observation; in Gymnasium {RESET}")
    box = inner.action_space
    result = inner.step(((box.low + box.high) / 2).astype(box.dtype))
    if not (isinstance(result, tuple) and len(result) == 5):
        values = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
        raise UserError(f"env.id={env_id}: {name}.step() returned {values}; in Gymnasium {STEP}")
    as_number(result[1], env)
