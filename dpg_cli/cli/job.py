"""Run one training in its run folder: start, train, finish."""

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpg_cli.bookkeeping import Outcome
from dpg_cli.cli.build import Checked, OfflineTraining, build, check, policy_metadata
from dpg_cli.cli.dataset import dataset_notes
from dpg_cli.cli.device import choose
from dpg_cli.cli.disk import check_disk
from dpg_cli.cli.folder import begin, config_of_member, logging_to
from dpg_cli.cli.here import below_here
from dpg_cli.cli.init import initialise
from dpg_cli.cli.learners import choose_threads
from dpg_cli.cli.names import Label, Names, names_of
from dpg_cli.cli.notes import notes
from dpg_cli.cli.progress import ProgressDisplay, new_console, print_summary, quoted
from dpg_cli.cli.signals import ForcedStop, StopRequest, say
from dpg_cli.cli.stepping import choose_stepping
from dpg_cli.cli.thread_check import ThreadCheck, products_per_second
from dpg_cli.config import TrainConfig, asks_for_trust
from dpg_cli.durations import duration
from dpg_cli.environments.evaluation import Evaluation
from dpg_cli.environments.returns import ReturnError
from dpg_cli.environments.rollout import Episode
from dpg_cli.errors import CompileError, DiskError, DivergedError, SimulatorError, UserError, one_line
from dpg_cli.metrics import Recorder
from dpg_cli.offline import train_offline
from dpg_cli.storage import run_dir
from dpg_cli.storage.atomic import Disk, explaining
from dpg_cli.storage.checkpoint import Checkpoints, Loaded, rewind, saved_steps
from dpg_cli.trainer import train

log = logging.getLogger(__name__)

COMPILING = "note: compiling the updates; the first time takes half a minute or more"


@dataclass
class Result:
    """How a job ended: with an outcome, or with an error if it failed."""

    exit_code: int
    outcome: Outcome | None = None
    error: str | None = None


@dataclass
class Watcher:
    """Shows progress, keeps every `run.json` up to date, and lets the speed be watched.

    Attributes:
        display: shows the progress.
        run_files: of the run and of each of its seeds.
        step: environment steps made by each seed.
        thread_check: watches the speed of learning; None if there is nothing to check.
        learns_after: steps without updates, whose speed says nothing about threads.
    """

    display: ProgressDisplay
    run_files: list[run_dir.RunFile] = field(default_factory=list)
    step: int = 0
    thread_check: ThreadCheck | None = None
    learns_after: int = 0

    def started(self, step: int, evaluations: Sequence[Sequence[tuple[int, float]]]) -> None:
        """Called before the first step, with the step and the evaluations of the checkpoint that the run resumes."""
        self.step = step
        self.display.started(step, evaluations)

    def stepped(self, step: int, episodes: Sequence[Episode]) -> None:
        """Called after each vector step; `step` counts environment steps per seed."""
        self.step = step
        window = self.display.stepped(step, episodes)
        if window is not None and window >= self.learns_after and self.thread_check is not None:
            self.thread_check.watch(self.display.pace.speed)

    def restarted(self, reason: str) -> None:
        """Called where a resumed run starts a new episode."""
        self.display.tell(f"note: {reason}")

    def evaluating(self, steps: int) -> None:
        """Called after each step of an evaluation."""
        self.display.evaluating(steps)

    def evaluated(self, step: int, evaluations: Sequence[Evaluation]) -> None:
        """Called after each evaluation, with one result per member."""
        self.display.evaluated(step, evaluations)
        for run_file in self.run_files:
            run_file.reached(step)

    def stopped(self, status: str, error: str | None = None) -> None:
        """Record that the run ended early. Disk errors are ignored: the first reason counts."""
        for run_file in self.run_files:
            with contextlib.suppress(DiskError):
                run_file.end(status, last_step=self.step, error=error)


def run(
    config: TrainConfig,
    folder: Path,
    command: Sequence[str],
    label: Label | None = None,
    start: Sequence[Loaded] | None = None,
    checked: Checked | None = None,
    report: Callable[..., None] | None = None,
) -> Result:
    """Train in a claimed folder. Success or failure is recorded there and reported on the terminal.

    Args:
        config: checked.
        folder: the run folder; with several seeds, the parent of theirs.
        command: the command line, for the record.
        label: of the job, if it is part of a sweep.
        start: the checkpoints to resume from, one per member; the caller has locked their folders. None for a new run.
        checked: what `build.check` has returned; None if it was not called.
        report: given the kind of an event and its values, if another process shows the sweep.
    """
    names = names_of(config, folder, label)
    learns_after = 0 if config.offline else max(config.learning_starts, config.algo["batch_size"])
    display = ProgressDisplay(
        names.title,
        config.total_steps,
        new_console(),
        evaluated=config.eval.episodes > 0,
        learns_after=learns_after,
        counted=config.step,
        job=names.position,
        report=report,
    )
    watcher = Watcher(display, step=0 if start is None else start[0].step, learns_after=learns_after)
    stop, began = StopRequest(display.notify), time.monotonic()
    who = f"dpg-train: {names.position} " if names.position else "dpg-train: "
    trust, at = asks_for_trust(config) is not None, config.step
    next_step = _how_to_resume(config, folder)

    def elapsed() -> str:
        return duration(time.monotonic() - began)

    with contextlib.ExitStack() as resources:
        logging.raiseExceptions = False  # no traceback on the terminal for each line that a full disk drops
        logging.captureWarnings(True)  # into the log; the terminal belongs to the progress display
        resources.callback(logging.captureWarnings, False)
        try:
            with stop:
                resources.enter_context(display.prints_above())
                resources.enter_context(_started(config, folder, names, new=start is None))
                for path in dict.fromkeys([folder, *names.folders]):
                    step = None if start is None else start[0].step
                    watcher.run_files.append(run_dir.RunFile(path, command, step))
                outcome = _train(config, folder, names, watcher, stop, start, checked or check(config))
                for run_file in reversed(watcher.run_files):  # the seeds first: a run that is done is not resumed
                    run_file.end("interrupted" if outcome.interrupted else "done", last_step=outcome.step)
                ended = f"{'stopped' if outcome.interrupted else 'done'} at {at} {outcome.step:,} after {elapsed()}"
                log.info(ended)
        except ForcedStop as forced:
            log.info("stopped at once at %s %s after %s", at, f"{watcher.step:,}", elapsed())
            watcher.stopped("interrupted")
            say(f"{who}stopped at once, without a checkpoint; {next_step}")
            return Result(int(str(forced.code)))
        except BaseException as error:  # a simulator's SystemExit must not look like success
            if isinstance(error, CompileError) and stop.signal is not None:  # the signal ended the compiler too
                log.info("stopped while compiling, at %s %s after %s", at, f"{watcher.step:,}", elapsed())
                watcher.stopped("interrupted")
                again = f"{_resuming(config, folder)} starts it anew" if start is None else next_step
                say(f"{who}stopped while compiling, at {at} {watcher.step:,}; {again}")
                return Result(128 + stop.signal)
            message = _reason(error, names.folders)
            log.exception("failed at %s %s after %s", at, f"{watcher.step:,}", elapsed())
            watcher.stopped("failed", message)
            where = f" (log: {folder / 'train.log'})" if (folder / "train.log").exists() else ""
            when, hint = "", ""
            if isinstance(error, SimulatorError):
                when, hint = f" at {at} {watcher.step:,}", f"; {next_step}"
            say(f"{who}failed{when}: {message}{hint}{where}")
            code = 2 if isinstance(error, UserError) and label is None else 1
            return Result(code if stop.signal is None else 128 + stop.signal, error=message)

    if outcome.interrupted:
        say(f"{who}{ended}; {next_step}")
    else:
        display.print(ended)
        print_summary(display.print, outcome, names.seeds, names.folders, trust=trust, brief=label is not None, at=at)
    return Result(0 if stop.signal is None else 128 + stop.signal, outcome)


def _how_to_resume(config: TrainConfig, folder: Path) -> str:
    if not config.resumable:
        return "with checkpoint.replay=false it cannot be resumed"
    return f"resume with {_resuming(config, folder)}"


def _resuming(config: TrainConfig, folder: Path) -> str:
    """The command."""
    trust = "" if asks_for_trust(config) is None else " trust=true"
    return f"dpg-train resume={quoted(below_here(folder))}{trust}"


@contextlib.contextmanager
def _started(config: TrainConfig, folder: Path, names: Names, *, new: bool) -> Iterator[None]:
    """Open the folders of a run: each has a log, and those of a new run are made and locked."""
    with contextlib.ExitStack() as resources:
        if new:
            with explaining(folder):
                begin(config, folder)
            resources.enter_context(run_dir.locked({folder, *names.folders}))
        for path in set(names.folders) - {folder}:
            resources.enter_context(logging_to(path / "train.log"))
        yield


def _train(
    config: TrainConfig,
    folder: Path,
    names: Names,
    watcher: Watcher,
    stop: StopRequest,
    start: Sequence[Loaded] | None,
    checked: Checked,
) -> Outcome:
    with contextlib.ExitStack() as opened:
        found = checked.found
        stepping = choose_stepping(config, found.thread_problem, found.step_seconds)
        copyable = found.copy_problem is None
        training = build(
            config,
            checked.pool,
            copyable=copyable,
            renewal=found.renewal,
            dataset=checked.dataset,
            **stepping._asdict(),
        )
        opened.callback(training.close)
        initialised = initialise(config, training.algorithm) if start is None else None
        if names.position:  # a run that is no job of a sweep was checked before anything was written
            check_disk(config, checked.obs_dim, checked.action_dim, folder)
        choice = choose(config, checked.obs_dim, checked.action_dim, checked.transitions)
        about_data = [] if checked.dataset is None else dataset_notes(config, checked.dataset)
        for run_file in watcher.run_files:
            run_file.chose(choice.as_json())
            if checked.dataset is not None:
                run_file.learns_from(checked.dataset.as_json())
        for note in filter(None, [*about_data, *notes(config, training, found), initialised, choice.describe()]):
            watcher.display.tell(f"note: {note}")
        threads = choose_threads(config, checked.obs_dim).number
        if config.threads == "auto" and threads > 1 and choice.device.type == "cpu":
            measure = products_per_second(config, checked.obs_dim)
            watcher.thread_check = ThreadCheck(threads, measure, watcher.display.tell)
            watcher.thread_check.compare()
        starts = [None] * len(names.folders) if start is None else start
        for path, own in zip(names.folders, starts, strict=True):
            if own is not None:
                rewind(path, own, Disk())
        recorders, checkpoints, versions = [], [], run_dir.versions()
        metadata = policy_metadata(config, training)
        described = None if checked.dataset is None else checked.dataset.describe()
        for member, (path, own) in enumerate(zip(names.folders, starts, strict=True)):
            hyperparameters = config_of_member(config, member).model_dump()
            files = None if own is None else own.state["files"]
            recorder = Recorder(path, hyperparameters, names.curves[member], files, dataset=described)
            opened.callback(recorder.close)
            recorders.append(recorder)
            keep, keep_replay = config.checkpoint.keep, config.checkpoint.replay
            checkpoints.append(Checkpoints(path, versions, keep, start=own, keep_replay=keep_replay, metadata=metadata))
        with watcher.display:
            if config.compile and choice.device.type == "cpu":
                watcher.display.tell(COMPILING)
            if isinstance(training, OfflineTraining):
                return train_offline(*training, recorders, checkpoints, start, progress=watcher, stop=stop)
            return train(*training, recorders, checkpoints, start, progress=watcher, stop=stop)


def _reason(error: BaseException, folders: Sequence[Path]) -> str:
    """Why a run failed, in one line."""
    expected = isinstance(error, DivergedError | DiskError | ReturnError | SimulatorError | UserError)
    message = one_line(error if expected else f"{type(error).__name__}: {error}")
    if not isinstance(error, MemoryError) and not re.search("out of memory|ALLOC_FAILED", message):
        return message
    steps = set.intersection(*(set(saved_steps(path)) for path in folders))
    left = f"; the checkpoint of step {max(steps):,} is valid" if steps else ""
    return f"out of memory: {message.partition('. ')[0]}{left}"
