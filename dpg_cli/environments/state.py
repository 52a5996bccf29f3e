"""The state of an environment in the middle of an episode, as plain data, so that a run resumes exactly.

No simulator offers this: `pickle` keeps only constructor arguments, and MuJoCo's own `mj_getState` omits derived fields
that Ant, Humanoid and Reacher read before their next step. So every attribute of the environment and its wrappers is
copied, including all of MuJoCo's data. Methods of the environment and functions of its module are copied by name. If an
attribute is none of these, `CannotCopy` names it. `probe.py` tests a copy.

A state is a tree of dictionaries, lists, numbers, strings and arrays, which `storage/checkpoint.py` stores.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from dpg_cli.environments.plain_data import (
    MAY_BE_NONE,
    PLAIN,
    PLAIN_KINDS,
    CannotCopy,
    Decoder,
    Encoder,
    has_no_state,
    kind_of,
    kind_of_tree,
)

Env = gym.Env[np.ndarray, np.ndarray]

CACHED_SPEC = "_cached_spec"  # of a wrapper, set when somebody asks for `spec`
# Fixed when an environment is created, or only for rendering.
CONSTANT_NAMES = {"metadata", "mujoco_renderer", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", CACHED_SPEC}
CONSTANT_TYPES = (EnvSpec, types.ModuleType)

# For each layer, the attributes without a state and the spaces of an environment as it was created. With each are
# the values that a function has taken from its surroundings, which it may change.
Constants = Sequence[Mapping[str, tuple[Any, Sequence[Any]]]]


def constants(env: Env) -> Constants:
    """What does not change in an environment that was just created, for `get_state` and `put_back`."""
    return [
        {n: (v, _cells(v)) for n, v in vars(layer).items() if _is_stateless(v, layer) or isinstance(v, spaces.Space)}
        for layer in layers(env)
    ]


def get_state(env: Env, fixed: Constants) -> list[dict[str, Any]]:
    """The state of an environment and its wrappers, outermost first.

    Args:
        env: the environment.
        fixed: its `constants()`.

    Raises:
        CannotCopy: an attribute cannot be copied.
    """
    encoder = Encoder()
    for layer, own in zip(layers(env), fixed, strict=True):
        if slots := [cls for cls in type(layer).__mro__ if getattr(cls, "__slots__", None)]:
            raise CannotCopy(f"{slots[0].__name__} has __slots__")
        for name, value in vars(layer).items():
            if isinstance(value, spaces.Space) and own.get(name, (None,))[0] is not value:
                raise CannotCopy(f"{type(layer).__name__}.{name} is a space that was replaced")
    return [
        {
            name: encoder.encode(value, f"{type(layer).__name__}.{name}", layer)
            for name, value in vars(layer).items()
            if not _is_constant(layer, name, value, own)
        }
        for layer, own in zip(layers(env), fixed, strict=True)
    ]


def set_state(env: Env, state: list[dict[str, Any]]) -> None:
    """Put an environment that was created in the same way, and reset, into a state.

    The state may come from a stranger. It can set only attributes that `get_state` returns or that do not exist yet,
    and only plain data replaces plain data.

    Raises:
        CannotCopy: the state belongs to another environment, or to another version of it.
        ValueError: the state is invalid.
    """
    found, decoder = list(layers(env)), Decoder()
    if len(found) != len(state):
        raise CannotCopy(f"the saved state has {len(state)} layers, the environment {len(found)}")
    for layer, values in zip(found, state, strict=True):
        own = vars(layer)
        for name, value in values.items():
            if name == CACHED_SPEC:  # older checkpoints have it
                continue
            where = f"{type(layer).__name__}.{name}"
            current = own.get(name)
            if _has_constant_name(layer, name) or isinstance(current, CONSTANT_TYPES) or not _settable(layer, name):
                raise ValueError(f"{where} must not be set")
            if name in own and not _may_follow(current, value, where, layer, decoder):
                raise ValueError(f"{where} is not a {type(current).__name__}")
            setattr(layer, name, decoder.decode(value, current, where, layer))


def put_back(env: Env, state: list[dict[str, Any]], fixed: Constants) -> None:
    """Put an environment back into an earlier state of its own, without the attributes that it did not have then.

    Raises:
        CannotCopy: it is no longer the environment that it was.
        ValueError: an attribute cannot be set.
    """
    for layer, values, own in zip(layers(env), state, fixed, strict=True):
        for name, value in list(vars(layer).items()):
            if not _is_constant(layer, name, value, own) and not (name in values and _can_copy(value, layer)):
                delattr(layer, name)
        for name, (value, _) in own.items():
            setattr(layer, name, value)
    set_state(env, state)


def layers(env: Any) -> Iterator[Any]:
    """An environment and its wrappers, outermost first."""
    while True:
        yield env
        if env is env.unwrapped:
            return
        env = env.env


def _settable(layer: Any, name: str) -> bool:
    """Whether an attribute exists, or could appear in a step: the class has plain data of that name, or nothing."""
    if name in vars(layer):
        return True
    if hasattr(type(layer), name):
        return not name.startswith("__") and isinstance(getattr(type(layer), name), PLAIN)
    return not name.startswith("__") and not hasattr(layer, name)


def _is_constant(layer: Any, name: str, value: Any, fixed: Mapping[str, Any]) -> bool:
    if _has_constant_name(layer, name) or isinstance(value, CONSTANT_TYPES):
        return True
    if isinstance(value, spaces.Space) or name not in fixed:
        return False
    known, cells = fixed[name]
    return known is value and all(a is b for a, b in zip(_cells(value), cells, strict=True))


def _has_constant_name(layer: Any, name: str) -> bool:
    return name in CONSTANT_NAMES or (name == "env" and layer is not layer.unwrapped)


def _is_stateless(value: Any, owner: Any) -> bool:
    """Whether a value has no state of its own, so that it is constant as long as no other takes its place."""
    if isinstance(value, types.MethodType):
        return value.__self__ is owner or isinstance(value.__self__, type)
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, types.ModuleType)
    if isinstance(value, types.FunctionType):
        harmless = all(cell is owner or isinstance(cell, (*PLAIN, type, types.ModuleType)) for cell in _cells(value))
        return harmless and has_no_state(value)
    return isinstance(value, type)


def _cells(value: Any) -> list[Any]:
    """What a function has taken from its surroundings; nothing for other values."""
    found = []
    for cell in getattr(value, "__closure__", None) or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # empty
            found.append(None)
    return found


def _can_copy(value: Any, owner: Any) -> bool:
    try:
        Encoder().encode(value, "", owner)
    except CannotCopy:
        return False
    return True


def _may_follow(current: Any, stored: Any, where: str, owner: Any, decoder: Decoder) -> bool:
    """Whether a stored value may replace the current one: plain data for plain data, else one of the same kind."""
    kind = kind_of_tree(stored)
    if kind == "alias":
        kind = kind_of(decoder.objects[stored["alias"]], where, owner)
    kinds = {kind_of(current, where, owner), kind}
    return len(kinds) == 1 or kinds <= PLAIN_KINDS or ("none" in kinds and bool(kinds & MAY_BE_NONE))
