"""Environments that users write: `env=custom_envs:Plain-v0` and so on. Each is one situation of the first hour."""

import ctypes
import dataclasses
import os
import random
import signal
import time
from collections import Counter, OrderedDict, defaultdict
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Plain(gym.Env):
    """A point on a line: the action pushes it, the reward is -x²."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s = self.np_random.uniform(-1, 1, 2)
        return self.obs(), {}

    def obs(self):
        return self.s.astype(np.float32)

    def reward(self):
        return -float(self.s[0] ** 2)

    def step(self, action):
        x, v = self.s
        v = 0.9 * v + 0.1 * float(np.ravel(action)[0])
        self.s = np.array([np.clip(x + 0.1 * v, -5, 5), v])
        return self.obs(), self.reward(), False, False, {}


class OwnCurriculum(Plain):
    """Counts its own resets, and rewards by them."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes = self.episodes + 1
        return super().reset(seed=seed)

    def reward(self):
        return -(1.0 + 0.5 * self.episodes) * float(self.s[0] ** 2)


class UncopyableCurriculum(OwnCurriculum):
    """The same, with something that cannot be copied."""

    def __init__(self, seconds=0.0):
        time.sleep(seconds)
        self.anything = iter(range(10**9))


class Phases(Plain):
    """Its phase is a method of its own, which changes."""

    def __init__(self):
        self.phase = self.easy

    def easy(self):
        return 1.0

    def hard(self):
        return 10.0

    def reset(self, *, seed=None, options=None):
        if seed is None:
            self.phase = self.hard
        return super().reset(seed=seed)

    def reward(self):
        return -self.phase() * float(self.s[0] ** 2)


class Late(Plain):
    """From its step 180 on, an attribute cannot be copied."""

    steps, phase = 0, None

    def step(self, action):
        self.steps += 1
        if self.steps == 180:
            self.phase = lambda: 1.0
        return super().step(action)


class ClassCurriculum(Plain):
    """Keeps its difficulty in a class attribute."""

    difficulty = 1.0
    episodes = 0

    def reset(self, *, seed=None, options=None):
        if seed is None:
            ClassCurriculum.episodes += 1
            ClassCurriculum.difficulty = 1.0 + ClassCurriculum.episodes // 4
        return super().reset(seed=seed)

    def reward(self):
        return -ClassCurriculum.difficulty * float(self.s[0] ** 2)


class IgnoresSeed(Plain):
    """Never seeds its own generator."""

    rng = None

    def reset(self, *, seed=None, options=None):
        self.rng = self.rng or np.random.default_rng()
        self.s = self.rng.uniform(-1, 1, 2)
        return self.obs(), {}


class Rewards(Plain):
    """A reward of another type: what `kind` names."""

    def __init__(self, kind):
        self.kind = kind

    def reward(self):
        value = super().reward()
        match self.kind:
            case "vector":
                return np.array([value])
            case "matrix":
                return np.array([[value]])
            case "torch":
                import torch

                return torch.tensor(value)
            case "numpy":
                return np.float32(value)
            case "bool":
                return value > -0.1
            case "int":
                return int(value > -0.1)
            case "none":
                return None
            case "two":
                return np.array([value, value])


class NoneLater(Plain):
    """Its 200th reward is None."""

    steps = 0

    def reward(self):
        self.steps += 1
        return None if self.steps == 200 else super().reward()


class OldStep(Plain):
    """`step` of gym before 0.26."""

    def step(self, action):
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


class OldReset(Plain):
    """`reset` of gym before 0.26."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class NoSeed(Plain):
    """`reset` without the argument `seed`."""

    def reset(self):
        self.s = np.zeros(2)
        return self.obs(), {}


class Success(Plain):
    """Reports numbers in `info`, and other things."""

    def step(self, action):
        obs, reward, _, truncated, _ = super().step(action)
        there = bool(abs(self.s[0]) < 0.05)
        info = {"is_success": there, "energy": np.square(action), "text": "3", "nan": np.nan, "many": np.zeros(3)}
        return obs, reward, there, truncated, info


class Single(Plain):
    """Only one instance can exist at a time."""

    alive = 0

    def __init__(self):
        if Single.alive:
            raise RuntimeError("simulator already in use (port 2000)")
        Single.alive += 1

    def close(self):
        Single.alive -= 1


class Noisy(Plain):
    """Its steps have noise that no seed determines."""

    def step(self, action):
        obs, *rest = super().step(action)
        return obs + np.random.default_rng().normal(0, 1e-3, 2).astype(np.float32), *rest


class Global(Plain):
    """Its steps draw from NumPy's global generator."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + np.random.normal(), *rest  # noqa: NPY002


class Sharing(Plain):
    """Two attributes, or one and the class, share an object or memory that resets and steps change."""

    HOME = np.ones(1)

    def __init__(self, kind):
        self.table = np.arange(1.0, 21.0)
        self.goal = self.table[:1]
        self.kind = kind
        self.params = {"gain": 1.0}
        self.dynamics = self.params
        if kind == "cycle":
            self.params["self"] = self.params
        self.rng = self.np_random if kind == "generator" else None

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed)
        self.params["gain"] = 2.0
        if self.kind == "generator":
            self.rng = self.np_random
        if self.kind == "restart":
            self.dynamics = self.params = {"gain": 3.0}
        if self.kind == "view":
            i = self.np_random.integers(20)
            self.goal = self.table[i : i + 1]
        if self.kind == "constant":
            self.goal = self.HOME
        return result

    def reward(self):
        self.params["gain"] += 0.25
        if self.kind == "view":
            self.goal += 0.1
        if self.kind == "constant":
            self.goal = self.goal + 0.1
        drawn = self.np_random.random() + self.rng.random() if self.rng else 0.0
        return -self.dynamics["gain"] * float(self.s[0] ** 2) + drawn - self.goal.sum() - self.table.sum()


def spawned():
    generator = np.random.default_rng(0)
    generator.spawn(1)
    return generator


def default(x, memory=[]):  # noqa: B006
    return x


def counting():
    count = 0

    def call():
        nonlocal count
        count += 1
        return count

    return call


class Point(NamedTuple):
    x: float = 0.0


@dataclasses.dataclass(slots=True)
class Slots:
    x: float = 0.0


class Holds(Plain):
    """Holds and uses something that cannot be copied."""

    def __init__(self, kind):
        self.kind = kind
        self.held = {
            "defaultdict": lambda: defaultdict(int),
            "counter": Counter,
            "namedtuple": Point,
            "ordered": lambda: OrderedDict(a=1, b=2),
            "slots": Slots,
            "philox": lambda: np.random.Generator(np.random.Philox(0)),
            "longdouble": lambda: np.zeros(2, np.longdouble),
            "foreign": lambda: random.Random(7).random,
            "inner": lambda: Plain(),
            "default": lambda: default,
            "closure": counting,
            "spawned": spawned,
            "memory": lambda: np.frombuffer(bytearray(16)),
            "nothing": lambda: None,
        }[kind]()

    def step(self, action):
        match self.kind:
            case "defaultdict" | "counter":
                self.held["never seen"] += 1
            case "namedtuple" | "slots":
                assert self.held.x == 0.0
            case "ordered":
                self.held.move_to_end("a")
            case "closure":
                self.held()
        return super().step(action)


server, started = None, set()


class Slotted(Plain):
    """Keeps something in a slot."""

    __slots__ = ("kept",)


class NewSpace(Plain):
    """Replaces a space of its own."""

    def __init__(self):
        self.goal_space = spaces.Box(-1.0, 1.0, (1,))

    def step(self, action):
        self.goal_space = spaces.Box(-2.0, 2.0, (1,))
        return super().step(action)


class Traces(Plain):
    """Leaves something in its class or its module, or starts a server that can be started once."""

    def __init__(self, what):
        self.what = what

    def reset(self, *, seed=None, options=None):
        global server
        if self.what == "class" and not hasattr(Traces, "new"):
            Traces.new = 1
        if self.what == "module":
            globals().setdefault("new", 1)
        if self.what == "server":
            if server is None and started:
                raise RuntimeError("address in use")
            started.add(1)
            server = object()
        return super().reset(seed=seed)

    def step(self, action):
        if self.what == "class":
            Traces.new += 1
        if self.what == "module":
            globals()["new"] += 1
        return super().step(action)


class Licences(Plain):
    """Only `most` instances can be created in all, and they cannot be copied."""

    created = 0

    def __init__(self, most):
        Licences.created += 1
        if Licences.created > most:
            raise RuntimeError("no licence")
        self.anything = iter(())


class OldWrapperStep(Plain):
    """In a wrapper with `step` of gym before 0.26."""


class OldWrapperReset(Plain):
    """In a wrapper with `reset` of gym before 0.26."""


class WrappedStep(gym.Wrapper):
    def step(self, action):
        return self.env.step(action)[:4]


class WrappedReset(gym.Wrapper):
    def reset(self, **kwargs):
        return self.env.reset(**kwargs)[0]


class Dies(Plain):
    """Loses its simulator at its step `at`; with `-at`, its process."""

    steps = 0

    def __init__(self, at=250, closes=True):
        self.at, self.closes = at, closes

    def close(self):
        if not self.closes:
            raise ConnectionError("already closed")

    def step(self, action):
        self.steps += 1
        if self.steps == -self.at:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.steps == self.at:
            raise ConnectionError("lost the simulator on port 41451")
        return super().step(action)


class TakesSignals(Plain):
    """Installs a handler of SIGINT, and sends the signal to the run at its step 210."""

    steps = 0

    def __init__(self, how):
        self.how = how
        if how in ("created", "ignored"):
            signal.signal(signal.SIGINT, signal.SIG_IGN if how == "ignored" else signal.default_int_handler)
        if how == "c":
            ctypes.CDLL(None).signal(signal.SIGINT, ctypes.c_void_p(1))  # SIG_IGN

    def step(self, action):
        self.steps += 1
        if self.how in ("step", "default"):
            handler = signal.default_int_handler if self.how == "default" else (lambda number, frame: None)
            signal.signal(signal.SIGINT, handler)
        if self.steps == 210:
            os.kill(os.getppid() if parent_process() else os.getpid(), signal.SIGINT)
        return super().step(action)


class ChangesDirectory(Plain):
    """Changes the working directory."""

    def __init__(self):
        os.chdir("/")


class Draws(Plain):
    """Renders pictures whose brightness is ten times the step of the episode; ends after 20 steps."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 20}  # noqa: RUF012
    shown = 0

    def __init__(self, render_mode=None, kind="picture"):
        self.render_mode, self.kind = None if kind == "unstored" else render_mode, kind

    def reset(self, *, seed=None, options=None):
        self.at = 0
        Draws.shown += self.render_mode == "human"
        return super().reset(seed=seed)

    def step(self, action):
        self.at += 1
        Draws.shown += self.render_mode == "human"
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, self.at == 20, truncated, info

    def render(self):
        match self.kind:
            case "raises":
                raise RuntimeError("no OpenGL here")
            case "none":
                return None
        return np.full((16, 17, 3), 10 * self.at, float if self.kind == "float" else np.uint8)


class Prints(Plain):
    """Prints to stdout, from Python, from C and without either."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 120:
            print("printed by Python")
            os.write(1, b"\x1b[2J\x1b[Hwritten to the descriptor\r")
            library = ctypes.CDLL(None)
            library.puts(b"printed by C")
            library.fflush(None)
        return super().step(action)


class Scalar(Plain):
    """An action of shape (), given as an array."""

    action_space = spaces.Box(-2.0, 2.0, (), np.float32)

    def step(self, action):
        assert isinstance(action, np.ndarray)
        assert action.shape == ()
        return super().step(action)


class Reads(Plain):
    """Needs a file."""

    def __init__(self, path, others=()):
        self.text = Path(path).read_text()


class Counted(Plain):
    """Counts how many instances were created and how many are open."""

    created = open_now = 0

    def __init__(self):
        Counted.created += 1
        Counted.open_now += 1

    def close(self):
        Counted.open_now -= 1


class Unregistered(Plain):
    """A class that is never registered."""


class Endless(Plain):
    """No time limit."""


gym.register("Endless-v0", Endless)
for _class in (
    *(Plain, OwnCurriculum, UncopyableCurriculum, Phases, Late, ClassCurriculum, IgnoresSeed, Noisy),
    *(
        Global,
        Sharing,
        Holds,
        Slotted,
        NewSpace,
        Traces,
        Licences,
        Rewards,
        NoneLater,
        OldStep,
        OldReset,
        NoSeed,
        Success,
    ),
    *(Single, Dies, TakesSignals, ChangesDirectory, Draws, Prints, Scalar, Reads, Counted),
):
    gym.register(f"{_class.__name__}-v0", _class, max_episode_steps=50)

gym.register("OldWrapperStep-v0", lambda: WrappedStep(OldWrapperStep()), max_episode_steps=50)
gym.register("OldWrapperReset-v0", lambda: WrappedReset(OldWrapperReset()), max_episode_steps=50)
