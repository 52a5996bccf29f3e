"""`dpg-train -m`: one job for each combination of values."""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from rich.console import Console

from dpg_cli import config as configs
from dpg_cli.cli import handover, job, plugins
from dpg_cli.cli import launch as local_jobs
from dpg_cli.cli.here import below_here, here
from dpg_cli.cli.job import Result
from dpg_cli.cli.names import Label
from dpg_cli.cli.progress import new_console, quoted
from dpg_cli.cli.resume import CHANGEABLE, go_on
from dpg_cli.cli.returned import NoScoreError, checked_score
from dpg_cli.cli.signals import StopRequest
from dpg_cli.cli.sweep_plan import CURVES, Plan
from dpg_cli.cli.sweep_scores import Scores, print_scores, scores_of
from dpg_cli.errors import DiskError, UserError, one_line
from dpg_cli.storage import run_dir
from dpg_cli.storage.atomic import explaining
from dpg_cli.storage.run_dir import claim, command_line
from dpg_cli.storage.untrusted import run_file
from dpg_cli.sweeps import record

RESUMED = "sweep_job"  # the key that tells a resumed sweep's job its number and folder
_current: "Running | None" = None  # of this process; a job in another process has none


def sweep(overrides: Sequence[str], composed: DictConfig) -> int:
    """Train once for each combination of values; returns the exit code.

    Raises:
        UserError: a job has a mistake. Raised before anything is written.
    """
    plugins.check(composed)
    folder = Path(os.path.abspath(configs.folder(composed, "hydra.sweep.dir")))
    plan = Plan(folder, list(configs.combinations(overrides, composed)), planned=configs.has_basic_sweeper(composed))
    planned = plan.check()
    if configs.has_local_launcher(composed):
        local_jobs.check(configs.select(composed, "hydra.launcher"))
    claim(folder, "hydra.sweep.dir")
    jobs = []
    if plan.planned:
        jobs = [record.Job(n, plan.jobs[n], own.folder) for n, own in enumerate(planned)]
        record.store_configs(folder, ((n, own.config.model_dump()) for n, own in enumerate(planned)))
    launcher = str(configs.select(composed, "hydra.runtime.choices.hydra/launcher"))
    file = record.SweepFile(folder, command_line(), launcher, jobs)
    file.flush()
    trust = any(configs.asks_for_trust(own.config) is not None for own in planned)
    known = [own.config for own in planned]
    running = Running(plan, file, known, one_after_another=configs.has_basic_launcher(composed), trust=trust)
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
        one_after_another: whether the jobs run in this process.
        trust: whether resuming needs `trust=true`.
        order: in a resumed sweep, the numbers of the jobs in the order in which the launcher counts them.
    """

    def __init__(
        self,
        plan: Plan,
        file: record.SweepFile,
        known: Sequence[configs.TrainConfig],
        *,
        one_after_another: bool,
        trust: bool,
        order: Sequence[int] = (),
    ):
        self.plan, self.file, self.one_after_another, self.trust = plan, file, one_after_another, trust
        self.known, self.order = known, order
        self.results: dict[int, Result] = {}
        self.begun = False
        self._jobs: dict[int, Described] = {}

    def job(self, number: int, composed: DictConfig) -> tuple[configs.TrainConfig, Path, Label, Sequence[str]]:
        """Config, folder and label of a job that a launcher is about to start, and the command line.

        Args:
            number: of the job among those that the launcher runs; in a resumed sweep its own number is another.
            composed: its config with the `hydra` node.
        """
        found = describe(self.plan, composed, composed.hydra)
        self._jobs[number] = found
        self.plan.link_curves(found.number, found.label, found.config, found.folder)
        return found.config, found.folder, found.label, command_line()

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
        own = found.number if found is not None else self.order[number] if self.order else number
        if state == "pending" and reason is None:
            reason = "stopped early"
        if found is not None or self.plan.planned:
            with contextlib.suppress(DiskError):
                self.file.set(own, state=state, reason=reason)
        if result is not None:
            self.results[own] = result

    def correct(self) -> None:
        """Take the states of jobs that ran elsewhere from their folders."""
        for entry in self.file.jobs:
            if entry.number not in self.results:
                state, reason = state_of(self.plan.folder / entry.folder) if entry.folder else ("pending", None)
                self.file.set(entry.number, state=state, reason=reason)
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


def launch(running: Running, arguments: Sequence[str]) -> int:
    """Run the jobs with Hydra and print how they went; returns the exit code.

    Args:
        running: the sweep.
        arguments: of Hydra's command line.

    Raises:
        NothingStartedError: Hydra failed before the first job.
        UserError: Hydra rejects the arguments.
    """
    global _current
    plan, command, console = running.plan, command_line(), new_console()
    one_after_another = running.one_after_another
    between_jobs = StopRequest()

    def task(config: DictConfig) -> float:
        number = HydraConfig.get().job.num
        sweep_here = current()
        if sweep_here is None:  # a process of its own
            found = describe(plan, config, HydraConfig.get())
            plan.link_curves(found.number, found.label, found.config, found.folder)
            checked, where, label = one_thread(found.config), found.folder, found.label
        else:
            if between_jobs.signal is not None:
                sweep_here.begun = True
                sys.exit(128 + between_jobs.signal)  # not an Exception, so that it ends the sweep
            with open_dict(config):
                config.hydra = HydraConfig.get()
            checked, where, label, _ = sweep_here.job(number, config)
            checked = checked if one_after_another else one_thread(checked)
            sweep_here.started(number)
        result = run_job(checked, where, command, label)
        if sweep_here is not None:
            sweep_here.ended(number, result, *_ending(result))
        if result.exit_code > 128:
            sys.exit(result.exit_code)
        return checked_score(score(where, result), HydraConfig.get().sweeper, result.error)

    _current = running
    nothing_started = ended_by_sweeper = False
    try:
        with between_jobs, explaining(plan.folder):
            handover.hand_over(task, arguments)
    except DiskError:
        raise
    except NoScoreError:  # raised by the sweeper
        ended_by_sweeper = True
    except Exception as error:
        nothing_started = not running.begun and (one_after_another or not _has_jobs(plan.folder))
        if not nothing_started:
            raise
        message = str(error) if isinstance(error, UserError) else f"hydra: {type(error).__name__}: {one_line(error)}"
        raise NothingStartedError(message) from error
    finally:
        _current = None
        failed = [] if nothing_started else finish(running, console)
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
    rows = [(own, running.plan.differs(own.overrides), running.scores(own)) for own in begun]
    if rows:
        print_scores(console, rows)
    if missing := len(entries) - len(begun):
        console.print(f"{missing} {'job' if missing == 1 else 'jobs'} did not start")
    shown = below_here(folder)
    console.print(f"  sweep folder {shown}", soft_wrap=True)
    console.print(f"  curves       tensorboard --logdir {quoted(shown / CURVES)}", soft_wrap=True)
    console.print(f"  compare      dpg-report {quoted(shown)}", soft_wrap=True)
    failed = [own for own in entries if own.state == "failed"]
    if running.plan.planned and any(own.state != "done" for own in entries):
        trusting = " trust=true" if running.trust else ""
        console.print(f"  resume       dpg-train resume={quoted(shown)}{trusting}", soft_wrap=True)
    for own in failed:
        print(f"dpg-train: job {own.number} failed: {own.reason}", file=sys.stderr)
    return failed


class Described(NamedTuple):
    """A job that is about to start."""

    number: int
    config: configs.TrainConfig
    folder: Path
    label: Label
    overrides: Sequence[str]


def describe(plan: Plan, config: DictConfig, hydra: Any) -> Described:
    """A job, from its composed config and Hydra's own node.

    Raises:
        UserError: the config is wrong.
    """
    folder = Path(hydra.runtime.output_dir)
    if RESUMED in config:
        number, running = int(config[RESUMED].number), current()
        overrides = list(plan.jobs[number])
        known = running.known[number] if running is not None else None
        checked = known or configs.check(record.stored_configs(plan.folder)[number])
    else:
        number, overrides = int(hydra.job.num), list(hydra.overrides.task)
        checked = configs.validate(config, here())
    return Described(number, checked, folder, plan.label(number, overrides), overrides)


def run_job(
    config: configs.TrainConfig,
    folder: Path,
    command: Sequence[str],
    label: Label,
    report: Callable[..., None] | None = None,
) -> Result:
    """Train a job in its folder: from the start, from its checkpoint if it was begun, or not at all if it is done.

    Args:
        config: checked.
        folder: of the job.
        command: the command line of the sweep, for the record.
        label: of the job.
        report: as for `job.run`.
    """
    try:
        if not _is_begun(folder):
            return job.run(config, folder, command, label, report=report)
        stored = configs.load_from(folder)
        if (difference := configs.difference(config, stored, without=CHANGEABLE)) is not None:
            raise UserError(f"{folder} already holds a run, with {difference}")
        if run_dir.status(folder) == "done" and stored.total_steps >= config.total_steps:
            return Result(0)
        total = {"total_steps": config.total_steps}
        return go_on(configs.changed(stored, total), folder, label=label, report=report)
    except UserError as error:
        message = one_line(error)
        print(f"dpg-train: {label.position} failed: {message}", file=sys.stderr)
        return Result(1, error=message)


def score(folder: Path, result: Result) -> float:
    """The mean of the last ten evaluations over all seeds; NaN if the job failed."""
    if result.error is not None:
        return math.nan
    if result.outcome is not None:
        return result.outcome.score()
    found = scores_of(folder)
    return math.nan if found is None else found.mean()


def one_thread(config: configs.TrainConfig) -> configs.TrainConfig:
    """The config with one thread and process where `auto` would choose: parallel jobs would compete for cores."""
    given = config.model_dump(include={"threads", "env_threads", "env_processes"})
    return config.model_copy(update={key: 1 for key, value in given.items() if value == "auto"})


def state_of(folder: Path) -> tuple[str, str | None]:
    """State and reason of a job, from its folder."""
    content = run_file(folder)
    status, error = content.get("status"), content.get("error")
    if status == "done":
        return "done", None
    if status == "failed":
        return "failed", one_line(error) if isinstance(error, str) else "unknown"
    if status == "running" and run_dir.is_locked(folder):
        return "running", None
    return "pending", None if status is None else f"stopped at step {content.get('last_step')}"


def unknown_jobs(folder: Path, known: Sequence[record.Job]) -> Iterator[tuple[Path, int, list[str]]]:
    """Jobs that only their folders tell of, because a sweeper decided on them as it went."""
    folders = {own.folder for own in known}
    for path in sorted(folder.rglob("run.json")):
        where = path.parent
        if os.path.relpath(where, folder) in folders or (where.parent / "run.json").exists():
            continue  # known, or the folder of one seed
        with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
            node = configs.read_yaml(where / ".hydra" / "hydra.yaml")["hydra"]
            yield where, int(node["job"]["num"]), [str(text) for text in node["overrides"]["task"]]


def _ending(result: Result) -> tuple[str, str | None]:
    if result.error is not None:
        return "failed", result.error
    stopped = result.exit_code > 128 or (result.outcome is not None and result.outcome.interrupted)
    return ("pending", "stopped early") if stopped else ("done", None)


def _is_begun(folder: Path) -> bool:
    """Whether a run was begun in a folder; one that was killed while its folder was made was not."""
    if not (folder / "run.json").exists():
        return False
    if run_dir.status(folder) is None and not (folder / "config.yaml").exists():
        (folder / "run.json").unlink()
        return False
    return True


def _has_jobs(folder: Path) -> bool:
    own = {record.FILE, record.CONFIGS, "multirun.yaml", ".lock"}
    return not own.issuperset(os.listdir(folder))
