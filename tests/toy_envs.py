"""Environments for tests, registered by importing this module: `env=toy_envs:Toy/Reach-v0` and so on."""

import os
import random
import signal
import time
import warnings
from multiprocessing import parent_process
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv

from dpg_cli.environments.group import LocalEnvs
from dpg_cli.environments.threads import PLAIN_LOOP
from dpg_cli.errors import DivergedError


def local(envs, kind="training", threads=PLAIN_LOOP):
    """A group of environments that are given by member and index."""
    return LocalEnvs([env for member in envs for env in member], kind, threads)


class Reach(gym.Env[np.ndarray, np.ndarray]):
    """Move a point on a line to 0: reward -x², terminal beyond ±2; asymmetric bounds."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(np.float32([-1.0]), np.float32([3.0]))

    def __init__(
        self,
        bad_step: int | None = None,
        bad: str = "reward",
        value: float = float("nan"),
        endless: bool = False,
    ):
        self.bad_step, self.bad, self.value, self.endless = bad_step, bad, value, endless
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        self.x += 0.1 * (float(action[0]) - 1.0)
        obs, reward = self._obs(), -(self.x**2)
        if self.steps == self.bad_step:
            if self.bad == "raise":
                raise RuntimeError("the simulator\nbroke")
            if self.bad == "hang":
                time.sleep(1e6)
            if self.bad == "exit":
                raise SystemExit(0)
            if self.bad == "killed" and parent_process() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.bad == "shape":
                obs = obs[:1]
            elif self.bad == "obs":
                obs = obs * self.value
            else:
                reward = self.value
        return obs, reward, abs(self.x) > 2 and not self.endless, False, {}

    def _obs(self):
        return np.array([self.x, 1.0])


class Spaces(Reach):
    """Reach with other spaces, to be rejected."""

    def __init__(self, kind: str):
        super().__init__()
        if kind == "discrete":
            self.action_space = gym.spaces.Discrete(3)
        elif kind == "unbounded":
            self.action_space = gym.spaces.Box(-np.inf, np.inf, (1,))
        elif kind == "image":
            self.observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)


class Parts(Reach):
    """Reach that observes a dictionary, in another order than that of its keys, with unequal bounds in float64."""

    observation_space = gym.spaces.Dict(
        [
            ("position", gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)),
            ("contact", gym.spaces.Discrete(3, start=-1)),
            ("kinds", gym.spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]))),
            ("flags", gym.spaces.Tuple([gym.spaces.MultiBinary(2), gym.spaces.Box(0, 255, (1, 2), np.int16)])),
        ]
    )
    action_space = gym.spaces.Box(np.array([[-0.1], [0.3]]), np.array([[0.7], [30.1]]), dtype=np.float64)

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(action[0])

    def _obs(self):
        sign = int(np.sign(round(self.x, 1)))
        kinds = np.array([[sign == 0, 1 + sign], [2 + sign, sign > 0]], np.int64)
        flags = np.array([sign > 0, sign < 0], np.int8), np.array([[int(abs(self.x) * 9), 7]], np.int16)
        return {"flags": flags, "contact": sign, "kinds": kinds, "position": np.array([self.x])}


class Scalar(Reach):
    """Reach whose action is an array without axes."""

    action_space = gym.spaces.Box(-1.0, 3.0, (), np.float32)

    def step(self, action):
        return super().step(np.array([action]))


class Half(Reach):
    """Reach whose actions are float16."""

    action_space = gym.spaces.Box(np.float16([-1.0]), np.float16([3.0]), dtype=np.float16)


class Odd(Reach):
    """Reach with something in it that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.iterator = iter(range(10**9))


class Drawing(Reach):
    """Reach that draws from its spaces and from the global generators, which it seeds."""

    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Box(np.float32([-1.0]), np.float32([3.0]))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if seed is not None:
            self.action_space.seed(seed)
            import torch  # not where processes step other environments

            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
        return super().reset(seed=seed)

    def step(self, action):
        obs, reward, *rest = super().step(action)
        import torch

        drawn = [torch.rand(()).item(), np.random.rand(), random.random()]  # noqa: NPY002
        return obs, reward + sum(drawn) + float(self.action_space.sample()[0]), *rest


total_steps = 0


class Sharing(Reach):
    """Reach whose steps change something that its environments share."""

    action_space = gym.spaces.Box(np.float32([-1.0]), np.float32([3.0]))
    steps_of_all = 0

    def __init__(self, what: str):
        super().__init__()
        self.what = what

    def step(self, action):
        global total_steps
        if self.what == "class":
            Sharing.steps_of_all += 1
        elif self.what == "module":
            total_steps += 1
        elif self.what == "numpy":
            np.random.rand()  # noqa: NPY002
        elif self.what == "python":
            random.random()
        elif self.what == "torch":
            import torch

            torch.rand(())
        elif self.what == "space":
            self.action_space.sample()
        return super().step(action)


class Alone(Reach):
    """Reach that says that it is not thread-safe."""

    metadata = {"thread_safe": False}  # noqa: RUF012


class WithTwoArgumentsError(Exception):
    """Can be pickled and not unpickled."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


SCRIPTS = (
    *("fine", "raise", "exit", "diverged", "shape", "reward", "obs", "local", "two", "ends", "reset raise"),
    *("reset shape", "reset obs", "seeded raise", "killed", "hangs", "warns"),
)


class Scripted(Reach):
    """Reach that does at the second step of each episode what its seed says, an index of `SCRIPTS`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        obs, info = super().reset(seed=seed)
        self.steps = 0
        if seed is not None:
            self.script = SCRIPTS[seed]
            if self.script == "seeded raise":
                raise RuntimeError(f"reset of {seed}")
        elif self.script == "reset raise":
            raise RuntimeError("a later reset")
        elif self.script == "reset shape":
            obs = obs[:1]
        elif self.script == "reset obs":
            obs = obs * np.nan
        return obs, info

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.steps == 2:
            match self.script:
                case "raise":
                    raise RuntimeError("it broke")
                case "exit":
                    raise SystemExit(3)
                case "diverged":
                    raise DivergedError("it says so itself")
                case "shape":
                    obs = obs[:1]
                case "reward":
                    reward = np.nan
                case "obs":
                    obs = obs * np.inf
                case "local":
                    raise type("LocalError", (Exception,), {})("of no module")
                case "two":
                    raise WithTwoArgumentsError(1, 2)
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hangs":
                    time.sleep(3600)
                case "warns":
                    warnings.warn("it wobbles", stacklevel=1)
            truncated = self.script == "ends" or self.script.startswith("reset ")
        return obs, reward, terminated, truncated, info


class Unstable(HalfCheetahEnv):
    """A simulation that MuJoCo resets by itself at the second step of an episode with the seed 1."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        self.at, self.made = seed, 0
        return super().reset(seed=seed)

    def step(self, action):
        self.made += 1
        if (self.made, self.at) == (2, 1):
            self.data.qvel[:] = 1e12
        return super().step(action)


gym.register("Toy/Scripted-v0", entry_point=Scripted)
gym.register("Toy/Alone-v0", entry_point=Alone, max_episode_steps=20)
gym.register("Toy/Drawing-v0", entry_point=Drawing, max_episode_steps=20)
gym.register("Toy/Odd-v0", entry_point=Odd, max_episode_steps=20)
gym.register("Toy/Half-v0", entry_point=Half, max_episode_steps=20)
gym.register("Toy/Parts-v0", entry_point=Parts, max_episode_steps=20)
gym.register("Toy/Scalar-v0", entry_point=Scalar, max_episode_steps=20)
gym.register("Toy/Reach-v0", entry_point=Reach, max_episode_steps=20)
gym.register("Toy/Endless-v0", entry_point=Reach, kwargs={"endless": True})
gym.register("Toy/Sharing-v0", entry_point=Sharing, max_episode_steps=20)
gym.register("Toy/UnstableSeed-v0", entry_point=Unstable)
gym.register("Toy/Spaces-v0", entry_point=Spaces, max_episode_steps=20)
