"""Gymnasium spaces: as JSON in a policy file, observations as flat vectors, actions in the environment's own box."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from dpg_cli.errors import UserError

Space = spaces.Space[Any]

DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
DTYPES += ("float16", "float32", "float64")
MAX_DEPTH = 16  # of spaces in spaces
MAX_AXES = 32


# --- actions ---


def scale(box: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """The lower bounds of a box and half of its range, flat, in float64: the arguments of `own_actions`."""
    low = box.low.astype(np.float64).ravel()
    return low, 0.5 * (box.high.astype(np.float64).ravel() - low)


def own_actions(action: np.ndarray, low: np.ndarray, half_range: np.ndarray, box: spaces.Box) -> np.ndarray:
    """Map `(..., n)` from [-1, 1]^n to a box, `(..., *box)`; clipped, so that rounding never leaves the box.

    Args:
        action: in [-1, 1]^n.
        low: of `scale`.
        half_range: of `scale`.
        box: of n numbers in any shape.
    """
    scaled = np.asarray(action, np.float64) + 1.0
    scaled *= half_range
    scaled += low
    shaped = scaled.reshape(scaled.shape[:-1] + box.shape).astype(box.dtype)
    np.maximum(shaped, box.low, out=shaped)  # faster than np.clip
    np.minimum(shaped, box.high, out=shaped)
    return shaped


# --- observations ---


def flattener(space: Space, dtype: np.dtype[Any]) -> Callable[[Any], np.ndarray]:
    """A function from an observation of a space to a flat vector, with extra leading axes as a batch.

    It gives what `gymnasium.spaces.flatten` gives, which takes no batches: a dictionary's parts in the order of its
    space, a discrete value as a one-hot vector.

    Args:
        space: made of Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple.
        dtype: of the vectors.

    Returns:
        The function. It raises `UserError`, with the space, if an observation does not fit.
    """

    def complain(what: str) -> UserError:
        return UserError(f"{what}; the observation space is {' '.join(str(space).split())}")

    if isinstance(space, spaces.Box):  # converted directly, as in training
        return _array(space.shape, dtype, dtype, "the observation", complain)
    return _part(space, dtype, "the observation", complain)


Complain = Callable[[str], UserError]


def _part(space: Space, dtype: np.dtype[Any], name: str, complain: Complain) -> Callable[[Any], np.ndarray]:
    """As `flattener`, for the part of an observation that messages call `name`."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        parts = {key: _part(child, dtype, f"{name}[{key!r}]", complain) for key, child in items}
        return _joined(parts, dtype, name, complain, as_dict=isinstance(space, spaces.Dict))
    if isinstance(space, spaces.Discrete):
        return _one_hot(np.array([space.n]), np.array([space.start]), (), dtype, name, complain)
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot(space.nvec.ravel(), space.start.ravel(), space.nvec.shape, dtype, name, complain)
    assert isinstance(space, spaces.Box | spaces.MultiBinary)
    return _array(space.shape, space.dtype, dtype, name, complain)


def _array(
    shape: Sequence[int], own: np.dtype[Any], dtype: np.dtype[Any], name: str, complain: Complain
) -> Callable[[Any], np.ndarray]:
    """Flattens arrays of a shape, converted to the type of their space and then to `dtype`."""
    shape, axes, size = tuple(shape), len(shape), math.prod(shape)

    def flatten(obs: Any) -> np.ndarray:
        array = _numbers(obs, "biuf", name, complain)
        leading = array.ndim - axes
        if array.shape[max(leading, 0) :] != shape:
            batch = ", ".join(["...", *map(str, shape)])
            raise complain(f"{name} has shape {array.shape}, expected {shape}, or ({batch}) for a batch")
        if own.kind in "biu" and array.dtype != own:
            _check_whole(array, own, name, complain)
        if not array.dtype == own == dtype:
            with np.errstate(over="ignore"):  # a number beyond the type becomes infinite, as in training
                array = array.astype(own, copy=False).astype(dtype, copy=False)
        return array.reshape(*array.shape[:leading], size)

    return flatten


def _check_whole(array: np.ndarray, own: np.dtype[Any], name: str, complain: Complain) -> None:
    """Check that numbers fit a type of whole numbers, which a conversion would not tell."""
    least, most = (0, 1) if own.kind == "b" else (np.iinfo(own).min, np.iinfo(own).max)
    if not ((array >= least) & (array <= most)).all():  # false for NaN
        raise complain(f"{name} holds a number that is not finite or outside of {own}")


def _one_hot(
    counts: np.ndarray, starts: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any], name: str, complain: Complain
) -> Callable[[Any], np.ndarray]:
    """Flattens whole numbers of a shape, each to a one-hot vector."""
    column = np.repeat(np.arange(counts.size), counts)  # the number that each element is about
    value = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, counts, strict=True)])
    int64 = np.dtype(np.int64)
    flat = _array(shape, int64, int64, name, complain)

    def flatten(obs: Any) -> np.ndarray:
        numbers = flat(_numbers(obs, "biu", name, complain))
        if not ((numbers >= starts) & (numbers < starts + counts)).all():
            raise complain(f"{name} holds a value outside its range")
        one_hot: np.ndarray = numbers[..., column] == value
        return one_hot.astype(dtype)

    return flatten


def _joined(
    parts: Mapping[Any, Callable[[Any], np.ndarray]],
    dtype: np.dtype[Any],
    name: str,
    complain: Complain,
    *,
    as_dict: bool,
) -> Callable[[Any], np.ndarray]:
    """Flattens dictionaries or tuples, part by part."""

    def flatten(obs: Any) -> np.ndarray:
        if not isinstance(obs, Mapping if as_dict else tuple | list):
            raise complain(f"{name} is of type {type(obs).__name__}, expected a {'dict' if as_dict else 'tuple'}")
        if not as_dict and len(obs) != len(parts):
            raise complain(f"{name} has {len(obs)} parts, expected {len(parts)}")
        if missing := [key for key in parts if as_dict and key not in obs]:
            raise complain(f"{name} lacks {', '.join(map(repr, missing))}")
        vectors = [part(obs[key]) for key, part in parts.items()]
        if len({vector.shape[:-1] for vector in vectors}) > 1:
            batches = ", ".join(f"{key!r}: {vector.shape[:-1]}" for key, vector in zip(parts, vectors, strict=True))
            raise complain(f"the parts of {name} have different leading axes ({batches})")
        return np.concatenate(vectors, axis=-1) if vectors else np.empty(0, dtype)

    return flatten


def _numbers(obs: Any, kinds: str, name: str, complain: Complain) -> np.ndarray:
    """An array of one of NumPy's kinds of numbers."""
    try:
        array = np.asarray(obs)
    except (TypeError, ValueError) as error:
        raise complain(f"{name} is not an array: {error}") from error
    if array.dtype.kind not in kinds:
        what = f"an array of {array.dtype}" if isinstance(obs, np.ndarray) else f"of type {type(obs).__name__}"
        raise complain(f"{name} is {what}, expected {'numbers' if 'f' in kinds else 'whole numbers'}")
    return array


def layout(space: Space, name: str = "") -> list[tuple[str, int]]:
    """The parts of a flat observation in order: what each holds, and its size."""
    if isinstance(space, spaces.Dict):
        return [part for key, child in space.spaces.items() for part in layout(child, f"{name}[{key!r}]")]
    if isinstance(space, spaces.Tuple):
        return [part for i, child in enumerate(space.spaces) for part in layout(child, f"{name}[{i}]")]
    what = f"observation{name}"
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        what += f", one-hot, from {' '.join(str(space.start).split())}"
    return [(what, flat_size(space))]


# --- as JSON ---


def describe(space: Space) -> dict[str, Any]:
    """A space as plain data for JSON, which `from_description` reads.

    Infinite bounds are the strings "inf" and "-inf". The parts of a dictionary are pairs in the order in which they are
    flattened. A space of an unknown type is described by the box that Gymnasium flattens it to.
    """
    if isinstance(space, spaces.Box):
        bounds = {name: [_json_number(x) for x in getattr(space, name).ravel().tolist()] for name in ("low", "high")}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        numbers = {"nvec": space.nvec.ravel().tolist(), "start": space.start.ravel().tolist()}
        return {"type": "MultiDiscrete", "shape": list(space.nvec.shape), **numbers}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [describe(child) for child in space.spaces]}
    if isinstance(space, spaces.Dict) and all(type(key) in (str, int) for key in space.spaces):
        return {"type": "Dict", "spaces": [[key, describe(child)] for key, child in space.spaces.items()]}
    return describe(spaces.utils.flatten_space(space))


def from_description(tree: Any, most: int, depth: int = 0) -> Space:
    """The space that `describe` was given. The description may come from a stranger.

    Args:
        tree: the description.
        most: the most numbers that an observation can have once it is flat.
        depth: of spaces around this one.

    Raises:
        ValueError: it is not such a description, or the space is larger.
        LookupError: an entry is missing.
    """
    if depth > MAX_DEPTH:
        raise ValueError("spaces are nested too deeply")
    kind = tree["type"] if isinstance(tree, dict) else None
    if kind == "Box":
        shape, dtype = _shape(tree["shape"], most), tree["dtype"]
        if dtype not in DTYPES:
            raise ValueError(f"a box of {dtype}")
        low, high = (_bounds(tree[name], shape, np.dtype(dtype)) for name in ("low", "high"))
        return spaces.Box(low, high, shape, np.dtype(dtype).type)
    if kind == "Discrete":
        return spaces.Discrete(_whole(tree["n"], 1, most), start=_whole(tree["start"]))
    if kind == "MultiDiscrete":
        shape = _shape(tree["shape"], most)
        counts, starts = (np.array([_whole(n) for n in tree[name]], np.int64) for name in ("nvec", "start"))
        if counts.min(initial=1) < 1 or counts.max(initial=0) > most:
            raise ValueError("a number of values that no observation has")
        return spaces.MultiDiscrete(counts.reshape(shape), start=starts.reshape(shape))
    if kind == "MultiBinary":
        shape = _shape(tree["shape"], most)
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "Tuple":
        return spaces.Tuple([from_description(child, most, depth + 1) for child in tree["spaces"]])
    if kind == "Dict":
        if not all(type(key) in (str, int) for key, _ in tree["spaces"]):
            raise ValueError("a dictionary with keys that are neither strings nor whole numbers")
        return spaces.Dict([(key, from_description(child, most, depth + 1)) for key, child in tree["spaces"]])
    raise ValueError("an unknown space")


def flat_size(space: Space) -> int:
    """The number of elements of a flat observation."""
    return int(spaces.utils.flatdim(space))


def _json_number(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def _bounds(numbers: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    infinite = {"inf": math.inf, "-inf": -math.inf}
    if not isinstance(numbers, list) or len(numbers) != math.prod(shape):
        raise ValueError("a box whose bounds do not have its shape")
    if not all(type(number) in (int, float, bool) or number in infinite for number in numbers):
        raise ValueError("a box with a bound that is not a number")
    return np.array([infinite.get(number, number) for number in numbers], dtype).reshape(shape)


def _shape(sizes: Any, most: int) -> tuple[int, ...]:
    if not isinstance(sizes, list) or len(sizes) > MAX_AXES:
        raise ValueError("a shape that is not a short list")
    shape = tuple(_whole(size, 0) for size in sizes)
    if math.prod(shape) > most:
        raise ValueError(f"a space of {math.prod(shape)} numbers, where there are {most}")
    return shape


def _whole(number: Any, least: int = -(2**62), most: int = 2**62) -> int:
    if type(number) is not int or not least <= number <= most:
        raise ValueError("a size that is not a whole number in its range")
    return number
