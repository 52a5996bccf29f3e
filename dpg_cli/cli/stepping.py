"""Choose how the environments of a run are stepped: plain loop, threads or processes. The results are the same."""

import logging
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from dpg_cli.cli.machine import cores
from dpg_cli.config import TrainConfig
from dpg_cli.environments.threads import EnvThreads

log = logging.getLogger(__name__)

MIN_ENV_CORES = 4  # with fewer, Python's lock leaves threads little gain, and processes take cores from updates
MAX_AUTO_ENV_THREADS = 8  # more gain nothing: the Python part of each step runs in one thread at a time
PROCESSES_OVERHEAD = 0.15e-3  # seconds per vector step
MIN_GAIN = 1.5  # speed-up that is worth the memory of processes
MIN_SAVED = 10.0  # seconds in the whole run, since processes take seconds to start


class Stepping(NamedTuple):
    """How the environments of a run are stepped."""

    processes: int  # 1 is the main process
    threads: EnvThreads  # used if the main process steps them


def choose_stepping(config: TrainConfig, problem: str | None, durations: Sequence[float]) -> Stepping:
    """Choose processes, threads or a plain loop.

    Args:
        config: of the run.
        problem: why the environments can only be stepped in a plain loop; None if they are not restricted.
        durations: measured seconds of single steps of one environment.
    """
    processes = choose_env_processes(config, statistics.median(durations) if durations and problem is None else None)
    threads = 1 if processes > 1 else choose_env_threads(config)
    if max(processes, threads) > 1 and problem is not None:
        log.info("environments are stepped one after another: %s", problem)
        processes = threads = 1
    if processes > 1:
        log.info("environments are stepped in %d processes", processes)
    return Stepping(processes, EnvThreads(threads, measured=config.env_threads == "auto"))


def choose_env_processes(config: TrainConfig, step_seconds: float | None) -> int:
    """The number of processes, at most one per environment; `auto` estimates whether they are worth it.

    Args:
        config: of the run.
        step_seconds: seconds of one step of one environment; None if unknown.
    """
    if config.env_processes != "auto":
        return min(config.env_processes, _most_at_once(config))
    size = config.num_seeds * config.num_envs
    count = min(cores() - 1, size)
    if cores() < MIN_ENV_CORES or count == 1 or step_seconds is None:
        return 1
    alone = size * step_seconds
    together = math.ceil(size / count) * step_seconds + PROCESSES_OVERHEAD
    vector_steps = config.total_steps / config.num_envs
    gain = alone > MIN_GAIN * together and (alone - together) * vector_steps > MIN_SAVED
    if math.isfinite(alone):
        figures = 1e3 * together, count, 1e3 * alone
        log.info("a vector step takes %.3f ms in %d processes and %.3f ms in this one (estimated)", *figures)
    return count if gain or math.isinf(alone) else 1


def choose_env_threads(config: TrainConfig) -> int:
    """The number of threads, at most one per environment; `auto` is one with fewer than `MIN_ENV_CORES` cores."""
    if config.env_threads != "auto":
        return min(config.env_threads, _most_at_once(config))
    return min(cores(), MAX_AUTO_ENV_THREADS, _most_at_once(config)) if cores() >= MIN_ENV_CORES else 1


def _most_at_once(config: TrainConfig) -> int:
    """The larger of the numbers of training and evaluation environments."""
    return config.num_seeds * max(config.num_envs, config.eval.episodes)
