"""Spaces: as JSON and back, and observations as flat vectors, alone and in batches."""

import json

import numpy as np
import pytest
import toy_envs
from gymnasium import spaces

from dpg_cli.errors import UserError
from dpg_cli.spaces import describe, flat_size, flattener, from_description, own_actions, scale

SPACES = [
    spaces.Box(-np.inf, np.inf, (3,), np.float64),
    spaces.Box(np.float32([-0.1, -np.inf]), np.float32([0.4, 7])),
    spaces.Box(-1, 3, (), np.float64),
    spaces.Box(0, 1, (2, 0), np.float32),
    spaces.Box(-5, 300, (2, 2), np.int16),
    spaces.Box(-np.inf, np.inf, (2,), np.int64),
    spaces.Box(0, 255, (2,), np.uint8),
    spaces.Box(0, 1, (2,), np.bool_),
    spaces.Box(-2, 2, (1,), np.float16),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 1]]), start=np.array([[0, 1], [-2, 5]])),
    spaces.MultiBinary((2, 3)),
    spaces.MultiBinary(2),
    spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (2,))]),
    spaces.Dict({"b": spaces.Box(0, 1, (2,)), "a": spaces.Dict({"d": spaces.Discrete(2), "c": spaces.MultiBinary(1)})}),
    spaces.Dict({1: spaces.Discrete(2), 0: spaces.Box(0, 1, ())}),
    toy_envs.Parts.observation_space,
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_survives_json(space):
    text = json.dumps(describe(space), allow_nan=False)
    again = from_description(json.loads(text), flat_size(space))
    assert again == space
    if isinstance(space, spaces.Dict):
        assert list(again.spaces) == list(space.spaces)


@pytest.mark.parametrize("key", ["plain", 1.5])
def test_what_has_no_description_is_described_flat(key):
    space = spaces.Dict({key: spaces.Text(3)})
    again = from_description(describe(space), flat_size(space))
    assert flat_size(again) == flat_size(space)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_flattening_is_that_of_gymnasium_one_by_one(space, dtype):
    space.seed(0)
    flatten = flattener(space, np.dtype(dtype))
    samples = [space.sample() for _ in range(6)]
    expected = np.stack([np.asarray(spaces.flatten(space, sample), dtype).ravel() for sample in samples])
    for sample, row in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(flatten(sample), row)
    for leading in ((6,), (2, 3), (1, 6)):
        flat = flatten(batch(space, samples, leading))
        assert flat.dtype == dtype
        np.testing.assert_array_equal(flat, expected.reshape(*leading, -1) if flat.size else flat)


def batch(space, samples, leading):
    if isinstance(space, spaces.Dict):
        return {key: batch(child, [sample[key] for sample in samples], leading) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(batch(child, [s[i] for s in samples], leading) for i, child in enumerate(space.spaces))
    return np.stack(samples).reshape(*leading, *space.shape)


PARTS = toy_envs.Parts.observation_space


def parts(**changes):
    obs = {
        "position": [0.5],
        "contact": 1,
        "kinds": [[0, 2], [3, 1]],
        "flags": (np.int8([1, 0]), np.uint8([[3, 4]])),
    } | changes
    return {key: value for key, value in obs.items() if value is not None}


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (SPACES[0], np.zeros(4), r"the observation has shape \(4,\), expected \(3,\), or \(..., 3\) for a batch"),
        (SPACES[0], 1.0, r"has shape \(\)"),
        (SPACES[0], np.zeros((3, 1)), r"has shape \(3, 1\)"),
        (SPACES[0], {"position": 1}, "is of type dict, expected numbers"),
        (SPACES[0], np.array(["a", "b", "c"]), "is an array of <U1"),
        (SPACES[0], [None, 1.0, 2.0], "is of type list"),
        (SPACES[0], [1.0, [2.0]], "is not an array"),
        (PARTS, np.zeros(17), "is of type ndarray, expected a dict"),
        (PARTS, parts(position=None), "the observation lacks 'position'"),
        (PARTS, parts(position=[1, 2]), r"the observation\['position'\] has shape \(2,\)"),
        (PARTS, parts(contact=2), r"the observation\['contact'\] holds a value outside its range"),
        (PARTS, parts(contact=0.5), r"the observation\['contact'\] is of type float, expected whole numbers"),
        (PARTS, parts(kinds=[[0, 3], [0, 0]]), r"the observation\['kinds'\] holds a value"),
        (PARTS, parts(flags=(1,)), r"the observation\['flags'\] has 1 parts, expected 2"),
        (PARTS, parts(flags=3), r"the observation\['flags'\] is of type int, expected a tuple"),
        (PARTS, parts(flags=([1], [[0, 0]])), r"the observation\['flags'\]\[0\] has shape \(1,\)"),
        (PARTS, parts(position=[[1.0]] * 2), r"different leading axes \('position': \(2,\), 'contact': \(\)"),
    ],
)
def test_an_observation_that_does_not_fit(space, obs, message):
    with pytest.raises(UserError, match=message) as caught:
        flattener(space, np.dtype(np.float32))(obs)
    assert " ".join(str(space).split()) in str(caught.value)


BOX = describe(SPACES[0])


def nested(levels):
    tree = BOX
    for _ in range(levels):
        tree = {"type": "Tuple", "spaces": [tree]}
    return tree


@pytest.mark.parametrize(
    "tree",
    [
        None,
        "Box",
        [],
        {},
        {"type": "Image"},
        {"type": ["Box"]},
        BOX | {"shape": [10**12]},
        BOX | {"shape": [4]},
        BOX | {"shape": [-3]},
        BOX | {"shape": [3.0]},
        BOX | {"shape": [True] * 3},
        BOX | {"shape": [1] * 40 + [3]},
        BOX | {"shape": 3},
        BOX | {"dtype": "object"},
        BOX | {"dtype": "U9"},
        BOX | {"dtype": ["float32"]},
        BOX | {"low": [0, 0, float("nan")]},
        BOX | {"low": [0, 0, "nan"]},
        BOX | {"low": [0, 0, [0]]},
        BOX | {"low": [0, 0, 10**400]},
        BOX | {"low": [0, 0, None]},
        BOX | {"low": 0},
        BOX | {"low": ["inf"] * 3, "high": ["-inf"] * 3},
        {"type": "Discrete", "n": 10**15, "start": 0},
        {"type": "Discrete", "n": 0, "start": 0},
        {"type": "Discrete", "n": 2, "start": 10**30},
        {"type": "Discrete", "n": 2},
        {"type": "MultiDiscrete", "shape": [2], "nvec": [2], "start": [0, 0]},
        {"type": "MultiDiscrete", "shape": [1], "nvec": [10**15], "start": [0]},
        {"type": "MultiDiscrete", "shape": [1], "nvec": ["2"], "start": [0]},
        {"type": "MultiBinary", "shape": [10**9, 10**9]},
        {"type": "Tuple", "spaces": 3},
        {"type": "Dict", "spaces": {"a": BOX}},
        {"type": "Dict", "spaces": [[["a"], BOX]]},
        {"type": "Dict", "spaces": [["a", BOX, 1]]},
        nested(100),
    ],
    ids=lambda tree: str(tree)[:60],
)
def test_a_description_that_is_none(tree):
    with pytest.raises((ValueError, LookupError, TypeError, OverflowError)):
        from_description(tree, most=1_000)


def test_bounds_are_never_left_by_rounding():
    box = toy_envs.Parts.action_space
    low, half_range = scale(box)
    for action in ([-1.0, -1.0], [1.0, 1.0], [1 + 1e-7, -1 - 1e-7]):
        own = own_actions(np.float32(action), low, half_range, box)
        assert box.contains(own)
    np.testing.assert_allclose(own_actions(np.zeros(2), low, half_range, box), [[0.3], [15.2]])


def test_an_action_without_axes_is_an_array():
    box = toy_envs.Scalar.action_space
    own = own_actions(np.float32([0.5]), *scale(box), box)
    assert isinstance(own, np.ndarray)
    assert (own.shape, own.dtype, own.item()) == ((), np.float32, 2.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 300.0, -1.0, 256])
def test_numbers_that_an_integer_part_cannot_hold_are_rejected(value):
    space = spaces.Dict({"a": spaces.Box(0, 255, (2,), np.uint8), "b": spaces.MultiBinary(2)})
    flatten = flattener(space, np.dtype(np.float32))
    good = {"a": np.array([3.0, 255.0]), "b": [0, 1]}
    assert flatten(good).tolist() == [3, 255, 0, 1]
    with pytest.raises(UserError, match=r"\['a'\] holds a number that is not finite or outside of uint8"):
        flatten(good | {"a": np.array([1.0, value])})
    with pytest.raises(UserError, match=r"\['b'\] holds a number"):
        flatten(good | {"b": np.array([0, value * 200])})
