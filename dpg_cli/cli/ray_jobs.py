"""`hydra/launcher=ray`: run the jobs of a sweep on a Ray cluster, through hydra-ray-launcher."""

import math
import os
import platform
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray
from omegaconf import DictConfig, OmegaConf, open_dict

from dpg_cli.cli import here, signals
from dpg_cli.cli.job import Result
from dpg_cli.cli.launch import Record
from dpg_cli.cli.returned import NoScoreError, fill
from dpg_cli.errors import UserError, first_line, one_line
from dpg_cli.sweeps import record as sweep_record

TICK = 0.2  # seconds
PATIENCE = 30.0  # seconds for a checkpoint
ANSWER = 10.0  # seconds


def launch(
    job_overrides: Sequence[Sequence[str]],
    first: int,
    options: DictConfig,
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    record: Record,
) -> list[JobReturn]:
    """Run jobs as Hydra's own launcher does, but each as a task of Ray; returns how each ended.

    Unlike hydra-ray-launcher, it connects to a running cluster without further keys, one job that is lost does not end
    the others, and a signal stops all jobs with a checkpoint.

    Args:
        job_overrides: of each job.
        first: number of the first job.
        options: the keys of `hydra.launcher.ray`.
        context: Hydra's.
        task: Hydra's.
        config: of the sweep.
        record: of the sweep.

    Raises:
        UserError: Ray cannot start, or rejects an argument.
        SystemExit: a signal stopped the sweep (128 + signal).
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    with signals.PolledStop() as stop:
        _connect(options)
        numbers: dict[Any, int] = {}  # of the jobs that wait or run
        returns = {}
        there = partial(_there, task, Path(config.hydra.sweep.dir), here.here(), sys.path)
        for number, overrides in enumerate(job_overrides, first):
            own = context.config_loader.load_sweep_config(config, list(overrides))
            with open_dict(own):
                own.hydra.job.id, own.hydra.job.num = str(number), number
                record.expect(number, own)
            try:
                reference = launch_job_on_ray(context, options.remote, own, there, Singleton.get_state())
            except (TypeError, ValueError) as error:
                raise UserError(f"hydra.launcher.ray.remote: {one_line(first_line(error))}") from error
            numbers[reference] = number
            if stop():
                break
        deadline = None
        while numbers:
            if stop() and deadline is None:
                deadline = time.monotonic() + PATIENCE
                for reference in numbers:
                    ray.cancel(reference)  # a job sees SIGINT, and stops with a checkpoint
            elif deadline is not None and time.monotonic() > deadline:
                deadline = math.inf
                for reference in numbers:
                    ray.cancel(reference, force=True)
            for reference in ray.wait(list(numbers), timeout=TICK, fetch_local=False)[0]:
                number = numbers.pop(reference)
                returns[number] = _ended(reference, number, config.hydra.sweeper, options, record)
        if stop():
            ray.shutdown()
    if stop.signal is not None:
        sys.exit(128 + stop.signal)  # not an Exception, so that it ends the sweep
    return [returns[number] for number in sorted(returns)]


def _connect(options: DictConfig) -> None:
    """Connect to the cluster, or start Ray on this machine, and say what it has."""
    if ray.is_initialized():  # a sweeper that decides on jobs as it goes launches several times
        return
    if match := re.fullmatch(r"([\w.-]+):(\d+)", str(options.init.get("address"))):
        try:
            socket.create_connection((match[1], int(match[2])), timeout=ANSWER).close()
        except (OSError, OverflowError) as error:  # Ray itself would try for many minutes, whatever the signals
            raise UserError(f"hydra.launcher.ray.init.address={match[0]}: no Ray cluster answers ({error})") from error
    arguments: Any = OmegaConf.to_container(options.init, resolve=True)
    try:
        ray.init(**arguments)
    except Exception as error:  # of many types
        raise UserError(f"hydra.launcher.ray.init: {one_line(first_line(error))}") from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = [f"{sum(node.get(name, 0) for node in nodes):g} {name}s" for name in ("CPU", "GPU")]
    print(f"Ray: {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} with {' and '.join(sizes)}")
    given = {"CPU": options.remote.get("num_cpus"), "GPU": options.remote.get("num_gpus")}
    wanted = {name: count for name, count in given.items() if isinstance(count, int | float)}
    if not any(all(node.get(name, 0) >= count for name, count in wanted.items()) for node in nodes):
        needs = " and ".join(f"{count:g} {name}s" for name, count in wanted.items() if count)
        print(f"note: no node has {needs}; the jobs wait until one joins (hydra.launcher.ray.remote)")


def _there(task: TaskFunction, folder: Path, started_in: Path, path: Sequence[str], config: DictConfig) -> Any:
    """Run a job on its node, which must find the same files and modules as the sweep's own process."""
    if not (folder / sweep_record.FILE).exists():
        raise UserError(f"{folder} on the node {platform.node()} is another folder; the nodes need shared storage")
    if started_in.is_dir():
        os.chdir(started_in)
        here.remember()
    sys.path.extend(entry for entry in path if entry not in sys.path)
    signals.install = signal.signal  # while Ray imported that module, this was a function that ignores SIGINT
    try:
        return task(config)
    except SystemExit as ended:
        if ended.code == 128 + signal.SIGINT:  # cancelled; Ray would report an ended process as a failure
            raise KeyboardInterrupt from ended
        raise  # the node is about to stop: Ray starts the job again elsewhere


def _ended(reference: Any, number: int, sweeper: DictConfig, options: DictConfig, record: Record) -> JobReturn:
    """How a job ended that waits or runs no longer."""
    try:
        done: JobReturn = ray.get(reference)
        if done.status is JobStatus.COMPLETED or isinstance(done._return_value, NoScoreError):
            return done
        reason = one_line(done._return_value)
    except ray.exceptions.TaskCancelledError:
        return JobReturn()  # its folder tells how far it came
    except ray.exceptions.RayError as error:
        done, reason = JobReturn(), _reason(error, options.remote.get("max_retries"))
    record.ended(number, Result(1, error=reason), "failed", reason)
    fill(done, math.nan, sweeper, reason)
    return done


def _reason(error: ray.exceptions.RayError, retries: int | None) -> str:
    """Why Ray could not run a job, in one line."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "killed by Ray, because its node was out of memory"
    if isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.NodeDiedError):
        return f"its process or node died {(retries or 0) + 1} times (hydra.launcher.ray.remote.max_retries={retries})"
    cause = getattr(error, "cause", None) or error
    return one_line(f"{type(cause).__name__}: {first_line(cause)}")
