"""The device of a run. `device=auto` measures CPU and GPU and uses the faster one.

The decision depends on the machine and the configuration. It is stored in `~/.cache/dpg-cli/devices.json`, so that
repeating a command gives the same run, and a sweep measures once.
"""

import contextlib
import fcntl
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpg_cli import __version__
from dpg_cli.algorithms import Algorithm
from dpg_cli.captured_learner import CapturedLearner, follow
from dpg_cli.cli.learners import choose_threads, new_algorithm, new_learner, windows
from dpg_cli.cli.machine import affinity
from dpg_cli.cli.memory import check_memory
from dpg_cli.config import TrainConfig
from dpg_cli.errors import UserError, one_line
from dpg_cli.learner import Learner
from dpg_cli.precision import choose_products
from dpg_cli.replay import DeviceReplay, Step
from dpg_cli.storage.atomic import Disk, write_whole

CPU = torch.device("cpu")
COMPARED = 10  # updates compared between GPU and CPU
COMPARED_SEEDS = 2  # at most: many seeds take a CPU long in float64
SECONDS = 1.0  # of measured updates on each device
STORED = 1_000  # transitions to learn from while measuring
TIMES_THE_ROUNDING = 10.0  # allowed error of a GPU's updates, in multiples of the CPU's rounding error
EXACT = 1e-9  # always allowed: with precision=float64 the CPU is the reference, and has no rounding error
DECIDING_KEYS = ("algo", "num_seeds", "num_envs", "precision", "compile", "share_next_obs", "network", "replay")
_chosen: dict[str, "Choice"] = {}  # of this process, by machine and configuration


class Choice(NamedTuple):
    """The device of a run, and why it was chosen.

    Attributes:
        device: of the run.
        captured: whether its work is captured in graphs.
        updates_per_second: by device; empty if not measured.
        reason: why an available GPU is not used, if speed was not the reason.
    """

    device: torch.device
    captured: bool
    updates_per_second: Mapping[str, float] = MappingProxyType({})
    reason: str | None = None

    def describe(self) -> str | None:
        """One line that says which device `auto` chose and why; None if the user named it or there is no GPU."""
        if self.reason is not None:
            return f"device=auto uses the CPU: {self.reason}"
        if not self.updates_per_second:
            return None
        speeds = " and ".join(f"{speed:,.0f} on {name}" for name, speed in self.updates_per_second.items())
        return f"device=auto uses {self.device}: {speeds} updates per second; device={self.device} pins it"

    def as_json(self) -> dict[str, Any]:
        """The entry in `run.json`."""
        return {"name": str(self.device), "updates_per_second": dict(self.updates_per_second), "reason": self.reason}


def choose(config: TrainConfig, obs_dim: int, action_dim: int, transitions: int = 0) -> Choice:
    """Choose the device of a run; `auto` measures each configuration once per machine.

    Args:
        config: of the run.
        obs_dim: size of an observation.
        action_dim: size of an action.
        transitions: of the data set of an offline run.

    Raises:
        UserError: there is no such device.
    """
    if config.device != "auto":
        device = named_device(config.device)
        return Choice(device, captured=device.type == "cuda")
    gpu = first_gpu()
    if gpu is None:
        return Choice(CPU, captured=False)
    try:
        here = machine(gpu)
    except (RuntimeError, AssertionError) as error:  # raised by the driver, or by torch when it starts it
        return Choice(CPU, captured=False, reason=one_line(f"{type(error).__name__}: {error}"))
    sizes = [choose_threads(config, obs_dim).number, obs_dim, action_dim]
    key = json.dumps([here, sizes, [getattr(config, name) for name in DECIDING_KEYS]])
    if key not in _chosen:
        with _cache() as known:
            if (speeds := _valid_speeds(known.get(key), gpu)) is not None:
                choice = faster(gpu, speeds)
            else:
                choice = measure(config, obs_dim, action_dim, gpu)
                if choice.reason is None:  # a failure may be gone the next time
                    known[key] = dict(choice.updates_per_second)
        _chosen[key] = choice
    choice = _chosen[key]
    if choice.captured:
        try:  # each time: memory depends on the replay's size, which is not in the key
            check_memory(config, obs_dim, action_dim, gpu, transitions)
        except UserError as error:
            return Choice(CPU, captured=False, reason=str(error))
    return choice


def activate(device: torch.device) -> None:
    """Set up torch to compute on a device."""
    choose_products(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def named_device(name: str) -> torch.device:
    """The device with this name.

    Raises:
        UserError: there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: no such device") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"device={name}: torch {torch.__version__} finds no GPU; use device=cpu or device=auto")
        if device.index is not None and device.index >= count:
            names = ", ".join(f"cuda:{index}" for index in range(count))
            raise UserError(f"device={name}: no such GPU; choose from {names}")
    return device


def first_gpu() -> torch.device | None:
    """The GPU that `auto` considers; None if there is none."""
    return torch.device("cuda") if torch.cuda.is_available() else None


def machine(gpu: torch.device) -> list[Any]:
    """Everything that speed depends on besides the configuration: processor, cores, GPU and versions.

    Raises:
        RuntimeError, AssertionError: the GPU cannot be used.
    """
    model = torch.cuda.get_device_name(gpu) if gpu.type == "cuda" else str(gpu)
    return [_cpu_model(), affinity(), model, torch.__version__, __version__]


def faster(gpu: torch.device, updates_per_second: dict[str, float]) -> Choice:
    """Choose the faster of the GPU and the CPU."""
    wins = updates_per_second[str(gpu)] > updates_per_second[str(CPU)]
    return Choice(gpu if wins else CPU, wins, updates_per_second)


def measure(config: TrainConfig, obs_dim: int, action_dim: int, gpu: torch.device) -> Choice:
    """Measure real updates at the run's own sizes on both devices, and choose the faster one.

    The CPU is chosen if anything fails on the GPU, or if the GPU's first updates differ from the CPU's by more than
    rounding errors.
    """
    if config.share_next_obs:
        return Choice(CPU, captured=False, reason="share_next_obs=true is slow on a GPU")
    print(f"device=auto: measuring updates on {CPU} and {gpu}, once for this configuration", file=sys.stderr)
    stored = max(STORED, 2 * config.num_envs)
    at_once = {key: False for key in config.algo if key == "policy_checkpoints"}  # which would wait for episodes
    small = config.model_copy(update={"buffer_size": stored, "total_steps": stored, "algo": {**config.algo, **at_once}})
    steps = _transitions(small, obs_dim, action_dim)
    threads = torch.get_num_threads()
    torch.set_num_threads(choose_threads(config, obs_dim).number)
    try:
        activate(gpu)
        learner = new_learner(small, new_algorithm(small, obs_dim, action_dim, gpu), obs_dim, action_dim, captured=True)
        assert isinstance(learner, CapturedLearner)
        learner.prepare()
        _store(learner, steps)
        learn(learner, steps[0], COMPARED)
        activate(CPU)
        compare(small, obs_dim, action_dim, learner, steps)
        activate(gpu)
        on_gpu = updates_per_second(learner, steps[0])
        activate(CPU)
        plain = new_learner(small, new_algorithm(small, obs_dim, action_dim, CPU), obs_dim, action_dim, captured=False)
        _store(plain, steps)
        on_cpu = updates_per_second(plain, steps[0], at_once=1)
    except Exception as error:  # drivers and compilers raise many types
        reason = str(error) if isinstance(error, UserError | WrongError) else f"{type(error).__name__}: {error}"
        return Choice(CPU, captured=False, reason=one_line(reason))
    finally:
        torch.set_num_threads(threads)
    return faster(gpu, {str(CPU): on_cpu, str(gpu): on_gpu})


class WrongError(Exception):
    """A device computes wrong numbers."""


def compare(
    config: TrainConfig, obs_dim: int, action_dim: int, learner: CapturedLearner, steps: Sequence[Step]
) -> None:
    """Compare a learner's first updates with the same updates on the CPU, in float64 and in the run's precision.

    Args:
        config: of the learner.
        obs_dim: size of an observation.
        action_dim: size of an action.
        learner: has stored `steps` and then the first of them again, and has made `COMPARED` updates.
        steps: transitions.

    Raises:
        WrongError: its error against float64 is more than `TIMES_THE_ROUNDING` times the CPU's.
    """
    members = min(config.num_seeds, COMPARED_SEEDS)
    numbers, normals = (drawn[:members, :COMPARED] for drawn in learner.drawn())
    moved = []
    for precision in ("float64", config.precision):
        own = config.model_copy(update={"precision": precision, "num_seeds": members})
        algorithm = new_algorithm(own, obs_dim, action_dim, CPU)
        dtype, start = algorithm.actor.flat.dtype, _parameters(algorithm, members)
        streams = [torch.Generator()] * members
        sizes = config.buffer_size, obs_dim, action_dim
        replay = DeviceReplay(*sizes, streams, CPU, dtype, config.num_envs, **windows(own, algorithm, sizes[0]))
        for step in [*steps, steps[0]]:
            replay.insert(torch.from_numpy(np.concatenate(step.in_a_row(), axis=-1)[:members]).to(dtype))
            algorithm.observe(step.obs[:members])
        follow(algorithm, replay, numbers, normals)
        moved.append(_parameters(algorithm, members) - start)
    exact, rounded = moved
    off = float((_parameters(learner.algorithm, members) - start - exact).norm() / exact.norm())
    allowed = max(TIMES_THE_ROUNDING * float((rounded - exact).norm() / exact.norm()), EXACT)
    if not off <= allowed:
        raise WrongError(f"its first {COMPARED} updates differ by {off:.1e}; rounding allows {allowed:.1e}")


def learn(learner: Learner, step: Step, updates: int) -> None:
    """Store a transition and make updates."""
    learner.learn(step, observed=step.obs, updates=updates, acts_next=False)


def updates_per_second(
    learner: Learner, step: Step, at_once: int = COMPARED, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The speed of real updates, measured for `SECONDS`, with `at_once` updates per transition."""
    learn(learner, step, at_once)
    _finish(learner)
    start, updates = clock(), 0
    while clock() - start < SECONDS:
        learn(learner, step, at_once)
        updates += at_once
    _finish(learner)
    return updates / (clock() - start)


def _finish(learner: Learner) -> None:
    """Wait until the device has finished its work."""
    learner.algorithm.actor.flat.detach()[:1].cpu()


def _store(learner: Learner, steps: Sequence[Step]) -> None:
    for step in steps:
        learn(learner, step, 0)


def _transitions(config: TrainConfig, obs_dim: int, action_dim: int) -> list[Step]:
    """Random transitions that fill half of the replay."""
    g, shape = np.random.default_rng(0), (config.num_seeds, config.num_envs)
    steps = []
    for _ in range(config.buffer_size // config.num_envs // 2):
        obs, next_obs = g.normal(size=(2, *shape, obs_dim)).astype(np.float32)
        action, reward = g.uniform(-1, 1, (*shape, action_dim)), g.normal(size=shape)
        steps.append(Step(obs, action, reward, next_obs, g.random(shape) < 0.1, g.random(shape) < 0.1))
    return steps


def _parameters(algorithm: Algorithm, members: int) -> Tensor:
    """All networks of the first members, in float64 on the CPU."""
    networks = algorithm.networks().values()
    views = [view for network in networks for view in network.views(network.flat.detach().cpu().double())]
    return torch.cat([view.narrow(view.dim() - 3, 0, members).flatten() for view in views])


def _valid_speeds(speeds: Any, gpu: torch.device) -> dict[str, float] | None:
    """An entry of the cache, if it is valid: updates per second on CPU and GPU."""
    if not isinstance(speeds, dict) or set(speeds) != {str(CPU), str(gpu)}:
        return None
    return speeds if all(type(speed) is float and 0 < speed < math.inf for speed in speeds.values()) else None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


@contextlib.contextmanager
def _cache() -> Iterator[dict[str, Any]]:
    """Measured speeds by machine and configuration, locked to one process at a time.

    Added entries are stored on exit. If the cache cannot be read or written, runs continue without it.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if caches.startswith("~"):  # a user without a home
        yield {}
        return
    folder = Path(caches, "dpg-cli")
    path, known = folder / "devices.json", {}
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            fcntl.flock(opened.enter_context((folder / "devices.lock").open("a")), fcntl.LOCK_EX)
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text(encoding="utf-8"))
        known = known if isinstance(known, dict) else {}
        before = dict(known)
        yield known
        if known != before:
            with contextlib.suppress(OSError):
                write_whole(Disk(), path, json.dumps(known, indent=2).encode())
