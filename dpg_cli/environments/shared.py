"""State outside of environments that their steps or resets may change: classes, modules, global random generators."""

import contextlib
import functools
import hashlib
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dpg_cli.environments.plain_data import CannotCopy, Decoder, Encoder
from dpg_cli.environments.state import Env, layers

# Packages whose state is not looked at: it is the same for all environments, or their authors' business.
KNOWN_PACKAGES = {"dpg_cli", "gymnasium", "mujoco", "numpy", "torch"} | sys.stdlib_module_names
LARGE = 2**24  # bytes of an array, from which on only a digest is kept, and a change is not undone


class Place(NamedTuple):
    """A value that environments share.

    Attributes:
        value: a copy as plain data.
        restore: puts it back.
        remove: removes it.
    """

    value: Any
    restore: Callable[[], object]
    remove: Callable[[], object] = lambda: None


class SharedState:
    """A snapshot of what the environments of one kind share.

    Args:
        env: one of them.
    """

    def __init__(self, env: Env):
        self._env = env
        self._places = places(env)

    def changes(self) -> list[str]:
        """The names of what has changed since, such as `the class attribute Walk.level`."""
        now = places(self._env)
        names = self._places.keys() | now.keys()
        return sorted(name for name in names if not _equal(self._places.get(name), now.get(name)))

    def restore(self) -> None:
        """Put everything that has changed back, and remove what is new.

        What is no longer plain data stays, such as a server that is now running.
        """
        now = places(self._env)
        for name in self.changes():
            if name not in self._places:
                now[name].remove()
            elif name in now:
                self._places[name].restore()


def places(env: Env) -> dict[str, Place]:
    """By name, the global random generators and the plain data in an environment's classes and modules."""
    numpy_state, python_state = np.random.get_state(legacy=True), random.getstate()  # noqa: NPY002
    found = {
        "NumPy's global random generator": Place(numpy_state, lambda: np.random.set_state(numpy_state)),  # noqa: NPY002
        "Python's global random generator": Place(python_state, lambda: random.setstate(python_state)),
    }
    if (torch := sys.modules.get("torch")) is not None:  # not imported here: worker processes do not need it
        torch_state = torch.get_rng_state()
        found["torch's global random generator"] = Place(torch_state.numpy(), lambda: torch.set_rng_state(torch_state))
    classes = {cls for layer in layers(env) for cls in type(layer).__mro__}
    own = [cls for cls in classes if cls.__module__.partition(".")[0] not in KNOWN_PACKAGES]
    for cls in own:
        found |= _attributes(cls, f"the class attribute {cls.__qualname__}", env.unwrapped)
    for name in {cls.__module__ for cls in own} & sys.modules.keys():
        found |= _attributes(sys.modules[name], f"the global {name}", env.unwrapped)
    return found


def _attributes(holder: Any, prefix: str, owner: Env) -> dict[str, Place]:
    found = {}
    for name, current in vars(holder).items():
        if name.startswith("__"):  # Python's own, such as the record of a module's warnings
            continue
        if isinstance(current, np.ndarray) and current.nbytes > LARGE and current.dtype.kind in "biuf":
            digest = hashlib.sha256(np.ascontiguousarray(current).data).hexdigest()
            found[f"{prefix}.{name}"] = Place(digest, lambda: None)
            continue
        with contextlib.suppress(CannotCopy):  # it is not plain data
            value = Encoder().encode(current, name, owner)
            put_back = functools.partial(_put_back, holder, name, value, current, owner)
            found[f"{prefix}.{name}"] = Place(value, put_back, functools.partial(delattr, holder, name))
    return found


def _put_back(holder: Any, name: str, value: Any, before: Any, owner: Env) -> None:
    setattr(holder, name, Decoder(in_place=True).decode(value, before, name, owner))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Place) and isinstance(b, Place):
        return _equal(a.value, b.value)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and (a == b or a != a)
