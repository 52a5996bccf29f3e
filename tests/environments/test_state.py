"""A copied environment goes on, bit for bit, as the one that it was copied from."""

import dataclasses
import enum
import itertools

import gymnasium as gym
import numpy as np
import pytest

from dpg_cli.environments.make import make_env
from dpg_cli.environments.plain_data import CannotCopy
from dpg_cli.environments.pool import Pool
from dpg_cli.environments.probe import probe
from dpg_cli.environments.state import constants, get_state, put_back, set_state

NAMES = (
    "Ant HalfCheetah Hopper Humanoid HumanoidStandup InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"
)
MUJOCO = [f"{name}-v{version}" for name in NAMES.split() for version in (4, 5)] + ["Pusher-v5"]


def copy_problem(make):
    return probe("Any-v0", Pool(make)).copy_problem


@pytest.mark.parametrize("env_id", [*MUJOCO, "Pendulum-v1", "MountainCarContinuous-v0", "toy_envs:Toy/Reach-v0"])
def test_a_copy_goes_on_exactly(env_id):
    """Through the middle of an episode, its end and the next reset."""
    assert copy_problem(lambda: make_env(env_id, max_episode_steps=40)) is None


def test_the_time_limit_goes_on():
    first, second = (make_env("Pendulum-v1", max_episode_steps=10) for _ in range(2))
    first.reset(seed=0)
    for _ in range(7):
        first.step(np.zeros(1))
    set_state(second, get_state(first, constants(first)))
    assert [second.step(np.zeros(1))[3] for _ in range(3)] == [False, False, True]


steps_of_all = itertools.count()


class Odd(gym.Env):
    """Holds what is no plain data, or hides some of its state."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, hidden):
        self.iterator = iter(range(10**6)) if hidden == "iterator" else None
        self.hidden = hidden
        self.count = 0
        self.later = {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1), {}

    def step(self, action):
        type(self).steps = getattr(type(self), "steps", 0) + 1
        self.count += 1
        value = {"class": type(self).steps, "elsewhere": next(steps_of_all)}.get(self.hidden, self.count)
        return np.array([value % 100 / 100]), 0.0, False, False, {}


def test_what_cannot_be_copied_is_named():
    assert "Odd.iterator is a range_iterator" in copy_problem(lambda: Odd("iterator"))
    with pytest.raises(CannotCopy, match=r"Odd\.iterator"):
        get_state(Odd("iterator"), constants(Odd("iterator")))


def test_state_outside_of_the_environment_is_noticed():
    assert "diverges after" in copy_problem(lambda: Odd("elsewhere"))
    assert copy_problem(lambda: Odd("nothing")) is None
    found = probe("Any-v0", Pool(lambda: Odd("class")))  # its own state is copied; what is shared is named
    assert (found.copy_problem, found.changes) == (None, ["the class attribute Odd.steps"])
    assert not hasattr(Odd, "steps")


@pytest.mark.parametrize("left_out", ["arrays", "integration"])
def test_without_a_part_of_mujocos_data_the_copy_is_not_exact(left_out, monkeypatch):
    """The negative control: Ant reads derived fields before its step."""
    from dpg_cli.environments import mujoco_data

    whole = mujoco_data.get_data

    def partly(data):
        stored = whole(data)
        if left_out == "arrays":
            return stored | {"arrays": {}}
        return stored | {"integration": np.zeros_like(stored["integration"]), "arrays": {}}

    monkeypatch.setattr(mujoco_data, "get_data", partly)
    assert "diverges after" in copy_problem(lambda: make_env("Ant-v4"))


def test_a_state_of_another_environment_is_refused():
    env = make_env("Hopper-v4")
    state = get_state(env, constants(env))
    with pytest.raises(CannotCopy):
        set_state(make_env("Walker2d-v4"), state)


class Phase(enum.Enum):
    UP = 1
    DOWN = 2


@dataclasses.dataclass
class Memory:
    goals: list
    phase: Phase = Phase.UP


def double(x):
    return 2 * x


class Phased(gym.Env):
    """Keeps what is not plain data, but has a name or fields."""

    observation_space = gym.spaces.Box(-9, 9, (1,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self):
        self.count, self.choose, self.memory, self.change = 0, self.up, Memory([1]), None

    def up(self):
        return 1.0

    def down(self):
        return -1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.choose, self.change, self.memory = 0, self.up, None, Memory([1])
        return np.zeros(1), {}

    def step(self, action):
        self.count += 1
        if self.count == 5:
            self.choose, self.change = self.down, double
            self.memory = Memory([*self.memory.goals, 2], Phase.DOWN)
        value = self.choose() * self.memory.phase.value + len(self.memory.goals)
        return np.array([self.change(value) if self.change else value]), 0.0, False, False, {}


def test_what_has_a_name_or_fields_is_copied():
    assert copy_problem(Phased) is None
    env, other = Phased(), Phased()
    env.reset(seed=0)
    for _ in range(6):
        env.step(np.zeros(1))
    state = get_state(env, constants(Phased()))
    other.reset(seed=1)
    set_state(other, state)
    assert (other.choose(), other.change, other.memory) == (-1.0, double, Memory([1, 2], Phase.DOWN))
    assert other.choose.__self__ is other


def test_a_function_that_has_no_name_counts_as_what_cannot_be_copied():
    class Lambda(Phased):
        def step(self, action):
            result = super().step(action)
            self.change = lambda x: x + self.count
            return result

    assert "Lambda.change is a function" in copy_problem(Lambda)


def test_a_stranger_sets_no_attribute_to_what_the_module_has_imported():
    env = Phased()
    for value in ({"function": "make_env"}, {"method": "__init_subclass__"}, {"enum": ["np", "UP"]}):
        with pytest.raises((CannotCopy, ValueError)):
            set_state(env, [{"change": value}])


@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", "Pendulum-v1", "toy_envs:Toy/Reach-v0"])
def test_an_environment_is_put_back_into_the_state_in_which_it_was_created(env_id):
    fresh, used = make_env(env_id), make_env(env_id)
    fixed = constants(used)
    created = get_state(used, fixed)
    used.reset(seed=3)
    used.unwrapped.new = 7
    for _ in range(5):
        used.step(np.zeros(used.action_space.shape))
    put_back(used, created, fixed)
    assert not hasattr(used.unwrapped, "new")
    for env in (fresh, used):
        env.reset(seed=0)
    action = np.full(used.action_space.shape, 0.5)
    for _ in range(20):
        assert np.array_equal(fresh.step(action)[0], used.step(action)[0])
