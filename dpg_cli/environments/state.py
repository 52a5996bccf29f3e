"""The state of an environment in the middle of an episode, as plain data, so that a run resumes exactly.

No simulator offers this: `pickle` keeps only constructor arguments, and MuJoCo's own `mj_getState` omits derived fields
that Ant, Humanoid and Reacher read before their next step. So every attribute of the environment and its wrappers is
copied, including all of MuJoCo's data. If one is not plain data, `CannotCopy` names it. `copies_exactly` tests a copy.

A state is a tree of dictionaries, lists, numbers, strings and arrays, which `storage/checkpoint.py` stores.
"""

import hashlib
import inspect
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

Env = gym.Env[np.ndarray, np.ndarray]

# Fixed when an environment is made, or only for rendering.
CONSTANT_NAMES = {"env", "metadata", "mujoco_renderer", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}
CONSTANT_TYPES = (EnvSpec, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType)
PLAIN = (bool, int, float, str, types.NoneType)
PLAIN_KINDS = {"number", "text", "none", "array", "deque", "tuple", "list", "dict"}


class CannotCopy(Exception):  # noqa: N818 - it names the problem
    """An environment's state cannot be copied, or does not fit this environment."""


def get_state(env: Env) -> list[dict[str, Any]]:
    """The state of an environment and its wrappers, outermost first.

    Raises:
        CannotCopy: an attribute is not plain data.
    """
    return [
        {
            name: encode(value, f"{type(layer).__name__}.{name}")
            for name, value in vars(layer).items()
            if name not in CONSTANT_NAMES and not isinstance(value, CONSTANT_TYPES)
        }
        for layer in layers(env)
    ]


def set_state(env: Env, state: list[dict[str, Any]]) -> None:
    """Put an environment that was made in the same way, and reset, into a state.

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
            where = f"{type(layer).__name__}.{name}"
            current = own.get(name)
            if name in CONSTANT_NAMES or isinstance(current, CONSTANT_TYPES) or not _settable(layer, name):
                raise ValueError(f"{where} must not be set")
            if name in own and not _may_follow(current, value, where):
                raise ValueError(f"{where} is not a {type(current).__name__}")
            setattr(layer, name, _decode(value, current, where))


def copies_exactly(
    make: Callable[[], Env],
    steps: int = 30,
    watch: Callable[[Env], AbstractContextManager[None]] = lambda _: nullcontext(),
    durations: list[float] | None = None,
) -> str | None:
    """Test whether a copy of an environment's state behaves like the original.

    Args:
        make: makes one environment; two are made, and closed.
        steps: made before the copy; as many follow after it, and again after a reset.
        watch: called with the original; returns a context for its reset and its steps before the copy.
        durations: receives the seconds of each of these steps.

    Returns:
        None if it does, else the problem.
    """
    original, copy = make(), make()
    actions = np.random.default_rng(0)

    def step(env: Env, action: np.ndarray) -> tuple[Any, ...]:
        obs, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset()
        return obs, reward, terminated, truncated

    try:
        size = original.action_space.shape
        original.reset(seed=0)
        copy.reset(seed=1)
        with watch(original):
            original.reset()
            for _ in range(steps):
                action, start = actions.uniform(-1, 1, size), time.perf_counter()
                step(original, action)
                if durations is not None:
                    durations.append(time.perf_counter() - start)
        set_state(copy, get_state(original))
        for index in range(2 * steps):
            if index == steps:
                results: tuple[Any, Any] = original.reset()[0], copy.reset()[0]
            else:
                action = actions.uniform(-1, 1, size)
                results = step(original, action), step(copy, action)
            if not _same(*results):
                return f"a copy of it diverges after {index + 1} steps"
    except CannotCopy as error:
        return str(error)
    except (Exception, SystemExit) as error:  # raised by the environment; training shows whether it matters
        return f"trying it raised {type(error).__name__}"
    finally:
        original.close()
        copy.close()
    return None


def _settable(layer: Any, name: str) -> bool:
    """Whether an attribute exists, or could appear in a step: the class has plain data of that name, or nothing."""
    if name in vars(layer):
        return True
    if hasattr(type(layer), name):
        return not name.startswith("__") and isinstance(getattr(type(layer), name), PLAIN)
    return not name.startswith("__") and not hasattr(layer, name)


def _may_follow(current: Any, stored: Any, where: str) -> bool:
    """Whether a stored value may replace the current one: plain data for plain data, else one of the same kind."""
    kinds = {_kind(encode(current, where)), _kind(stored)}
    return len(kinds) == 1 or kinds <= PLAIN_KINDS or kinds == {"generator", "none"}


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


def encode(value: Any, where: str) -> Any:
    """A value as a tree of plain data; a type that JSON lacks becomes a dictionary with one key that names it.

    Raises:
        CannotCopy: the value is not plain data.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject or value.dtype.kind not in "biuf":
            raise CannotCopy(f"{where} is an array of {value.dtype}")
        return value.copy()
    if isinstance(value, np.generic):
        return {"scalar": encode(np.asarray(value), where)}
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, deque):
        return {"deque": [encode(v, where) for v in value], "maxlen": value.maxlen}
    if isinstance(value, tuple | list):
        items = [encode(v, where) for v in value]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, dict):
        return {"dict": [[encode(k, where), encode(v, where)] for k, v in value.items()]}
    if isinstance(value, np.random.Generator):
        return {"generator": value.bit_generator.state}
    if isinstance(value, spaces.Space):
        return {"space": [encode(space._np_random, where) for space in _spaces(value)]}
    if _is_mujoco(value, "MjModel"):
        return {"model": _model_hash(value)}
    if _is_mujoco(value, "MjData"):
        return {"data": _get_data(value)}
    raise CannotCopy(f"{where} is a {type(value).__name__}")


def _decode(value: Any, current: Any, where: str) -> Any:
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
            return deque((_decode(v, None, where) for v in content), maxlen=most)
        case "tuple":
            return tuple(_decode(v, None, where) for v in content)
        case "list":
            return [_decode(v, None, where) for v in content]
        case "dict":
            return {_decode(k, None, where): _decode(v, None, where) for k, v in content}
        case "generator":
            return _generator(content)
        case "space":
            for space, generator in zip(_spaces(current), content, strict=True):
                if _kind(generator) not in ("generator", "none"):
                    raise ValueError(f"{where} is not a generator")
                space._np_random = _decode(generator, None, where)
            return current
        case "model":
            if content != _model_hash(current):
                raise CannotCopy(f"{where}: the model differs from the saved one")
            return current
        case "data":
            _set_data(current, content, where)
            return current
    raise ValueError(f"{where}: unknown kind {kind}")


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
