"""How many jobs of a sweep fit into memory at the same time."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from dpg_cli.cli.dataset import bytes_on_disk
from dpg_cli.cli.here import here
from dpg_cli.cli.job_process import SIZES_PROGRAM, surroundings
from dpg_cli.cli.machine import available_memory
from dpg_cli.cli.memory import learner_bytes, series_bytes, stored_bytes
from dpg_cli.config import TrainConfig
from dpg_cli.sweeps.process import Process, kill_session

INTERPRETER_BYTES = 400 * 2**20  # of a process, with torch and a simple environment
SECONDS = 30.0  # to create all environments once
TICK = 0.05  # seconds

Sizes = tuple[int, int]  # of an observation and of an action


def most_at_once(configs: Sequence[TrainConfig], wanted: int, stop: Callable[[], bool]) -> tuple[int, str | None]:
    """The number of jobs that fit into memory at the same time, at most `wanted`, and a note if it is less.

    Where the sizes of an environment cannot be found, its jobs count as small.

    Args:
        configs: of the jobs.
        wanted: number of jobs at once.
        stop: whether to give up.
    """
    if wanted == 1:
        return 1, None
    sizes = environment_sizes(configs, stop)
    needed = max((_bytes(config, sizes[key]) for config in configs if (key := _key(config)) in sizes), default=0)
    free, each = available_memory(), needed + 2 * INTERPRETER_BYTES  # its own, and that of the next job
    fitting = max(1, free // each)
    if needed == 0 or fitting >= wanted:
        return wanted, None
    jobs = "one job" if fitting == 1 else f"{fitting} jobs"
    return fitting, (
        f"note: n_jobs=auto runs {jobs} at once, not {wanted}: each may need {each / 2**30:.1f} GiB, "
        f"and {free / 2**30:.1f} GiB of memory are free"
    )


def environment_sizes(configs: Iterable[TrainConfig], stop: Callable[[], bool]) -> Mapping[str, Sizes]:
    """The sizes of each distinct environment, which another process creates once; without those that fail.

    Args:
        configs: of the jobs.
        stop: whether to give up.
    """
    distinct = {_key(config): config for config in configs}
    environments = [{"key": key, "id": config.env.id, "kwargs": config.env.kwargs} for key, config in distinct.items()]
    found: dict[str, Sizes] = {}
    lifeline, held = os.pipe()
    try:
        process = Process(SIZES_PROGRAM, lifeline, here(), os.environ)
        try:
            process.give({**surroundings(), "environments": environments})
            end = time.monotonic() + SECONDS
            while (ended := process.ended() is not None) or (time.monotonic() < end and not stop()):
                found |= {message["key"]: tuple(message["sizes"]) for message in process.messages()}
                if ended:
                    break
                time.sleep(TICK)
        finally:
            kill_session(process.pid)
            while process.ended() is None:
                time.sleep(TICK)
            process.close()
    finally:
        os.close(held)
        os.close(lifeline)
    return found


def _key(config: TrainConfig) -> str:
    return json.dumps([config.env.id, config.env.kwargs], default=str)


def _bytes(config: TrainConfig, sizes: Sizes) -> int:
    """Most bytes of main memory that the replay, the networks and the noise of a job take."""
    if config.device.startswith("cuda"):
        return 0
    stored = bytes_on_disk(config) if config.offline else stored_bytes(config, *sizes)
    return stored + learner_bytes(config, *sizes) + series_bytes(config, sizes[1])
