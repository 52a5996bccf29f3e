"""What an environment may return, and the errors of one that returns something else or raises."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpg_cli.environments.state import Env, layers
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
    number = _number(reward)
    if number is None:
        text = " ".join(repr(reward).split())
        raise ReturnError(f"{type(env.unwrapped).__name__}.step() returned the reward {text[:200]}, not a number")
    return number


def numbers_in(info: Any) -> dict[str, float]:
    """The finite numbers in an `info`, by name: also arrays and tensors with one element; booleans as 0 and 1."""
    found = {}
    for key, value in info.items() if isinstance(info, Mapping) else ():
        if isinstance(key, str) and key and key.isprintable():
            number = _number(value)
            if number is not None and math.isfinite(number):
                found[key] = number
    return found


def _number(value: Any) -> float | None:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and math.prod(shape) == 1:
        value = value.item()
    if not isinstance(value, bool | int | float | np.floating):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def explain_old_interface(env_id: str, env: Env) -> None:
    """Look for the layer of an environment that has the interface of gym before 0.26, from the inside out.

    Args:
        env_id: for messages.
        env: raised an error in a reset or a step.

    Raises:
        UserError: it has that interface.
    """
    own = [layer for layer in layers(env) if not type(layer).__module__.startswith(("gymnasium.", "dpg_cli."))]
    for layer in reversed(own):
        name = type(layer).__name__
        parameters = inspect.signature(layer.reset).parameters.values()
        if not any(p.name == "seed" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            raise UserError(f"env.id={env_id}: {name}.reset() takes no seed; in Gymnasium {RESET}")
        first = layer.reset(seed=0)
        if not (isinstance(first, tuple) and len(first) == 2 and isinstance(first[1], dict)):
            raise UserError(f"env.id={env_id}: {name}.reset() returned only an observation; in Gymnasium {RESET}")
        result = layer.step(layer.action_space.sample())
        if not (isinstance(result, tuple) and len(result) == 5):
            values = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
            raise UserError(f"env.id={env_id}: {name}.step() returned {values}; in Gymnasium {STEP}")
