"""`hydra/launcher=local`: run the jobs of a sweep in parallel on this machine."""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hydra._internal.callbacks import Callbacks
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from dpg_cli import config as configs
from dpg_cli.bookkeeping import Outcome
from dpg_cli.cli import gpus
from dpg_cli.cli.here import below_here, here
from dpg_cli.cli.job import Result
from dpg_cli.cli.job_memory import most_at_once
from dpg_cli.cli.job_process import JOB_PROGRAM, LOG, surroundings
from dpg_cli.cli.machine import affinity, cores
from dpg_cli.cli.names import Label
from dpg_cli.cli.progress import new_console
from dpg_cli.cli.returned import fill
from dpg_cli.cli.signals import PolledStop, say
from dpg_cli.config import TrainConfig
from dpg_cli.errors import UserError
from dpg_cli.storage.atomic import explaining
from dpg_cli.sweeps.local import Pool, State, Worker
from dpg_cli.sweeps.table import SweepDisplay

THREAD_KEYS = ("threads", "env_threads", "env_processes")


class Options(NamedTuple):
    """The checked keys of `hydra.launcher`.

    Attributes:
        n_jobs: jobs at once; None for as many as fit.
        retries: how often a job whose process was killed is started again.
        fail_fast: whether the first failure stops the sweep.
        gpus: as CUDA_VISIBLE_DEVICES names them; empty for none, None to leave that variable unchanged.
    """

    n_jobs: int | None = None
    retries: int = 1
    fail_fast: bool = False
    gpus: Sequence[str] | None = None


class Prepared(NamedTuple):
    """A job that is about to start.

    Attributes:
        config: checked.
        folder: of the job; it exists.
        label: of the job.
        command: the command line, for the record.
        environ: environment variables of the job.
        logging: Hydra's configuration of logging, resolved; None if the job configures its log itself.
    """

    config: TrainConfig
    folder: Path
    label: Label
    command: Sequence[str]
    environ: Mapping[str, str] = {}
    logging: Mapping[str, Any] | None = None


class Record(Protocol):
    """Keeps the states of the jobs of a sweep.

    Attributes:
        known: configs of all jobs of the sweep, also of those that have ended, as far as they are known.
    """

    known: Sequence[TrainConfig]

    def job(self, number: int, composed: DictConfig) -> tuple[TrainConfig, Path, Label, Sequence[str]]:
        """The config of a job, its folder, its label and the command line.

        Args:
            number: of the job.
            composed: its config with the `hydra` node, which names its folder.
        """

    def expect(self, number: int, composed: DictConfig) -> None:
        """Called before a job starts in another process, by launchers that do not call `job`.

        Args:
            number: of the job.
            composed: as for `job`.
        """

    def started(self, number: int) -> None:
        """Called when a job starts."""

    def ended(self, number: int, result: Result | None, state: State, reason: str | None) -> None:
        """Called when a job has ended, also if it could not be started.

        Args:
            number: of the job.
            result: None if a job that did not fail sent none.
            state: `pending` if it was stopped.
            reason: why it failed or was stopped; None if the whole sweep was.
        """


def check(launcher: Mapping[str, Any] | DictConfig) -> Options:
    """Check the keys of `hydra.launcher`.

    Raises:
        UserError: names the first wrong key, its value and what is expected.
    """
    values = OmegaConf.to_container(OmegaConf.create(dict(launcher)), resolve=True)
    assert isinstance(values, Mapping)
    given = {str(key): value for key, value in values.items() if key != "_target_"}
    for key in given:
        if key not in Options._fields:
            raise UserError(f"hydra.launcher.{key}: unknown key; the keys are {', '.join(Options._fields)}")

    def is_number(value: object, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    def require(key: str, valid: bool, expected: str) -> None:
        if not valid:
            raise UserError(f"hydra.launcher.{key}={given[key]}: must be {expected}")

    n_jobs, retries = given.get("n_jobs", "auto"), given.get("retries", 1)
    fail_fast, devices = given.get("fail_fast", False), given.get("gpus", "auto")
    require("n_jobs", n_jobs == "auto" or is_number(n_jobs, 1), "auto or a whole number of at least 1")
    require("retries", is_number(retries, 0), "a whole number of at least 0")
    require("fail_fast", isinstance(fail_fast, bool), "true or false")
    several = isinstance(devices, list | tuple) and len(devices) > 0 and all(is_number(one, 0) for one in devices)
    require("gpus", devices in ("auto", "none") or several, "auto, none or a list such as [0,1]")
    found = gpus.chosen("hydra.launcher.gpus", devices)
    return Options(None if n_jobs == "auto" else n_jobs, retries, fail_fast, found)


def launch(
    job_overrides: Sequence[Sequence[str]],
    first: int,
    options: Mapping[str, Any],
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    record: Record,
) -> list[JobReturn]:
    """Run jobs as Hydra's own launcher does, but each in its own process; returns how each ended.

    Args:
        job_overrides: of each job.
        first: number of the first job.
        options: the keys of `hydra.launcher`.
        context: Hydra's.
        task: Hydra's. It is not called; callbacks get it.
        config: of the sweep.
        record: of the sweep.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    returns: dict[int, JobReturn] = {}
    composed: dict[int, DictConfig] = {}

    def prepare(number: int) -> Prepared:
        """Compose a job and write its `.hydra`."""
        own = context.config_loader.load_sweep_config(config, list(job_overrides[number - first]))
        with open_dict(own):
            own.hydra.job.id = own.hydra.job.num = number
        prepared: list[Prepared | Exception] = []

        def resolve(_: DictConfig) -> None:
            try:
                logging = {"config": _plain(own.hydra.job_logging), "verbose": _plain(own.hydra.verbose)}
                environ = {str(key): str(value) for key, value in own.hydra.job.env_set.items()}
                prepared.append(Prepared(*record.job(number, own), environ, logging))
            except Exception as error:  # Hydra would keep it for later
                prepared.append(error)

        silent = HydraContext(context.config_loader, Callbacks())  # ours are called when the job really starts and ends
        folder_keys = "hydra.sweep.dir", "hydra.sweep.subdir"
        with explaining(Path(str(config.hydra.sweep.dir))):
            returns[number] = run_job(resolve, own, *folder_keys, silent, configure_logging=False)
        (found,) = prepared
        if isinstance(found, Exception):
            raise found
        composed[number] = own
        context.callbacks.on_job_start(config=own, task_function=task)
        return found

    def ended(number: int, score: float, reason: str | None) -> None:
        done = returns.setdefault(number, JobReturn(overrides=list(job_overrides[number - first])))
        fill(done, score, config.hydra.sweeper, reason)
        if (own := composed.pop(number, None)) is not None:
            context.callbacks.on_job_end(config=own, job_return=done)

    numbers = range(first, first + len(job_overrides))
    run_jobs(numbers, prepare, check(options), record, record.known, ended)
    return [returns[number] for number in numbers]


def run_jobs(
    numbers: Sequence[int],
    prepare: Callable[[int], Prepared],
    options: Options,
    record: Record,
    known: Sequence[TrainConfig],
    ended: Callable[[int, float, str | None], None] = lambda number, score, reason: None,
) -> None:
    """Run jobs in parallel, each in its own process.

    Args:
        numbers: of the jobs.
        prepare: called when a job is about to start. If it raises an exception, the job has failed.
        options: how to run them.
        record: is told what happens.
        known: configs of all jobs of the sweep, for `n_jobs=auto`.
        ended: called with the score of each job that has ended, NaN if it failed, and the reason.

    Raises:
        SystemExit: a signal stopped the sweep (128 + signal), or a failure did, with `fail_fast` (1).
    """
    display = SweepDisplay(new_console(), len(numbers), say)
    with PolledStop(display.notify) as stop:
        n_jobs = options.n_jobs or min(cores(), max(len(known), len(numbers)))
        share = max(1, cores() // n_jobs)  # whatever is free or left, since a run's numbers may depend on its threads
        at_once = min(n_jobs, len(numbers))
        if options.n_jobs is None:
            at_once, note = most_at_once(known, at_once, stop)
            if note is not None:
                display.tell(note)
        workers = _workers(at_once, share, options.gpus)
        events = _Events(display, record, ended)
        environ = {"OMP_NUM_THREADS": str(share), **os.environ}
        display.workers = len(workers)

        def document(number: int, worker: Worker) -> Mapping[str, Any]:
            prepared = events.prepared[number] = prepare(number)
            return _document(prepared, worker, share)

        with (
            display,
            Pool(
                JOB_PROGRAM,
                workers,
                events,
                stop,
                retries=options.retries,
                fail_fast=options.fail_fast,
                folder=here(),
                environ=environ,
            ) as pool,
        ):
            pool.run(numbers, document)
    if stop.signal is not None:
        sys.exit(128 + stop.signal)  # not an Exception, so that it ends the sweep
    if pool.stopping:
        sys.exit(1)


class _Events:
    """Tells the display and the record of a sweep what happens to its jobs."""

    def __init__(self, display: SweepDisplay, record: Record, on_end: Callable[[int, float, str | None], None]):
        self._display, self._record, self._on_end = display, record, on_end
        self.prepared: dict[int, Prepared] = {}  # jobs that run

    def started(self, number: int) -> None:
        """Called when a job gets its process."""
        prepared = self.prepared[number]
        self._record.started(number)
        self._display.started(number, *prepared.label, below_here(prepared.folder / LOG))

    def said(self, number: int, message: Mapping[str, Any]) -> None:
        """Called with each message of a job except its result."""
        self._display.said(number, message)

    def again(self, number: int, reason: str) -> None:
        """Called when a job is started again because its process was killed."""
        self._display.again(number, reason)

    def ended(self, number: int, state: State, reason: str | None, result: Mapping[str, Any] | None) -> None:
        """Called when a job has ended."""
        outcome = None if result is None or result["outcome"] is None else Outcome(**result["outcome"])
        score = outcome.score() if outcome is not None and state == "done" else math.nan
        if self.prepared.pop(number, None) is None:
            self._display.failed_to_start(f"job {number}", reason)
        else:
            self._display.ended(number, state, reason, score)
        whole = None
        if result is not None or state == "failed":
            code = 1 if result is None else result["exit_code"]
            whole = Result(code, outcome, reason if state == "failed" else None)
        self._record.ended(number, whole, state, reason)
        self._on_end(number, score, reason)

    def passed(self) -> None:
        """Called several times a second."""
        self._display.passed()


def _workers(count: int, share: int, devices: Sequence[str] | None) -> list[Worker]:
    """Workers with their shares of cores and GPUs.

    Args:
        count: number of workers.
        share: cores of each.
        devices: GPUs; empty for none, None to leave them as they are.
    """
    shares: list[Sequence[int] | None] = [None] * count
    # A container's quota is not tied to cores: containers of one machine would all choose the same.
    if hasattr(os, "sched_setaffinity") and cores() == affinity():
        own = sorted(os.sched_getaffinity(0))
        shares = [own[worker * len(own) // count :][:share] for worker in range(count)]
    names: list[str | None] = [None] * count
    if devices is not None:
        names = [devices[worker % len(devices)] if devices else "" for worker in range(count)]
    return [Worker(*both) for both in zip(shares, names, strict=True)]


def _document(prepared: Prepared, worker: Worker, share: int) -> Mapping[str, Any]:
    """What the process of a job is told."""
    config = prepared.config
    if share == 1:  # stored, so that the run resumes with the same number wherever it is resumed
        auto = {key: 1 for key in THREAD_KEYS if getattr(config, key) == "auto"}
        config = config.model_copy(update=auto)
    environ = dict(prepared.environ)
    if worker.gpus is not None and not config.device.startswith("cuda:"):  # which names a GPU of all
        environ["CUDA_VISIBLE_DEVICES"] = worker.gpus
    return {
        **surroundings(),
        "config": configs.dump(config),
        "folder": str(prepared.folder),
        "command": list(prepared.command),
        "label": list(prepared.label),
        "environ": environ,
        "cores": worker.cores,
        "logging": prepared.logging,
    }


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
