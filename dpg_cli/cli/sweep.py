"""`dpg-train -m`: one job for each combination of values."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from rich.console import Console

from dpg_cli import config as configs
from dpg_cli.cli import build, device, handover, plugins, slurm
from dpg_cli.cli import launch as local_jobs
from dpg_cli.cli.here import below_here
from dpg_cli.cli.job import Result
from dpg_cli.cli.names import Label
from dpg_cli.cli.progress import new_console, quoted
from dpg_cli.cli.returned import NoScoreError, checked_score
from dpg_cli.cli.signals import StopRequest, say
from dpg_cli.cli.sweep_options import to_give_again
from dpg_cli.cli.sweep_plan import CURVES, Plan
from dpg_cli.cli.sweep_scores import Scores, print_scores, scores_of
from dpg_cli.cli.sweep_states import Follower, state_of, unknown_jobs
from dpg_cli.cli.sweep_task import Described, Known, describe, one_thread, run_job, score, train_alone
from dpg_cli.errors import DiskError, UserError, one_line
from dpg_cli.storage import run_dir
from dpg_cli.storage.atomic import explaining
from dpg_cli.storage.run_dir import claim, command_line
from dpg_cli.sweeps import record
from dpg_cli.sweeps.slurm import Submitted

_current: "Running | None" = None  # of this process; a job in another process has none


def sweep(overrides: Sequence[str], composed: DictConfig) -> int:
    """Train once for each combination of values; returns the exit code.

    Raises:
        UserError: a job has a mistake, or cannot be compiled. Raised before anything is written.
    """
    check_launcher(composed)
    folder = Path(os.path.abspath(configs.folder(composed, "hydra.sweep.dir")))
    plan = Plan(folder, list(configs.combinations(overrides, composed)), planned=configs.has_basic_sweeper(composed))
    planned = plan.check()
    known = [own.config for own in planned]
    check_compiler(composed, known)
    claim(folder, "hydra.sweep.dir")
    jobs = []
    if plan.planned:
        jobs = [record.Job(n, plan.jobs[n], own.folder) for n, own in enumerate(planned)]
        record.store_configs(folder, ((n, own.config.model_dump()) for n, own in enumerate(planned)))
    launcher = str(configs.select(composed, "hydra.runtime.choices.hydra/launcher"))
    file = record.SweepFile(folder, command_line(), launcher, jobs)
    file.flush()
    trust = any(configs.asks_for_trust(own.config) is not None for own in planned)
    running = Running(plan, file, known, composed, trust=trust)
    try:
        with run_dir.locked([folder]):
            return launch(running, ["-m", *overrides, f"hydra.sweep.dir={handover.quoted(folder)}"])
    except NothingStartedError as error:
        handover.remove(folder)
        raise UserError(str(error)) from error


class NothingStartedError(Exception):
    """Hydra failed before the first job."""


class Running:
    """A sweep in its own process: what the jobs do, as far as this process knows.

    Args:
        plan: of the jobs.
        file: the sweep's record.
        known: configs of all jobs; where the sweeper decides on jobs as it goes, what they share.
        composed: the config with the `hydra` node, which names the launcher.
        trust: whether resuming needs `trust=true`.

    Attributes:
        order: in a resumed sweep, the numbers of the jobs in the order in which the launcher counts them.
        queued: in a resumed sweep, jobs that still wait or run in SLURM, by number.
        logs: of jobs that were submitted to SLURM, by number.
        waiting: numbers of jobs that were left in SLURM.
        only_waits: whether no job is left but those in SLURM.
        stop: whether a signal has asked the sweep to stop.
    """

    def __init__(
        self,
        plan: Plan,
        file: record.SweepFile,
        known: Sequence[configs.TrainConfig],
        composed: DictConfig,
        *,
        trust: bool,
    ):
        self.plan, self.file, self.known, self.trust = plan, file, known, trust
        self.one_after_another = configs.has_basic_launcher(composed)
        self.elsewhere = not self.one_after_another and not configs.has_local_launcher(composed)
        self.on_slurm = configs.has_slurm_launcher(composed)
        self.silent = self.on_slurm or configs.has_ray_launcher(composed)  # jobs print nothing here
        self.order: Sequence[int] = ()
        self.queued: Mapping[int, Submitted] = {}
        self.logs: dict[int, Path] = {}
        self.waiting: Set[int] = frozenset()
        self.only_waits = False
        self.stop = StopRequest(self._stopping)
        self.results: dict[int, Result] = {}
        self._console = new_console()
        self.begun = False
        self._identity = _identity(plan.folder)
        self._jobs: dict[int, Described] = {}

    def train(self, config: DictConfig, command: Sequence[str]) -> tuple[Path, Result]:
        """Train a job in this process; returns its folder and how it ended.

        Args:
            config: composed by Hydra.
            command: the command line of the sweep, for the record.

        Raises:
            SystemExit: a signal came between two jobs.
        """
        if self.stop.signal is not None:
            self.begun = True
            sys.exit(128 + self.stop.signal)  # not an Exception, so that it ends the sweep
        number = HydraConfig.get().job.num
        with open_dict(config):
            config.hydra = HydraConfig.get()
        checked, where, label, _ = self.job(number, config)
        checked = checked if self.one_after_another else one_thread(checked)
        self.started(number)
        result = run_job(checked, where, command, label, stopped=lambda: self.stop.signal)
        self.ended(number, result, *_ending(result))
        return where, result

    def job(self, number: int, composed: DictConfig) -> tuple[configs.TrainConfig, Path, Label, Sequence[str]]:
        """Config, folder and label of a job that a launcher is about to start, and the command line.

        Args:
            number: of the job among those that the launcher runs; in a resumed sweep its own number is another.
            composed: its config with the `hydra` node.
        """
        self.check_folder()
        found = describe(self.plan.naming, composed, composed.hydra, Known(self.plan.jobs, self.known))
        self._jobs[number] = found
        self.plan.naming.link_curves(found.number, found.label, found.config, found.folder)
        return found.config, found.folder, found.label, command_line()

    def check_folder(self) -> None:
        """Check that the sweep's folder is where it was.

        Raises:
            DiskError: it is not.
        """
        if _identity(self.plan.folder) != self._identity:
            raise DiskError(f"{self.plan.folder}: the sweep's folder was moved or deleted")

    def expect(self, number: int, composed: DictConfig) -> None:
        """Record a job that will start in another process, if the sweeper has just decided on it.

        Args:
            number: of the job among those that the launcher runs.
            composed: its config with the `hydra` node.
        """
        if not self.plan.planned:
            overrides = list(composed.hydra.overrides.task)
            self.file.set(number, overrides=overrides, folder=configs.job_folder(composed, number))

    def started(self, number: int) -> None:
        """Record that a job starts."""
        self.begun = True
        found = self._jobs[number]
        where = os.path.relpath(found.folder, self.plan.folder)
        new = {} if self.plan.planned else {"overrides": list(found.overrides)}
        with contextlib.suppress(DiskError):  # the end of the sweep reports it
            self.file.set(found.number, **new, folder=where, state="running", reason=None)

    def ended(self, number: int, result: Result | None, state: str, reason: str | None = None) -> None:
        """Record how a job ended: `done`, `failed`, or `pending` if it was stopped, and can be resumed."""
        self.begun = True
        found = self._jobs.get(number)
        own = found.number if found is not None else self.number(number)
        if state == "pending" and reason is None:
            reason = "stopped early"
        if found is not None or self.plan.planned:
            with contextlib.suppress(DiskError):
                self.file.set(own, state=state, reason=reason)
        if result is not None:
            self.results[own] = result

    def number(self, launched: int) -> int:
        """The number of a job, from its number among those that the launcher runs."""
        return self.order[launched] if self.order else launched

    def folder(self, number: int) -> Path | None:
        """The folder of a job; None if it is not known yet."""
        where = self.file[number].folder if number in self.file else None
        return None if where is None else self.plan.folder / where

    def failed(self, number: int, reason: str) -> None:
        """Record that a job failed before its training began."""
        with contextlib.suppress(DiskError):  # the end of the sweep reports it
            self.file.set(number, state="failed", reason=reason)
        self.tell(f"job {number} failed: {reason}")
        self.results[number] = Result(1, error=reason)

    def score(self, number: int) -> float:
        """The score of a job that ran elsewhere; NaN if it is not done."""
        folder = self.folder(number)
        if folder is None or state_of(folder)[0] != "done" or (found := scores_of(folder)) is None:
            return math.nan
        return found.mean()

    def reason(self, number: int) -> str | None:
        """Why a job that ran elsewhere failed or stopped; None if it did not."""
        folder = self.folder(number)
        found = None if folder is None else state_of(folder)[1]
        return found or (self.file[number].reason if number in self.file else None)

    def tell(self, line: str) -> None:
        """Print a line with the time."""
        self._console.print(f"{time.strftime('%H:%M:%S')}  {line}", soft_wrap=True)

    def _stopping(self, line: str) -> None:
        """Show that a signal came. Jobs in SLURM do not stop."""
        if not self.on_slurm and not self.only_waits:
            say(line)

    def correct(self) -> None:
        """Take the states of jobs that ran elsewhere from their folders."""
        for entry in self.file.jobs:
            if entry.number not in self.results:
                state, reason = state_of(self.plan.folder / entry.folder) if entry.folder else ("pending", None)
                self.file.set(entry.number, state=state, reason=reason)
        if self.plan.planned:
            return
        for folder, number, overrides in unknown_jobs(self.plan.folder, self.file.jobs):
            state, reason = state_of(folder)
            where = os.path.relpath(folder, self.plan.folder)
            self.file.set(number, overrides=overrides, folder=where, state=state, reason=reason)

    def scores(self, entry: record.Job) -> Scores | None:
        """The scores of a job."""
        result = self.results.get(entry.number)
        if result is not None and result.outcome is not None:
            return Scores(result.outcome.scores(), result.outcome.evaluated)
        return None if entry.folder is None else scores_of(self.plan.folder / entry.folder)


def current() -> Running | None:
    """The sweep that this process runs; None in a process that runs a single job."""
    return _current


def check_launcher(composed: DictConfig) -> None:
    """Check the launcher and the sweeper of a sweep.

    Raises:
        UserError: one of the launcher's keys is wrong, or something is missing on this machine.
    """
    plugins.check(composed)
    if configs.has_local_launcher(composed):
        local_jobs.check(configs.select(composed, "hydra.launcher"))
    if configs.has_slurm_launcher(composed):
        slurm.check()


def check_compiler(composed: DictConfig, jobs: Iterable[configs.TrainConfig]) -> None:
    """Check once that jobs on this machine's CPU can be compiled. Other jobs check it themselves.

    Args:
        composed: the config with the `hydra` node, which names the launcher.
        jobs: of the sweep.

    Raises:
        CompileError: they cannot.
    """
    here = configs.has_basic_launcher(composed) or configs.has_local_launcher(composed)
    devices = {own.device for own in jobs if own.compile}
    if here and ("cpu" in devices or ("auto" in devices and device.first_gpu() is None)):
        build.check_compiler(device.CPU)


def launch(running: Running, arguments: Sequence[str]) -> int:
    """Run the jobs with Hydra and print how they went; returns the exit code.

    Args:
        running: the sweep.
        arguments: of Hydra's command line; empty if there is no job to start, only to wait for.

    Raises:
        NothingStartedError: Hydra failed before the first job.
        UserError: Hydra rejects the arguments.
    """
    global _current
    plan, naming, command = running.plan, running.plan.naming, command_line()

    def task(config: DictConfig) -> float:
        sweep_here = current()
        if sweep_here is None:
            where, result = train_alone(naming, command, config, HydraConfig.get())
        else:
            where, result = sweep_here.train(config, command)
        if result.exit_code > 128:
            sys.exit(result.exit_code)
        return checked_score(score(where, result), HydraConfig.get().sweeper, result.error)

    _current = running
    nothing_started = ended_by_sweeper = False
    try:
        tell = running.tell if running.silent or running.queued else None
        follower = Follower(running.file, naming, running.logs, tell)
        followed = follower if tell is not None or running.elsewhere else contextlib.nullcontext()
        with running.stop, explaining(plan.folder), followed:
            if arguments:
                with handover.without_second_check() if plan.planned else contextlib.nullcontext():
                    handover.hand_over(task, arguments)
            running.only_waits = True
            slurm.wait(running, running.queued)
    except DiskError:
        raise
    except NoScoreError:  # raised by the sweeper
        ended_by_sweeper = True
    except Exception as error:
        nothing_started = not running.begun and (running.one_after_another or not _has_jobs(plan.folder))
        if not nothing_started:
            raise
        message = str(error) if isinstance(error, UserError) else f"hydra: {type(error).__name__}: {one_line(error)}"
        raise NothingStartedError(message) from error
    finally:
        _current = None
        failed = [] if nothing_started else finish(running, new_console())
    if ended_by_sweeper:
        print("dpg-train: the search ended: more jobs failed than hydra.sweeper.max_failure_rate", file=sys.stderr)
    unfinished = plan.planned and any(entry.state != "done" for entry in running.file.jobs)
    return 1 if failed or unfinished or ended_by_sweeper else 0


def finish(running: Running, console: Console) -> list[record.Job]:
    """Correct the record, print scores, failures and what to do next; returns the failed jobs."""
    with contextlib.suppress(DiskError):
        running.correct()
        running.file.flush()
    folder, entries = running.plan.folder, running.file.jobs
    begun = [own for own in entries if own.state != "pending" or own.number in running.results or own.reason]
    rows = [(own, running.plan.naming.differs(own.overrides), running.scores(own)) for own in begun]
    if rows:
        print_scores(console, rows)
    queued = len(running.waiting - {own.number for own in begun})
    for count, what in ((queued, "in SLURM's queue"), (len(entries) - len(begun) - queued, "did not start")):
        if count:
            console.print(f"{count} {'job' if count == 1 else 'jobs'} {what}")
    shown = below_here(folder)
    console.print(f"  sweep folder {shown}", soft_wrap=True)
    console.print(f"  curves       tensorboard --logdir {quoted(shown / CURVES)}", soft_wrap=True)
    console.print(f"  compare      dpg-report {quoted(shown)}", soft_wrap=True)
    failed = [own for own in entries if own.state == "failed"]
    if running.plan.planned and any(own.state != "done" for own in entries):
        trusting = " trust=true" if running.trust else ""
        again = to_give_again(command_line())
        console.print(f"  resume       dpg-train resume={quoted(shown)}{trusting}{again}", soft_wrap=True)
    for own in failed:
        print(f"dpg-train: job {own.number} failed: {own.reason}", file=sys.stderr)
    return failed


def _identity(folder: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        about = folder.stat()
        return about.st_dev, about.st_ino
    return None


def _ending(result: Result) -> tuple[str, str | None]:
    if result.error is not None:
        return "failed", result.error
    stopped = result.exit_code > 128 or (result.outcome is not None and result.outcome.interrupted)
    return ("pending", "stopped early") if stopped else ("done", None)


def _has_jobs(folder: Path) -> bool:
    own = {record.FILE, record.CONFIGS, "multirun.yaml", ".lock", ".submitit"}
    return not own.issuperset(os.listdir(folder))
