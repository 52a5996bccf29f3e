"""The device of a run. `device=auto` measures CPU and GPU and uses the faster one.

The decision holds for a machine and a configuration. It is kept in `~/.cache/dpg-cli/devices.json`, so that the same
command stays the same run and a sweep decides once.
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
from dpg_cli.cli.learners import choose_threads, new_algorithm, new_learner
from dpg_cli.cli.memory import check_memory
from dpg_cli.config import TrainConfig
from dpg_cli.errors import UserError, one_line
from dpg_cli.learner import Learner
from dpg_cli.precision import choose_products
from dpg_cli.replay import DeviceReplay, Step
from dpg_cli.storage.atomic import Disk, write_whole

CPU = torch.device("cpu")
COMPARED = 10  # updates
COMPARED_SEEDS = 2  # at most: in float64 a CPU takes long for many
SECONDS = 1.0  # of updates on each device
STORED = 1_000  # transitions that they learn from
TIMES_THE_ROUNDING = 10.0  # of the CPU, that a GPU's updates may be off
EXACT = 1e-9  # what counts as no difference: the CPU itself has no rounding where it is the reference
DECIDING_KEYS = ("algo", "num_seeds", "num_envs", "precision", "compile", "share_next_obs")
_chosen: dict[str, "Choice"] = {}  # in this process, by what decides


class Choice(NamedTuple):
    """A device, and why.

    Attributes:
        device: of the run.
        captured: whether its work is captured.
        updates_per_second: by device, where they were measured.
        reason: why an available GPU is not used, if speed was not the reason.
    """

    device: torch.device
    captured: bool
    updates_per_second: Mapping[str, float] = MappingProxyType({})
    reason: str | None = None

    def describe(self) -> str | None:
        """One line that names the device and why; nothing where the user named it or there is no GPU."""
        if self.reason is not None:
            return f"device=auto uses the CPU: {self.reason}"
        if not self.updates_per_second:
            return None
        speeds = " and ".join(f"{speed:,.0f} on {name}" for name, speed in self.updates_per_second.items())
        return f"device=auto uses {self.device}: {speeds} updates a second; device={self.device} pins it"

    def as_json(self) -> dict[str, Any]:
        """What `run.json` keeps."""
        return {"name": str(self.device), "updates_per_second": dict(self.updates_per_second), "reason": self.reason}


def choose(config: TrainConfig, obs_dim: int, action_dim: int) -> Choice:
    """The device of a run, measured the first time if it is to be.

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
    except (RuntimeError, AssertionError) as error:  # of a driver, or of torch when it starts it
        return Choice(CPU, captured=False, reason=one_line(f"{type(error).__name__}: {error}"))
    sizes = [choose_threads(config, obs_dim), obs_dim, action_dim]
    key = json.dumps([here, sizes, [getattr(config, name) for name in DECIDING_KEYS]])
    if key not in _chosen:
        with _cache() as known:
            if (speeds := _valid_speeds(known.get(key), gpu)) is not None:
                choice = faster(gpu, speeds)
            else:
                choice = measure(config, obs_dim, action_dim, gpu)
                if choice.reason is None:  # what went wrong may be gone the next time
                    known[key] = dict(choice.updates_per_second)
        _chosen[key] = choice
    choice = _chosen[key]
    if choice.captured:
        try:  # each time, since the replay's size decides nothing else
            check_memory(config, obs_dim, action_dim, gpu)
        except UserError as error:
            return Choice(CPU, captured=False, reason=str(error))
    return choice


def activate(device: torch.device) -> None:
    """Make a device the one that torch computes on."""
    choose_products(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def named_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        UserError: no such device.
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
    """The GPU that `auto` considers."""
    return torch.device("cuda") if torch.cuda.is_available() else None


def machine(gpu: torch.device) -> list[Any]:
    """What a speed depends on beside the configuration.

    Raises:
        RuntimeError, AssertionError: the GPU cannot be used.
    """
    model = torch.cuda.get_device_name(gpu) if gpu.type == "cuda" else str(gpu)
    return [_cpu_model(), len(os.sched_getaffinity(0)), model, torch.__version__, __version__]


def faster(gpu: torch.device, updates_per_second: dict[str, float]) -> Choice:
    """The choice that two speeds make."""
    wins = updates_per_second[str(gpu)] > updates_per_second[str(CPU)]
    return Choice(gpu if wins else CPU, wins, updates_per_second)


def measure(config: TrainConfig, obs_dim: int, action_dim: int, gpu: torch.device) -> Choice:
    """Try both devices by real updates at the run's own sizes.

    The GPU is not used where anything fails on it, or where its first updates differ from the CPU's by more than
    rounding does.
    """
    if config.share_next_obs:
        return Choice(CPU, captured=False, reason="share_next_obs=true is slow on a GPU")
    print(f"device=auto: measuring updates on {CPU} and {gpu}, once for this configuration", file=sys.stderr)
    stored = max(STORED, 2 * config.num_envs)
    small = config.model_copy(update={"buffer_size": stored, "total_steps": stored})
    steps = _transitions(small, obs_dim, action_dim)
    threads = torch.get_num_threads()
    torch.set_num_threads(choose_threads(config, obs_dim))
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
    except Exception as error:  # whatever a driver raises, or a compiler
        reason = str(error) if isinstance(error, UserError | WrongError) else f"{type(error).__name__}: {error}"
        return Choice(CPU, captured=False, reason=one_line(reason))
    finally:
        torch.set_num_threads(threads)
    return faster(gpu, {str(CPU): on_cpu, str(gpu): on_gpu})


class WrongError(Exception):
    """A device computes something else."""


def compare(
    config: TrainConfig, obs_dim: int, action_dim: int, learner: CapturedLearner, steps: Sequence[Step]
) -> None:
    """Hold a learner's first updates to the same updates on the CPU, in float64 and in its own precision.

    Args:
        config: of the learner.
        obs_dim: size of an observation.
        action_dim: size of an action.
        learner: has stored `steps` and the first of them again, and made `COMPARED` updates.
        steps: transitions.

    Raises:
        WrongError: it is off from float64 by more than `TIMES_THE_ROUNDING` what the CPU is.
    """
    members = min(config.num_seeds, COMPARED_SEEDS)
    numbers, normals = (drawn[:members, :COMPARED] for drawn in learner.drawn())
    moved = []
    for precision in ("float64", config.precision):
        own = config.model_copy(update={"precision": precision, "num_seeds": members})
        algorithm = new_algorithm(own, obs_dim, action_dim, CPU)
        dtype, start = algorithm.actor.flat.dtype, _parameters(algorithm, members)
        streams = [torch.Generator()] * members
        replay = DeviceReplay(config.buffer_size, obs_dim, action_dim, streams, CPU, dtype, config.num_envs)
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
    """Let a learner store a transition and make updates."""
    learner.learn(step, observed=step.obs, updates=updates, acts_next=False)


def updates_per_second(
    learner: Learner, step: Step, at_once: int = COMPARED, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Speed of real updates, over a second; `at_once` of them go with one transition."""
    learn(learner, step, at_once)
    _finish(learner)
    start, updates = clock(), 0
    while clock() - start < SECONDS:
        learn(learner, step, at_once)
        updates += at_once
    _finish(learner)
    return updates / (clock() - start)


def _finish(learner: Learner) -> None:
    """Wait for what the device still has to do."""
    learner.algorithm.actor.flat.detach()[:1].cpu()


def _store(learner: Learner, steps: Sequence[Step]) -> None:
    for step in steps:
        learn(learner, step, 0)


def _transitions(config: TrainConfig, obs_dim: int, action_dim: int) -> list[Step]:
    """Random ones, which fill half of the replay."""
    g, shape = np.random.default_rng(0), (config.num_seeds, config.num_envs)
    steps = []
    for _ in range(config.buffer_size // config.num_envs // 2):
        obs, next_obs = g.normal(size=(2, *shape, obs_dim)).astype(np.float32)
        action, reward = g.uniform(-1, 1, (*shape, action_dim)), g.normal(size=shape)
        steps.append(Step(obs, action, reward, next_obs, g.random(shape) < 0.1))
    return steps


def _parameters(algorithm: Algorithm, members: int) -> Tensor:
    """All networks of the first members, in float64 on the CPU."""
    networks = (algorithm.actor, algorithm.critic, algorithm.target_actor, algorithm.target_critic)
    views = [view for network in networks for view in network.views(network.flat.detach().cpu().double())]
    return torch.cat([view.narrow(view.dim() - 3, 0, members).flatten() for view in views])


def _valid_speeds(speeds: Any, gpu: torch.device) -> dict[str, float] | None:
    """What the cache says, if it says what it should."""
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
    """Speeds by what they depend on; what is added is kept, if the disk takes it. One process at a time has it."""
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
