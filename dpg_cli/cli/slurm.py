"""`hydra/launcher=slurm`: the jobs of a sweep as SLURM jobs, submitted by submitit."""

import contextlib
import copy
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from dpg_cli.cli import signals
from dpg_cli.cli.here import below_here
from dpg_cli.cli.machine import slurm_cpus
from dpg_cli.cli.returned import fill
from dpg_cli.cli.sweep_plan import Plan
from dpg_cli.errors import UserError, one_line
from dpg_cli.storage import run_dir
from dpg_cli.sweeps import slurm

MOST = 1000  # jobs of an array: SLURM's own limit, unless it is configured
LOOK_EVERY = 0.5  # seconds between looks for results
ASK_EVERY = 15.0  # seconds between questions to SLURM


class Sweep(Protocol):
    """A sweep whose jobs are submitted.

    Attributes:
        plan: of its jobs.
        stop: whether a signal has asked it to stop.
        logs: of submitted jobs, by number.
        waiting: numbers of jobs that were left in SLURM.
        begun: whether any job was submitted.
    """

    plan: Plan
    stop: signals.StopRequest
    logs: dict[int, Path]
    waiting: Set[int]
    begun: bool

    def expect(self, number: int, composed: DictConfig) -> None:
        """Record a job before it starts."""

    def number(self, launched: int) -> int:
        """The number of a job, from its number among those that the launcher runs."""

    def folder(self, number: int) -> Path | None:
        """The folder of a job; None if it is not known yet."""

    def failed(self, number: int, reason: str) -> None:
        """Record that a job failed before its training began."""

    def score(self, number: int) -> float:
        """The score of a job; NaN if it is not done."""

    def reason(self, number: int) -> str | None:
        """Why a job failed or stopped; None if it did not."""

    def tell(self, line: str) -> None:
        """Print a line."""


def check() -> None:
    """Check that jobs can be submitted here.

    Raises:
        UserError: this machine has no SLURM.
    """
    if shutil.which("sbatch") is None or shutil.which("squeue") is None:
        raise UserError("hydra/launcher=slurm: this machine has no sbatch and squeue, so it cannot submit SLURM jobs")


def launch(
    job_overrides: Sequence[Sequence[str]],
    first: int,
    options: Mapping[str, Any],
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    sweep: Sweep,
) -> list[JobReturn]:
    """Submit jobs, and wait until all have ended; returns their scores, NaN for a job that is not done.

    Args:
        job_overrides: of each job.
        first: number of the first job.
        options: the keys of `hydra.launcher`.
        context: Hydra's.
        task: Hydra's.
        config: of the sweep.
        sweep: the sweep.

    Raises:
        SystemExit: a signal stopped the waiting (128 + signal). The jobs continue.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    if not sweep.plan.planned:
        for number, overrides in enumerate(job_overrides, first):
            own = context.config_loader.load_sweep_config(config, list(overrides))
            with open_dict(own):
                sweep.expect(number, own)
    numbers = [sweep.number(first + index) for index in range(len(job_overrides))]
    submitted: dict[int, slurm.Submitted] = {}
    try:
        for array in _submit(job_overrides, first, options, context, task, config):
            sweep.begun = True
            submitted |= zip(numbers[len(submitted) :], array, strict=False)
            slurm.store(sweep.plan.folder, submitted)
    except Exception as error:  # of many types
        if not submitted:
            raise UserError(f"SLURM rejected the jobs: {one_line(error)}") from error
        sweep.tell(f"SLURM rejected more jobs: {one_line(error)}")
    jobs = "1 job was" if len(submitted) == 1 else f"{len(submitted)} jobs were"
    sweep.tell(f"{jobs} submitted to SLURM; squeue --jobs={','.join(_arrays(submitted))} shows them")
    wait(sweep, submitted)
    returns = [JobReturn(overrides=list(overrides)) for overrides in job_overrides]
    for done, number in zip(returns, numbers, strict=True):
        fill(done, sweep.score(number), config.hydra.sweeper, sweep.reason(number))
    return returns


def _submit(
    job_overrides: Sequence[Sequence[str]],
    first: int,
    options: Mapping[str, Any],
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
) -> Iterator[list[slurm.Submitted]]:
    """Submit jobs; yields what those of each array are in SLURM."""
    import submitit
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

    values: dict[str, Any] = {
        key: OmegaConf.to_container(own, resolve=True) if OmegaConf.is_config(own) else own
        for key, own in options.items()
    }
    config = copy.deepcopy(config)  # each job gets a copy, which in a resumed sweep would name all jobs
    with open_dict(config.hydra):
        config.hydra.overrides.task = []
    runs_jobs = SlurmLauncher(**values)
    runs_jobs.setup(hydra_context=context, task_function=task, config=config)
    executor = submitit.AutoExecutor(
        values.pop("submitit_folder"), cluster="slurm", slurm_max_num_timeout=values.pop("max_num_timeout")
    )
    if values["cpus_per_task"] is not None:  # srun does not take it from sbatch since SLURM 22.05
        values["srun_args"] = [f"--cpus-per-task={values['cpus_per_task']}"]
    shared = {"name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"}
    shared.add("stderr_to_stdout")
    executor.update_parameters(**{key if key in shared else f"slurm_{key}": own for key, own in values.items()})
    for begin in range(0, len(job_overrides), MOST):
        calls = [
            (list(job_overrides[n]), "hydra.sweep.dir", first + n, f"job_{first + n}", Singleton.get_state())
            for n in range(begin, min(begin + MOST, len(job_overrides)))
        ]
        submitted = []
        for own in executor.map_array(runs_jobs, *zip(*calls, strict=True)):
            log = own.paths.stdout if values["stderr_to_stdout"] else own.paths.stderr
            submitted.append(slurm.Submitted(own.job_id, os.path.relpath(log, config.hydra.sweep.dir)))
        yield submitted


def wait(sweep: Sweep, submitted: Mapping[int, slurm.Submitted]) -> None:
    """Wait until submitted jobs have ended.

    Args:
        sweep: the sweep.
        submitted: the jobs, by number.

    Raises:
        SystemExit: a signal stopped the waiting (128 + signal). The jobs continue.
    """
    left, missing, asked = dict(submitted), set[str](), time.monotonic()
    user = slurm.submitter(sweep.plan.folder)
    sweep.logs |= {number: sweep.plan.folder / own.log for number, own in submitted.items()}
    while left:
        if sweep.stop.signal is not None:
            sweep.waiting = set(left)
            _explain(sweep, left)
            sys.exit(128 + sweep.stop.signal)
        gone = {number for number, own in left.items() if _result(sweep.logs[number], own).exists()}
        if time.monotonic() - asked > ASK_EVERY:
            asked = time.monotonic()
            if (queued := slurm.queue(user)) is not None:
                now = {own.name for own in left.values()} - queued
                gone |= {number for number, own in left.items() if own.name in now & missing}  # twice, to be sure
                missing = now
        for number in gone:
            _record(sweep, number, left.pop(number))
        if not gone:
            time.sleep(LOOK_EVERY)


def _record(sweep: Sweep, number: int, submitted: slurm.Submitted) -> None:
    """Record a job whose process ended without a word; what else a job does is in its folder."""
    folder, log = sweep.folder(number), sweep.logs[number]
    status = None if folder is None else run_dir.status(folder)
    if status is None and not log.exists():
        sweep.failed(number, f"SLURM job {submitted.name} was cancelled, or never started")
    elif status is None or (status == "running" and folder is not None and not run_dir.is_locked(folder)):
        what = "ended before the training began" if status is None else "was killed"
        words = [line for line in _lines(log) if line.strip() and not line.startswith(("srun:", "slurmstepd:"))]
        last = f": {one_line(words[-1])}" if words else ""
        sweep.failed(number, f"SLURM job {submitted.name} {what}{last} (log: {below_here(log)})")


def _lines(log: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return log.read_text(errors="replace").split("\n")[-1000:]
    return []


def _result(log: Path, submitted: slurm.Submitted) -> Path:
    """The file in which submitit stores what a job returns; only whether it exists matters here."""
    return log.with_name(f"{submitted.name}_0_result.pkl")


def _arrays(submitted: Mapping[int, slurm.Submitted]) -> list[str]:
    return list(dict.fromkeys(own.name.partition("_")[0] for own in submitted.values()))


def _explain(sweep: Sweep, left: Mapping[int, slurm.Submitted]) -> None:
    """Say what continues."""
    arrays = _arrays(left)
    sweep.tell("stopped waiting; the SLURM jobs continue without this process")
    sweep.tell(f"  look at them  squeue --jobs={','.join(arrays)}")
    sweep.tell(f"  cancel them   scancel {' '.join(arrays)}")
    sweep.tell("  the resume command below waits for them, and submits missing jobs")


def cpus_of_job() -> int:
    """The number of cores that SLURM has given to the job of this process; 1 outside a submitted job."""
    return slurm_cpus() or 1 if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else 1


@contextlib.contextmanager
def requeued() -> Iterator[Callable[[], None]]:
    """In a SLURM job of submitit, stop a training with a checkpoint at submitit's signal.

    submitit's own handler would end the process in the middle of a step.

    Yields:
        To call when a training has stopped: if that signal came, it lets submitit requeue the job, and does not return.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        yield lambda: None
        return
    from submitit import JobEnvironment

    signals.outlast()
    number = JobEnvironment._usr_sig()
    submitit, asked = signal.getsignal(number), False
    assert callable(submitit)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = signals.request_stop()
        if not asked:  # no training is active
            submitit(number, frame)

    signal.signal(number, stop)
    try:
        yield lambda: submitit(number, None) if asked else None
    finally:
        signal.signal(number, submitit)
