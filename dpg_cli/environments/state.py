"""The state of an environment in the middle of an episode, as plain data, so that a run resumes exactly.

No simulator offers this: `pickle` keeps only constructor arguments, and MuJoCo's own `mj_getState` omits derived fields
that Ant, Humanoid and Reacher read before their next step. So every attribute of the environment and its wrappers is
copied, including all of MuJoCo's data. Methods of the environment and functions of its module are copied by name. If an
attribute is none of these, `CannotCopy` names it. `probe.py` tests a copy.

A state is a tree of dictionaries, lists, numbers, strings and arrays, which `storage/checkpoint.py` stores.
"""

import dataclasses
import enum
import hashlib
import inspect
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

Env = gym.Env[np.ndarray, np.ndarray]

CACHED_SPEC = "_cached_spec"  # of a wrapper, set when somebody asks for `spec`
# Fixed when an environment is created, or only for rendering.
CONSTANT_NAMES = {"env", "metadata", "mujoco_renderer", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}
CONSTANT_NAMES |= {CACHED_SPEC}
# Without a state of their own. Such a value is constant as long as it is the one that the constructor has set.
STATELESS = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
CONSTANT_TYPES = (EnvSpec, types.ModuleType)
PLAIN = (bool, int, float, str, types.NoneType)
PLAIN_KINDS = {"number", "text", "none", "array", "deque", "tuple", "list", "dict"}
MAY_BE_NONE = {"generator", "method", "function", "enum", "dataclass"}

Constants = Sequence[Mapping[str, Any]]  # for each layer, the stateless attributes of an environment as it was created


class CannotCopy(Exception):  # noqa: N818 - it names the problem
    """An environment's state cannot be copied, or does not fit this environment."""


def constants(env: Env) -> Constants:
    """The stateless attributes of an environment that was just created, for `get_state` and `put_back`."""
    return [{n: v for n, v in vars(layer).items() if isinstance(v, STATELESS)} for layer in layers(env)]


def get_state(env: Env, fixed: Constants) -> list[dict[str, Any]]:
    """The state of an environment and its wrappers, outermost first.

    Args:
        env: the environment.
        fixed: its `constants()`.

    Raises:
        CannotCopy: an attribute cannot be copied.
    """
    return [
        {
            name: encode(value, f"{type(layer).__name__}.{name}", layer)
            for name, value in vars(layer).items()
            if not _is_constant(name, value, own)
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
    found = list(layers(env))
    if len(found) != len(state):
        raise CannotCopy(f"the saved state has {len(state)} layers, the environment {len(found)}")
    for layer, values in zip(found, state, strict=True):
        own = vars(layer)
        for name, value in values.items():
            if name == CACHED_SPEC:  # older checkpoints have it
                continue
            where = f"{type(layer).__name__}.{name}"
            current = own.get(name)
            if name in CONSTANT_NAMES or isinstance(current, CONSTANT_TYPES) or not _settable(layer, name):
                raise ValueError(f"{where} must not be set")
            if name in own and not _may_follow(current, value, where, layer):
                raise ValueError(f"{where} is not a {type(current).__name__}")
            setattr(layer, name, _decode(value, current, where, layer))


def put_back(env: Env, state: list[dict[str, Any]], fixed: Constants) -> None:
    """Put an environment back into an earlier state of its own, without the attributes that it did not have then."""
    for layer, values, own in zip(layers(env), state, fixed, strict=True):
        for name, value in list(vars(layer).items()):
            if not _is_constant(name, value, own) and not (name in values and _can_copy(value, layer)):
                delattr(layer, name)
        for name, value in own.items():
            setattr(layer, name, value)
    set_state(env, state)


def _settable(layer: Any, name: str) -> bool:
    """Whether an attribute exists, or could appear in a step: the class has plain data of that name, or nothing."""
    if name in vars(layer):
        return True
    if hasattr(type(layer), name):
        return not name.startswith("__") and isinstance(getattr(type(layer), name), PLAIN)
    return not name.startswith("__") and not hasattr(layer, name)


def _is_constant(name: str, value: Any, fixed: Mapping[str, Any]) -> bool:
    if name in CONSTANT_NAMES or isinstance(value, CONSTANT_TYPES):
        return True
    return isinstance(value, STATELESS) and fixed.get(name) is value


def _can_copy(value: Any, owner: Any) -> bool:
    try:
        encode(value, "", owner)
    except CannotCopy:
        return False
    return True


def _may_follow(current: Any, stored: Any, where: str, owner: Any) -> bool:
    """Whether a stored value may replace the current one: plain data for plain data, else one of the same kind."""
    kinds = {_kind(encode(current, where, owner)), _kind(stored)}
    return len(kinds) == 1 or kinds <= PLAIN_KINDS or ("none" in kinds and bool(kinds & MAY_BE_NONE))


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "array"
    if isinstance(value, dict):
        return next((kind for kind in value if kind != "maxlen"), "dict").replace("scalar", "number")
    return {bool: "number", int: "number", float: "number", str: "text", types.NoneType: "none"}[type(value)]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.array_equal(a, b, equal_nan=True))


def layers(env: Any) -> Iterator[Any]:
    """An environment and its wrappers, outermost first."""
    while True:
        yield env
        if env is env.unwrapped:
            return
        env = env.env


def encode(value: Any, where: str, owner: Any = None) -> Any:
    """A value as a tree of plain data; a type that JSON lacks becomes a dictionary with one key that names it.

    Args:
        value: of an attribute.
        where: the attribute, for messages.
        owner: the environment or wrapper that has it.

    Raises:
        CannotCopy: the value cannot be copied.
    """
    if isinstance(value, enum.Enum) and _named(owner, type(value).__qualname__) is type(value):
        return {"enum": [type(value).__qualname__, value.name]}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject or value.dtype.kind not in "biuf":
            raise CannotCopy(f"{where} is an array of {value.dtype}")
        return value.copy()
    if isinstance(value, np.generic):
        return {"scalar": encode(np.asarray(value), where, owner)}
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, deque):
        return {"deque": [encode(v, where, owner) for v in value], "maxlen": value.maxlen}
    if isinstance(value, tuple | list):
        items = [encode(v, where, owner) for v in value]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, dict):
        return {"dict": [[encode(k, where, owner), encode(v, where, owner)] for k, v in value.items()]}
    if isinstance(value, np.random.Generator):
        return {"generator": value.bit_generator.state}
    if isinstance(value, types.MethodType) and value == getattr(owner, value.__name__, None):
        return {"method": value.__name__}
    if isinstance(value, types.FunctionType) and _named(owner, value.__name__) is value:
        return {"function": value.__name__}
    if dataclasses.is_dataclass(value) and _named(owner, type(value).__qualname__) is type(value):
        return {"dataclass": [type(value).__qualname__, encode(vars(value), where, owner)]}
    if isinstance(value, spaces.Space):
        return {"space": [encode(space._np_random, where, owner) for space in _spaces(value)]}
    if _is_mujoco(value, "MjModel"):
        return {"model": _model_hash(value)}
    if _is_mujoco(value, "MjData"):
        return {"data": _get_data(value)}
    raise CannotCopy(f"{where} is a {type(value).__name__}")


def restored(value: Any, current: Any, owner: Any) -> Any:
    """The value that `encode` has copied: the object that it was copied from, where that can be changed."""
    if isinstance(current, np.random.Generator):
        current.bit_generator.state = value["generator"]
        return current
    decoded = _decode(value, current, "", owner)
    if isinstance(current, list | deque) and type(current) is type(decoded):
        current.clear()
        current.extend(decoded)
        return current
    if isinstance(current, dict) and isinstance(decoded, dict):
        current.clear()
        current.update(decoded)
        return current
    return decoded


def _decode(value: Any, current: Any, where: str, owner: Any) -> Any:
    if isinstance(value, np.ndarray):
        alike = isinstance(current, np.ndarray) and (current.shape, current.dtype) == (value.shape, value.dtype)
        if not alike or not current.flags.writeable:
            return value.copy()
        current[...] = value  # in place, since others may share the memory
        return current
    if not isinstance(value, dict):
        return value
    ((kind, content),) = [(k, v) for k, v in value.items() if k != "maxlen"]
    match kind:
        case "scalar":
            return content.reshape(())[()]
        case "deque":
            most = current.maxlen if isinstance(current, deque) else value["maxlen"]
            return deque((_decode(v, None, where, owner) for v in content), maxlen=most)
        case "tuple":
            return tuple(_decode(v, None, where, owner) for v in content)
        case "list":
            return [_decode(v, None, where, owner) for v in content]
        case "dict":
            return {_decode(k, None, where, owner): _decode(v, None, where, owner) for k, v in content}
        case "generator":
            return _generator(content)
        case "method":
            if isinstance(inspect.getattr_static(type(owner), content, None), types.FunctionType):
                return getattr(owner, content)
        case "function":
            if isinstance(function := _named(owner, content), types.FunctionType):
                return function
        case "enum":
            if isinstance(cls := _named(owner, content[0]), enum.EnumType) and content[1] in cls.__members__:
                return cls[content[1]]
        case "dataclass":
            if isinstance(cls := _named(owner, content[0]), type) and dataclasses.is_dataclass(cls):
                made = object.__new__(cls)
                for name, field in _decode(content[1], None, where, owner).items():
                    object.__setattr__(made, name, field)
                return made
        case "space":
            for space, generator in zip(_spaces(current), content, strict=True):
                if _kind(generator) not in ("generator", "none"):
                    raise ValueError(f"{where} is not a generator")
                space._np_random = _decode(generator, None, where, owner)
            return current
        case "model":
            if content != _model_hash(current):
                raise CannotCopy(f"{where}: the model differs from the saved one")
            return current
        case "data":
            _set_data(current, content, where)
            return current
        case _:
            raise ValueError(f"{where}: unknown kind {kind}")
    raise CannotCopy(f"{where}: this version of the environment has no such {kind}")


def _named(owner: Any, name: str) -> Any:
    """What the modules of an environment's classes define themselves under a name; None if they do not."""
    for cls in type(owner).__mro__:
        found = vars(sys.modules.get(cls.__module__, types)).get(name)
        if getattr(found, "__module__", None) == cls.__module__:
            return found
    return None


def _generator(state: dict[str, Any]) -> np.random.Generator:
    """A generator from the state of its bit generator, which must be one of NumPy's."""
    known: dict[str, type[np.random.BitGenerator]] = {"PCG64": np.random.PCG64, "PCG64DXSM": np.random.PCG64DXSM}
    bits = known[state["bit_generator"]]()
    bits.state = state
    return np.random.Generator(bits)


def _spaces(space: spaces.Space[Any]) -> Iterator[spaces.Space[Any]]:
    yield space
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for child in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            yield from _spaces(child)


def _is_mujoco(value: object, name: str) -> bool:
    return type(value).__name__ == name and type(value).__module__.startswith("mujoco")


def _model_hash(model: Any) -> str:
    import mujoco

    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return hashlib.sha256(buffer.tobytes()).hexdigest()


def _get_data(data: Any) -> dict[str, Any]:
    """MuJoCo's data: the state that integration needs, and by name every flag and array of floats or booleans.

    Arrays of integers are left out: they are indices into other arrays, which MuJoCo recomputes, and memory addresses.
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(data.model, kind))
    mujoco.mj_getState(data.model, data, integration, kind)
    fields = {name: value for name, value in inspect.getmembers(data) if not name.startswith("_")}
    return {
        "version": mujoco.__version__,
        "integration": integration,
        "arrays": {name: value.copy() for name, value in fields.items() if _is_quantity(value)},
        "flags": {name: bool(value) for name, value in fields.items() if name.startswith("flg_")},
    }


def _set_data(data: Any, stored: dict[str, Any], where: str) -> None:
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    if stored["integration"].shape != (mujoco.mj_stateSize(data.model, kind),):
        raise CannotCopy(f"{where}: the saved state has another size")
    mujoco.mj_setState(data.model, data, stored["integration"], kind)
    mujoco.mj_forward(data.model, data)  # sets the numbers of contacts and constraints
    own = _get_data(data)
    for name in stored["arrays"].keys() & own["arrays"].keys():
        current, value = getattr(data, name), stored["arrays"][name]
        if (current.shape, current.dtype) == (value.shape, value.dtype) and current.flags.writeable:
            current[...] = value
    for name in stored["flags"].keys() & own["flags"].keys():
        setattr(data, name, bool(stored["flags"][name]))


def _is_quantity(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fb"
