"""From a checked config to the objects of a training."""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dpg_cli.algorithms import ALGORITHMS, Algorithm
from dpg_cli.config import TrainConfig
from dpg_cli.env_threads import EnvThreads
from dpg_cli.envs import make_env
from dpg_cli.errors import UserError
from dpg_cli.noise import NOISES, Noise
from dpg_cli.precision import PRECISIONS, choose_products
from dpg_cli.replay import Replay
from dpg_cli.rollout import Env, Environments
from dpg_cli.seeding import Purpose, generator, torch_generator

log = logging.getLogger(__name__)

ENVIRONMENT_BYTES = 2**28  # what the environments of one seed and all else could take in a checkpoint
MAX_AUTO_THREADS = 4  # networks of a few hundred units gain nothing from more
MIN_ENV_CORES = 4  # with fewer, threads that share Python's lock gain little
MAX_AUTO_ENV_THREADS = 8  # Python's part of the steps, which they make one at a time, leaves no gain for more
SMALL_PRODUCT = 2**20  # multiplications of a layer; of fewer, a second thread's waking is not won back


class Training(NamedTuple):
    """What `trainer.train` works with."""

    algorithm: Algorithm
    environments: Environments
    evaluation_envs: list[list[Env]]
    noise: Noise
    replay: Replay

    def close(self) -> None:
        """End the threads and close every environment."""
        if not self.environments.threads.close():
            return  # an environment that hangs is still being stepped
        self.environments.close()
        for member in self.evaluation_envs:
            for env in member:
                env.close()


def check(config: TrainConfig) -> tuple[int, int]:
    """Find, before anything is written, what would keep this training from starting.

    Returns:
        Sizes of an observation and of an action.

    Raises:
        UserError: device, environment, network sizes or memory.
    """
    one_episode = config.eval.model_copy(update={"episodes": 1})
    small = {"num_seeds": 1, "num_envs": 1, "buffer_size": 1, "eval": one_episode}
    training = build(config.model_copy(update=small))
    training.close()
    check_memory(config, *sizes(training.environments))
    return sizes(training.environments)


def check_memory(config: TrainConfig, obs_dim: int, action_dim: int) -> None:
    """Refuse what does not fit: a replay is touched only as it fills, so that it would end a run hours later.

    Raises:
        UserError: it says how much is needed and how much there is.
    """
    device = choose_device(config.device)
    free = available_memory() if device.type == "cpu" else free_gpu_memory(device)
    networks = learner_bytes(config, obs_dim, action_dim)
    if networks > free:
        raise UserError(
            f"algo.hidden_sizes={config.algo['hidden_sizes']}: no memory for such networks: with "
            f"num_seeds={config.num_seeds} they take {networks / 2**30:,.1f} GiB, "
            f"and {free / 2**30:.1f} GiB of memory are free"
        )
    capacity = min(config.buffer_size, config.total_steps)
    dtype, shared = PRECISIONS[config.precision].parameters, config.share_next_obs
    needed = Replay.memory(capacity, obs_dim, action_dim, config.num_seeds, dtype, share_next_obs=shared)
    if needed > free:
        raise UserError(
            f"buffer_size={config.buffer_size}: {capacity:,} transitions for {config.num_seeds} seeds take "
            f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free"
        )


def learner_bytes(config: TrainConfig, obs_dim: int, action_dim: int) -> int:
    """What all networks, their targets and the moments of their optimizers take."""
    hidden = config.algo["hidden_sizes"]

    def parameters(inputs: int, outputs: int) -> int:
        return sum((rows + 1) * columns for rows, columns in pairwise([inputs, *hidden, outputs]))

    critics: int = config.algo.get("num_critics", 1) * parameters(obs_dim + action_dim, 1)
    copies = 4 * config.num_seeds  # the network, its target, two moments
    return copies * (parameters(obs_dim, action_dim) + critics) * PRECISIONS[config.precision].parameters.itemsize


def most_bytes(config: TrainConfig, obs_dim: int, action_dim: int) -> int:
    """Bytes that a stored state of one seed, or its policy, could have: a stranger's file is not read beyond them."""
    return min(2 * learner_bytes(config, obs_dim, action_dim) + ENVIRONMENT_BYTES, available_memory() // 2)


def build(config: TrainConfig) -> Training:
    """Make everything.

    Raises:
        UserError: device, environment, network sizes or memory.
    """
    device, precision = choose_device(config.device), PRECISIONS[config.precision]
    seeds = range(config.seed, config.seed + config.num_seeds)
    new_env = environment_maker(config)
    environments = Environments([[new_env() for _ in range(config.num_envs)] for _ in seeds], seeds)
    obs_dim, action_dim = sizes(environments)
    torch.set_num_threads(threads := choose_threads(config, obs_dim))
    log.info("threads: %d", threads)
    choose_products(device)
    try:
        check_memory(config, obs_dim, action_dim)
    except UserError:
        environments.close()
        raise
    evaluation_envs = [[new_env() for _ in range(config.eval.episodes)] for _ in seeds]
    noise_name, noise_values = _named(config.noise)
    noise_streams = [[generator(s, Purpose.NOISE, e) for e in range(config.num_envs)] for s in seeds]
    algo_name, algo_values = _named(config.algo)
    try:
        algorithm = ALGORITHMS[algo_name](
            **algo_values,
            obs_dim=obs_dim,
            action_dim=action_dim,
            seeds=seeds,
            device=device,
            dtype=precision.parameters,
            products=precision.products,
        )
    except ValueError as error:
        raise UserError(f"algo.{error}") from error
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"algo.hidden_sizes={config.algo['hidden_sizes']}: no memory for such networks") from error
    return Training(
        algorithm=algorithm,
        environments=environments,
        evaluation_envs=evaluation_envs,
        noise=NOISES[noise_name](**noise_values, action_dim=action_dim, generators=noise_streams),
        replay=Replay(
            min(config.buffer_size, config.total_steps + config.num_envs - 1),
            obs_dim,
            action_dim,
            [torch_generator(s, Purpose.REPLAY) for s in seeds],
            device,
            precision.parameters,
            config.num_envs,
            share_next_obs=config.share_next_obs,
        ),
    )


def environment_maker(config: TrainConfig) -> Callable[[], Env]:
    """What makes one environment of a config."""
    env = config.env
    log_once = functools.cache(log.info)  # a dozen environments warn of the same
    return functools.partial(
        make_env, env.id, env.kwargs, env.max_episode_steps, PRECISIONS[config.precision].observations, log_once
    )


def sizes(environments: Environments) -> tuple[int, int]:
    """Sizes of an observation and of an action."""
    return environments.obs.shape[-1], environments.action_dim


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU where torch has one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: no such device") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"device={name}: torch {torch.__version__} finds no GPU; use cpu or auto")
        if device.index is not None and device.index >= count:
            raise UserError(f"device={name}: there are {count} GPUs, cuda:0 to cuda:{count - 1}")
    return device


def choose_threads(config: TrainConfig, obs_dim: int) -> int:
    """`auto` is as many as this process may use, at most `MAX_AUTO_THREADS`, and one where all products are small."""
    if config.threads != "auto":
        return config.threads
    largest = max((a * b for a, b in pairwise([obs_dim, *config.algo["hidden_sizes"]])), default=0)
    if config.num_seeds * config.algo["batch_size"] * largest < SMALL_PRODUCT:
        return 1
    return min(len(os.sched_getaffinity(0)), MAX_AUTO_THREADS)


def choose_env_threads(config: TrainConfig) -> int:
    """Threads for the environments, at most one each; `auto` is one with fewer than `MIN_ENV_CORES` cores."""
    environments = config.num_seeds * max(config.num_envs, config.eval.episodes)
    if config.env_threads != "auto":
        return min(config.env_threads, environments)
    cores = len(os.sched_getaffinity(0))
    return min(cores, MAX_AUTO_ENV_THREADS, environments) if cores >= MIN_ENV_CORES else 1


def make_env_threads(config: TrainConfig, problem: str | None) -> EnvThreads:
    """The threads of a run; `auto` measures whether they are faster than a plain loop.

    Args:
        config: of the run.
        problem: why the environment is not thread-safe; None if it is.
    """
    count = choose_env_threads(config)
    if count > 1 and problem is not None:
        log.info("environments are stepped one after another: %s", problem)
        count = 1
    return EnvThreads(count, measured=config.env_threads == "auto")


def available_memory() -> int:
    """Bytes that can still be taken: of the machine, or of the container that this process is in."""
    about = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(about["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, KeyError):  # no container, none with a limit, or an old kernel
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        available = min(available, limit - used + int(stat["inactive_file"]))  # what files take is given up on demand
    return available


def free_gpu_memory(device: torch.device) -> int:
    """Bytes that can still be taken, those that torch keeps for itself too."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def _named(values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    rest = dict(values)
    return str(rest.pop("name")), rest
