"""Values of an environment's attributes as trees of plain data: dictionaries, lists, numbers, strings and arrays.

A type that JSON lacks becomes a dictionary with one key that names it. An object that several attributes share, or that
contains itself, is stored once; its other places hold its number.
"""

import dataclasses
import enum
import inspect
import sys
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from dpg_cli.environments import mujoco_data

PLAIN = (bool, int, float, str, types.NoneType)
GENERATORS: dict[str, type[np.random.BitGenerator]] = {"PCG64": np.random.PCG64, "PCG64DXSM": np.random.PCG64DXSM}
CONTAINERS: dict[type, str] = {list: "list", dict: "dict", tuple: "tuple", deque: "deque"}
PLAIN_KINDS = {"number", "text", "none", "array", "view", "deque", "tuple", "list", "dict"}
MAY_BE_NONE = {"generator", "method", "function", "enum", "dataclass"}


class CannotCopy(Exception):  # noqa: N818 - it names the problem
    """A value cannot be copied, or does not fit this environment."""


def kind_of(value: Any, where: str, owner: Any) -> str:
    """The kind of a value, which also names it in a tree.

    Args:
        value: of an attribute.
        where: the attribute, for messages.
        owner: the environment or wrapper that has it.

    Raises:
        CannotCopy: values of its type cannot be copied. Subclasses may behave differently, so they cannot either.
    """
    cls = type(value)
    if isinstance(value, enum.Enum) and value.name in cls.__members__ and _named(owner, cls.__qualname__) is cls:
        return "enum"
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8 or not value.dtype.isnative:
            raise CannotCopy(f"{where} is an array of {value.dtype}")
        if isinstance(value, np.generic):
            return "number"
        if cls is np.ndarray:
            if value.base is None:
                return "array"
            if type(root := _root(value)) is np.ndarray and root.flags.c_contiguous:
                return "view"
            raise CannotCopy(f"{where} is a view of memory that is no array")
    elif cls in (bool, int, float):
        return "number"
    elif cls is str:
        return "text"
    elif value is None:
        return "none"
    elif cls in CONTAINERS:
        return CONTAINERS[cls]
    elif cls is np.random.Generator and _can_restore(value):
        return "generator"
    elif isinstance(value, types.MethodType) and value == getattr(owner, value.__name__, None):
        return "method"
    elif isinstance(value, types.FunctionType) and has_no_state(value) and _named(owner, value.__name__) is value:
        return "function"
    elif dataclasses.is_dataclass(value) and cls.__base__ is object and _named(owner, cls.__qualname__) is cls:
        if hasattr(value, "__dict__"):
            return "dataclass"
    elif isinstance(value, spaces.Space):
        return "space"
    elif mujoco_data.is_a(value, "MjModel"):
        return "model"
    elif mujoco_data.is_a(value, "MjData"):
        return "data"
    raise CannotCopy(f"{where} is a {cls.__name__}")


def has_no_state(function: types.FunctionType) -> bool:
    """Whether a function keeps nothing between calls in its attributes or the defaults of its arguments."""
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return not vars(function) and all(isinstance(default, (*PLAIN, type)) for default in defaults)


def kind_of_tree(tree: Any) -> str:
    """The kind of the value that a tree holds."""
    if isinstance(tree, np.ndarray):
        return "array"
    if isinstance(tree, dict):
        return next((kind for kind in tree if kind != "maxlen"), "dict").replace("scalar", "number")
    return {bool: "number", int: "number", float: "number", str: "text", types.NoneType: "none"}[type(tree)]


class Encoder:
    """Makes trees of values that may share objects."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._seen: list[Any] = []  # kept, since ids are only unique among objects that exist

    def encode(self, value: Any, where: str, owner: Any) -> Any:
        """The tree of a value; the arguments are those of `kind_of`.

        Raises:
            CannotCopy: the value cannot be copied.
        """
        try:
            return self._encode(value, where, owner)
        except RecursionError as error:
            raise CannotCopy(f"{where} is nested too deeply") from error

    def _encode(self, value: Any, where: str, owner: Any) -> Any:
        kind = kind_of(value, where, owner)
        if kind in ("array", "deque", "list", "dict", "generator", "dataclass"):
            if (number := self._numbers.get(id(value))) is not None:
                return {"alias": number}
            self._numbers[id(value)] = len(self._seen)
            self._seen.append(value)
        match kind:
            case "view":
                root = _root(value)
                offset = value.__array_interface__["data"][0] - root.__array_interface__["data"][0]
                place = [offset, list(value.shape), list(value.strides), value.dtype.str]
                return {"view": [self._encode(root, where, owner), *place]}
            case "enum":
                return {"enum": [type(value).__qualname__, value.name]}
            case "array":
                return value.copy()
            case "deque":
                return {"deque": [self._encode(v, where, owner) for v in value], "maxlen": value.maxlen}
            case "tuple" | "list":
                return {kind: [self._encode(v, where, owner) for v in value]}
            case "dict":
                return {"dict": [[self._encode(item, where, owner) for item in pair] for pair in value.items()]}
            case "generator":
                return {"generator": value.bit_generator.state}
            case "method" | "function":
                return {kind: value.__name__}
            case "dataclass":
                return {"dataclass": [type(value).__qualname__, self._encode(dict(vars(value)), where, owner)]}
            case "space":
                return {"space": [self._encode(space._np_random, where, owner) for space in _spaces(value)]}
            case "model":
                return {"model": mujoco_data.model_hash(value)}
            case "data":
                return {"data": mujoco_data.get_data(value)}
        return {"scalar": np.array(value)} if isinstance(value, np.generic) else value


class Decoder:
    """Makes values of an encoder's trees, in the same order.

    Args:
        in_place: whether to change the present objects where that is possible, because others may hold them too.
            Otherwise all objects are new: the present ones may be those of a class.
    """

    def __init__(self, *, in_place: bool = False) -> None:
        self.objects: list[Any] = []  # by the encoder's number
        self._in_place = in_place

    def decode(self, tree: Any, current: Any, where: str, owner: Any) -> Any:
        """The value of a tree.

        Args:
            tree: from an `Encoder`; it may come from a stranger.
            current: what the attribute holds at present.
            where: the attribute, for messages.
            owner: the environment or wrapper that has it.

        Raises:
            CannotCopy: it belongs to another environment, or to another version of it.
            ValueError: it is invalid.
        """
        if isinstance(tree, np.ndarray):
            own = self._reusable(current, np.ndarray)
            if own is None or (own.shape, own.dtype) != (tree.shape, tree.dtype) or not own.flags.writeable:
                return self._register(tree.copy())
            own[...] = tree
            return self._register(own)
        if not isinstance(tree, dict):
            return tree
        ((kind, content),) = [(k, v) for k, v in tree.items() if k != "maxlen"]
        match kind:
            case "alias":
                return self.objects[content]
            case "view":
                root, offset, shape, strides, dtype = content
                buffer = self.decode(root, None, where, owner)
                return np.ndarray(shape, dtype, buffer, offset, strides)  # checks that it lies in the buffer
            case "scalar":
                return content.reshape(())[()]
            case "tuple":
                return tuple(self.decode(v, None, where, owner) for v in content)
            case "list":
                items = self._register(self._reusable(current, list) or [])
                items[:] = [self.decode(v, None, where, owner) for v in content]
                return items
            case "deque":
                own = self._reusable(current, deque)
                if own is None or own.maxlen != tree["maxlen"]:
                    own = deque(maxlen=tree["maxlen"])
                queue = self._register(own)
                values = [self.decode(v, None, where, owner) for v in content]
                queue.clear()
                queue.extend(values)
                return queue
            case "dict":
                table = self._register(self._reusable(current, dict) or {})
                pairs = [[self.decode(item, None, where, owner) for item in pair] for pair in content]
                table.clear()
                table.update(pairs)
                return table
            case "generator":
                return self._generator(content, current)
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
                    made = self._register(object.__new__(cls))
                    for name, field in self.decode(content[1], None, where, owner).items():
                        object.__setattr__(made, name, field)
                    return made
            case "space":
                for space, generator in zip(_spaces(current), content, strict=True):
                    if kind_of_tree(generator) not in ("generator", "none", "alias"):
                        raise ValueError(f"{where} is not a generator")
                    space._np_random = self.decode(generator, space._np_random, where, owner)
                return current
            case "model":
                if content != mujoco_data.model_hash(current):
                    raise CannotCopy(f"{where}: the model differs from the saved one")
                return current
            case "data":
                if (problem := mujoco_data.set_data(current, content)) is not None:
                    raise CannotCopy(f"{where}: {problem}")
                return current
            case _:
                raise ValueError(f"{where}: unknown kind {kind}")
        raise CannotCopy(f"{where}: this version of the environment has no such {kind}")

    def _register(self, made: Any) -> Any:
        self.objects.append(made)
        return made

    def _reusable(self, current: Any, cls: type) -> Any:
        """The present object, if it may be changed and has the type."""
        return current if self._in_place and type(current) is cls else None

    def _generator(self, state: dict[str, Any], current: Any) -> np.random.Generator:
        cls = GENERATORS[state["bit_generator"]]
        own = self._reusable(current, np.random.Generator)
        if own is None or type(own.bit_generator) is not cls:
            own = np.random.Generator(cls())
        generator: np.random.Generator = self._register(own)
        generator.bit_generator.state = state
        return generator


def _root(view: np.ndarray) -> Any:
    """The array whose memory a view shows, or whatever else holds that memory."""
    root: Any = view
    while isinstance(root, np.ndarray) and root.base is not None:
        root = root.base
    return root


def _can_restore(generator: np.random.Generator) -> bool:
    """Whether a generator's state is all that it has; one that has spawned others counts them elsewhere."""
    bits = generator.bit_generator
    return type(bits).__name__ in GENERATORS and not getattr(bits.seed_seq, "n_children_spawned", 0)


def _named(owner: Any, name: str) -> Any:
    """What the modules of an environment's classes define themselves under a name; None if they do not."""
    for cls in type(owner).__mro__:
        found = vars(sys.modules.get(cls.__module__, types)).get(name)
        if getattr(found, "__module__", None) == cls.__module__:
            return found
    return None


def _spaces(space: spaces.Space[Any]) -> Iterator[spaces.Space[Any]]:
    yield space
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for child in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            yield from _spaces(child)
