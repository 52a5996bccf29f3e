"""A copied environment goes on, bit for bit, as the one that it was copied from."""

import gymnasium as gym
import numpy as np
import pytest

from dpg_cli.environments.make import make_env
from dpg_cli.environments.state import CannotCopy, copies_exactly, get_state, set_state

NAMES = (
    "Ant HalfCheetah Hopper Humanoid HumanoidStandup InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"
)
MUJOCO = [f"{name}-v{version}" for name in NAMES.split() for version in (4, 5)] + ["Pusher-v5"]


@pytest.mark.parametrize("env_id", [*MUJOCO, "Pendulum-v1", "MountainCarContinuous-v0", "toy_envs:Toy/Reach-v0"])
def test_a_copy_goes_on_exactly(env_id):
    """Through the middle of an episode, its end and the next reset."""
    assert copies_exactly(lambda: make_env(env_id, max_episode_steps=40)) is None


def test_the_time_limit_goes_on():
    first, second = (make_env("Pendulum-v1", max_episode_steps=10) for _ in range(2))
    first.reset(seed=0)
    for _ in range(7):
        first.step(np.zeros(1))
    set_state(second, get_state(first))
    assert [second.step(np.zeros(1))[3] for _ in range(3)] == [False, False, True]


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
        value = type(self).steps if self.hidden == "class" else self.count
        return np.array([value % 100 / 100]), 0.0, False, False, {}


def test_what_cannot_be_copied_is_named():
    assert "Odd.iterator is a range_iterator" in copies_exactly(lambda: Odd("iterator"))
    with pytest.raises(CannotCopy, match=r"Odd\.iterator"):
        get_state(Odd("iterator"))


def test_state_outside_of_the_environment_is_noticed():
    assert "diverges after" in copies_exactly(lambda: Odd("class"))
    assert copies_exactly(lambda: Odd("nothing")) is None


@pytest.mark.parametrize("left_out", ["arrays", "integration"])
def test_without_a_part_of_mujocos_data_the_copy_is_not_exact(left_out, monkeypatch):
    """The negative control: Ant reads derived fields before its step."""
    from dpg_cli.environments import state as env_state

    whole = env_state._get_data

    def partly(data):
        stored = whole(data)
        if left_out == "arrays":
            return stored | {"arrays": {}}
        return stored | {"integration": np.zeros_like(stored["integration"]), "arrays": {}}

    monkeypatch.setattr(env_state, "_get_data", partly)
    assert "diverges after" in copies_exactly(lambda: make_env("Ant-v4"))


def test_a_state_of_another_environment_is_refused():
    state = get_state(make_env("Hopper-v4"))
    with pytest.raises(CannotCopy):
        set_state(make_env("Walker2d-v4"), state)
