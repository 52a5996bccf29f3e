"""Any Gymnasium id, seen from inside as flat float32 observations and actions in [-1, 1]."""

import logging
import sys

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium import spaces

from dpg_cli.environments.make import has_time_limit, make_env, newer_version, time_limit
from dpg_cli.errors import UserError

UNIT = spaces.Box(-1.0, 1.0, (1,))


class Toy(gym.Env):
    """Observes one fixed sample of its space, remembers the actions that reach it, never ends."""

    def __init__(self, action_space=UNIT, observation_space=UNIT):
        self.action_space, self.observation_space = action_space, observation_space
        self.observation_space.seed(0)
        self.obs = self.observation_space.sample()
        self.received = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.obs, {}

    def step(self, action):
        self.received.append(action)
        return self.obs, 1.0, False, False, {}


class Broken(gym.Env):
    def __init__(self):
        raise gym.error.DependencyNotInstalled("the physics\nare not installed")


@pytest.fixture(autouse=True)
def toys():
    before = dict(gym.registry)
    gym.register("Toy-v0", Toy)
    gym.register("Toy-v1", Toy)
    gym.register("ToyLimit-v0", Toy, max_episode_steps=5)
    gym.register("Toys/Nested-v0", Toy)
    gym.register("Broken-v0", Broken)
    gym.register("NoModule-v0", "no_such_module.envs:Env")
    yield
    gym.registry.clear()
    gym.registry.update(before)


def received(action_space, action):
    """What the environment gets when the policy acts in [-1, 1]."""
    env = make_env("Toy-v0", {"action_space": action_space})
    env.reset()
    env.step(np.asarray(action, np.float32))
    return env.unwrapped.received[-1]


def rejection(env_id, kwargs=None):
    """The one line that rejects an environment."""
    with pytest.raises(UserError) as caught:
        make_env(env_id, kwargs)
    message = str(caught.value)
    assert env_id in message
    assert "\n" not in message
    return message


def box(low, high, dtype=np.float32):
    return spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


# --- actions ---


def test_asymmetric_bounds_that_differ_per_dimension():
    space = box([-1, 0, 10, -8], [3, 1, 20, -4])
    for unit, expected in [
        ([-1, -1, -1, -1], [-1, 0, 10, -8]),
        ([1, 1, 1, 1], [3, 1, 20, -4]),
        ([0, 0, 0, 0], [1, 0.5, 15, -6]),
        ([-0.5, 0.5, -1, 1], [0, 0.75, 10, -4]),
    ]:
        np.testing.assert_array_equal(received(space, unit), np.array(expected, np.float32))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 2)])
def test_actions_of_any_shape(shape):
    size = int(np.prod(shape))
    low = np.arange(size, dtype=np.float32).reshape(shape)
    space = spaces.Box(low, low * 2 + 1)
    env = make_env("Toy-v0", {"action_space": space})
    assert env.action_space == spaces.Box(-1.0, 1.0, (size,), np.float32)
    unit = np.linspace(-1, 1, size, dtype=np.float32)
    action = received(space, unit)
    assert action.shape == shape
    expected = low + (unit.reshape(shape) + 1) / 2 * (low + 1)
    np.testing.assert_allclose(action, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounding_never_leaves_the_bounds(dtype):
    g = np.random.default_rng(0)
    size = 1000
    ends = (g.normal(size=(2, size)) * 10.0 ** g.integers(-3, 4, (2, size))).astype(dtype)
    low, high = np.sort(ends, axis=0)
    space = box(low, high, dtype)
    near_one = np.nextafter(np.float32(1), np.float32(0))
    for unit in (-1, -near_one, 0, near_one, 1, g.uniform(-1, 1, size)):
        action = received(space, np.broadcast_to(unit, size))
        assert action.dtype == dtype
        assert space.contains(action)
        exact = low.astype(np.float64) + (np.asarray(unit, np.float64) + 1) / 2 * (high.astype(np.float64) - low)
        np.testing.assert_allclose(action, exact, rtol=4 * np.finfo(dtype).eps, atol=2.0**-14)


def test_an_action_beyond_the_unit_box_is_brought_back():
    np.testing.assert_array_equal(received(box([-2, 0], [2, 1]), [-1.5, 7]), [-2, 1])


# --- observations ---


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, ()),
        spaces.Box(-1.0, 1.0, (3,)),
        spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
        spaces.Box(-9, 9, (2, 2, 2), np.int64),
        spaces.Box(0, 255, (4,), np.uint8),
        spaces.Discrete(4),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(3),
        spaces.Dict(
            {
                "position": spaces.Box(-1.0, 1.0, (2, 2), np.float64),
                "speed": spaces.Box(-9, 9, (1,), np.int32),
                "inner": spaces.Dict({"mode": spaces.Discrete(3), "goal": spaces.Box(0.0, 1.0, (2,))}),
            }
        ),
        spaces.Tuple([spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_observations_are_flat_floats(space, dtype):
    env = make_env("Toy-v0", {"observation_space": space}, dtype=dtype)
    expected = spaces.flatten(space, env.unwrapped.obs).astype(dtype)
    assert env.observation_space.shape == expected.shape
    assert env.observation_space.dtype == dtype
    for obs in (env.reset(seed=0)[0], env.step(np.zeros(1, np.float32))[0]):
        assert obs.dtype == dtype
        np.testing.assert_array_equal(obs, expected)


def test_observations_keep_their_own_precision_whatever_their_space_says():
    env = make_env("Toy-v0", {"observation_space": spaces.Box(-9, 9, (2,), np.float32)}, dtype=np.float64)
    env.unwrapped.obs = np.array([0.3, -0.7])
    assert env.reset()[0].tolist() == env.step(np.zeros(1))[0].tolist() == [0.3, -0.7]


def test_observations_are_float32_unless_told_otherwise():
    env = make_env("Toy-v0", {"observation_space": spaces.Box(-1.0, 1.0, (2,), np.float64)})
    assert env.reset()[0].dtype == np.float32


# --- what is rejected ---


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 2]),
        spaces.MultiBinary(2),
        spaces.Dict({"a": UNIT}),
        spaces.Tuple([UNIT]),
        spaces.Box(-3, 3, (2,), np.int64),
        spaces.Box(0, 255, (2,), np.uint8),
    ],
    ids=str,
)
def test_actions_that_are_not_continuous_are_refused(space):
    assert "continuous" in rejection("Toy-v0", {"action_space": space})


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(0.0, np.inf, (2,)),
        spaces.Box(-np.inf, 0.0, (2,)),
        box([-1, -np.inf], [1, 1]),
        box([-1, -1], [1, np.inf]),
        box([-1e10, -1e10], [1e10, 1e10], np.float64),
    ],
    ids=["unbounded", "no upper", "no lower", "one has no lower", "one has no upper", "MuJoCo's unbounded"],
)
def test_actions_that_are_not_bounded_on_both_sides_are_refused(space):
    assert "bounded" in rejection("Toy-v0", {"action_space": space})


def test_an_environment_without_actions_is_refused():
    rejection("Toy-v0", {"action_space": spaces.Box(-1.0, 1.0, (0,))})


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (8, 8, 3), np.uint8),
        spaces.Box(0, 255, (8, 8), np.uint8),
        spaces.Dict({"state": UNIT, "camera": spaces.Box(0, 255, (8, 8, 3), np.uint8)}),
    ],
    ids=["colour", "grey", "inside a Dict"],
)
def test_images_are_refused(space):
    assert "image" in rejection("Toy-v0", {"observation_space": space})


@pytest.mark.parametrize("space", [spaces.Sequence(UNIT), spaces.Graph(UNIT, None)], ids=["sequence", "graph"])
def test_observations_that_cannot_be_flattened_are_refused(space):
    rejection("Toy-v0", {"observation_space": space})


@pytest.mark.parametrize(
    ("env_id", "closest"),
    [
        ("HalfCheeta-v4", "HalfCheetah-v4"),
        ("halfcheetah-v4", "HalfCheetah-v4"),
        ("HalfCheetah", "HalfCheetah-v"),
        ("HalfCheetah-v9", "HalfCheetah-v"),
        ("Toys/Nestd-v0", "Toys/Nested-v0"),
    ],
)
def test_an_unknown_id_is_refused_with_the_closest(env_id, closest):
    assert f"did you mean {closest}" in rejection(env_id)


@pytest.mark.parametrize(
    "env_id", ["HalfCheetah-v1", "Pusher-v1", "Ant", "BipedalWalker", "phys2d/Pendulum-v1", "CartPole"]
)
def test_ids_that_are_suggested_can_be_created(env_id, monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.setitem(sys.modules, "jax", None)
    _, _, suggested = rejection(env_id).partition("did you mean ")
    for close in filter(None, suggested.removesuffix("?").split(" or ")):
        make_env(close).close()


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module that registers one of its two classes."""
    (tmp_path / "own_envs.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv\n"
        "class Swing(PendulumEnv): ...\n"
        "class Forgotten(PendulumEnv): ...\n"
        "gymnasium.register('own/Swing-v0', Swing, max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_envs", None)
    gym.registry.pop("own/Swing-v0", None)


@pytest.mark.parametrize("name", ["Forgotten", "Forgotten-v0", "own/Forgotten-v3"])
def test_a_class_that_is_not_registered_is_answered_with_the_call(own_module, name):
    message = rejection(f"own_envs:{name}")
    assert 'add gymnasium.register("Forgotten-v0", entry_point=Forgotten)' in message
    assert "use env=own_envs:Forgotten-v0" in message


@pytest.mark.parametrize("name", ["Swing", "Swing-v0", "own/Swing-v5", "Swnig-v0", "Qqqqqqqq"])
def test_the_ids_of_a_module_are_suggested_with_its_name(own_module, name):
    assert rejection(f"own_envs:{name}").endswith("did you mean own_envs:own/Swing-v0?")


def test_a_module_without_environments_is_told_how_to_register_one():
    assert "json does not register this id; gymnasium.register" in rejection("json:Qqqqqqqq-v0")


def test_a_file_is_no_module(own_module):
    assert rejection("./own_envs.py:own/Swing-v0").endswith("write env=own_envs:own/Swing-v0")


@pytest.mark.parametrize("env_id", ["Qqqqqqqq-v0", "", ":", "a:b:c", "json:Qqqqqqqq-v0", ".relative:Toy-v0"])
def test_an_id_like_none_is_refused(env_id):
    rejection(env_id)


def test_bad_arguments_are_refused_and_named():
    assert "gravity" in rejection("Toy-v0", {"gravity": 3})
    assert "gravity" in rejection("InvertedPendulum-v5", {"gravity": 3})


def test_an_environment_that_cannot_be_made_is_refused_with_its_reason():
    assert "the physics are not installed" in rejection("Broken-v0")


def test_a_missing_module_is_refused_and_named():
    assert "no_such_module" in rejection("NoModule-v0")
    assert "no_such_module" in rejection("no_such_module:Toy-v0")


def test_a_module_that_breaks_is_refused_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "broken_pkg.py").write_text("raise RuntimeError('out of luck')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "out of luck" in rejection("broken_pkg:Toy-v0")


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [
        ("BipedalWalker-v3", "Box2D", "box2d"),
        ("LunarLanderContinuous-v3", "pygame", "box2d"),
        ("dm_control/cheetah-run-v0", "shimmy", "dm-control"),
        ("dm_control/cheetah-run-v0", "dm_control", "dm-control"),
        ("shimmy:dm_control/cheetah-run-v0", "shimmy", "dm-control"),
        ("FetchReach-v4", "gymnasium_robotics", "robotics"),
        ("AntMaze_UMaze-v5", "gymnasium_robotics", "robotics"),
        ("gymnasium_robotics:HandReach-v3", "gymnasium_robotics", "robotics"),
    ],
)
def test_a_suite_that_is_not_installed_is_refused_with_its_extra(env_id, module, extra, monkeypatch):
    for registered in [i for i in gym.registry if i.startswith(("dm_control/", "Fetch", "AntMaze", "Hand"))]:
        del gym.registry[registered]
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    assert rejection(env_id).endswith(f"pip install -e '.[{extra}]' in the clone of dpg-cli")


def test_an_id_of_ones_own_may_begin_like_a_suites():
    gym.register("FetchMine-v0", Toy)
    assert make_env("FetchMine-v0").reset()[0].shape == (1,)


# --- what works ---


def test_what_registers_a_suites_ids_is_imported_when_asked_for_and_quietly(tmp_path, monkeypatch, capfd, caplog):
    (tmp_path / "gymnasium_robotics.py").write_text(
        "import sys, warnings, gymnasium\n"
        "print('welcome', file=sys.stderr)\n"
        "warnings.warn('no display')\n"
        "gymnasium.register('FetchToy-v7', 'gymnasium.envs.classic_control.pendulum:PendulumEnv')\n"
    )
    monkeypatch.delitem(sys.modules, "gymnasium_robotics", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.INFO):
        make_env("Toy-v1")
        assert "gymnasium_robotics" not in sys.modules
        make_env("FetchToy-v7").close()
    sys.modules.pop("gymnasium_robotics")
    assert capfd.readouterr() == ("", "")
    assert [r.getMessage() for r in caplog.records] == ["gymnasium_robotics: welcome", "gymnasium_robotics: no display"]


def test_goal_observations_are_flattened_in_the_order_of_their_names():
    names = {"observation": 3, "achieved_goal": 2, "desired_goal": 1}
    space = spaces.Dict({name: spaces.Box(-1.0, 1.0, (size,), np.float64) for name, size in names.items()})
    env = make_env("Toy-v0", {"observation_space": space})
    obs = env.unwrapped.obs
    expected = np.concatenate([obs["achieved_goal"], obs["desired_goal"], obs["observation"]])
    np.testing.assert_array_equal(env.reset()[0], expected.astype(np.float32))


class OwnLimit(Toy):
    """As dm_control's: it knows its limit, its spec does not."""

    _step_limit = 999.9999999999999


def test_a_time_limit_is_seen_wherever_it_stands():
    gym.register("OwnLimit-v0", OwnLimit)
    assert has_time_limit(make_env("OwnLimit-v0"))
    assert has_time_limit(make_env("ToyLimit-v0"))
    assert has_time_limit(make_env("Toy-v0", max_episode_steps=3))
    assert not has_time_limit(make_env("Toy-v0"))
    ids = ("OwnLimit-v0", "ToyLimit-v0", "Toy-v0", "HalfCheetah-v4")
    assert [time_limit(make_env(env_id)) for env_id in ids] == [1000, 5, None, 1000]
    assert [time_limit(make_env(env_id, max_episode_steps=3)) for env_id in ids] == [3, 3, 3, 3]


def test_a_module_may_register_the_id(tmp_path, monkeypatch):
    (tmp_path / "toy_pkg.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv\n"
        "gymnasium.register('Swing-v0', PendulumEnv, max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        env = make_env("toy_pkg:Swing-v0", {"g": 3.0})
        assert env.unwrapped.g == 3.0
        assert env.spec.max_episode_steps == 7
        env.close()
        make_env("toy_pkg:Swing-v0").close()  # again, when the module is there already
    finally:
        sys.modules.pop("toy_pkg", None)


def test_an_id_may_hold_a_slash():
    assert make_env("Toys/Nested-v0").reset()[0].shape == (1,)


@pytest.mark.parametrize(
    ("env_id", "given", "steps"),
    [("ToyLimit-v0", None, 5), ("ToyLimit-v0", 3, 3), ("ToyLimit-v0", 8, 8), ("Toy-v0", 3, 3)],
)
def test_the_time_limit_is_the_ids_own_or_the_one_given(env_id, given, steps):
    env = make_env(env_id, max_episode_steps=given)
    env.reset()
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(steps)]
    assert ends == [(False, False)] * (steps - 1) + [(False, True)]


def test_without_a_time_limit_an_episode_goes_on():
    env = make_env("Toy-v0")
    env.reset()
    assert not any(env.step(np.zeros(1, np.float32))[3] for _ in range(2000))


def test_the_same_seed_starts_the_same_episode():
    env = make_env("Pendulum-v1")
    first, again, other = (env.reset(seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    env.close()


def test_an_outdated_id_of_mujoco_is_quiet(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    mujoco.set_mju_user_warning(None)  # as in a new process
    with caplog.at_level(logging.INFO):
        env = make_env("HalfCheetah-v4")
        env.reset(seed=0)
        env.step(np.ones(6, np.float32))
        env.close()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert sum("out of date" in record.getMessage() for record in caplog.records) == 1
    assert all("\n" not in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("env_id", "newer"),
    [
        ("HalfCheetah-v4", "HalfCheetah-v5"),
        ("HalfCheetah-v5", None),
        ("Pendulum-v1", None),
        ("Toy-v0", "Toy-v1"),
        ("Toy-v1", None),
        ("some_pkg:Toy-v0", "Toy-v1"),
        ("Toys/Nested-v0", None),
    ],
)
def test_newer_version(env_id, newer):
    assert newer_version(env_id) == newer
