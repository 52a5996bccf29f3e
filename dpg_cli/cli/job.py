"""One training in its run folder, from its start to its `run.json`."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from dpg_cli.captured_learner import CapturedLearner
from dpg_cli.cli.build import Training, build, environment_maker, sizes
from dpg_cli.cli.device import choose
from dpg_cli.cli.progress import ProgressDisplay, below_here, new_console, print_summary, quoted
from dpg_cli.cli.signals import ForcedStop, StopRequest, say
from dpg_cli.cli.stepping import choose_stepping, may_share_steps
from dpg_cli.config import TrainConfig, asks_for_trust, dump, store_hydra
from dpg_cli.environments.evaluation import Evaluation
from dpg_cli.environments.make import has_time_limit, newer_version
from dpg_cli.environments.rollout import Episode
from dpg_cli.environments.state import copies_exactly
from dpg_cli.environments.threads import ThreadSafety
from dpg_cli.errors import DiskError, DivergedError, UserError, one_line
from dpg_cli.metrics import Recorder
from dpg_cli.storage import run_dir
from dpg_cli.storage.atomic import Disk, explaining, write_whole
from dpg_cli.storage.checkpoint import Checkpoints, Loaded, rewind, saved_steps
from dpg_cli.trainer import Outcome, train

log = logging.getLogger(__name__)


@dataclass
class Result:
    """How a job ended: with an outcome, or with an error where it failed."""

    exit_code: int
    outcome: Outcome | None = None
    error: str | None = None


class Label(NamedTuple):
    """What a job of a sweep is called."""

    position: str  # such as "[3/4] job 2"
    differs: str  # what makes it another than the rest, such as "algo=td3 seed=0"


@dataclass
class Watcher:
    """Shows progress and keeps the last step in every `run.json`."""

    display: ProgressDisplay
    run_files: Sequence[run_dir.RunFile]
    step: int = 0

    def stepped(self, step: int, episodes: Sequence[Episode]) -> None:
        """`step` environment steps are made for each seed."""
        self.step = step
        self.display.stepped(step, episodes)

    def evaluated(self, step: int, evaluations: Sequence[Evaluation]) -> None:
        """One evaluation a member."""
        self.display.evaluated(step, evaluations)
        for run_file in self.run_files:
            run_file.reached(step)


def run(
    config: TrainConfig,
    folder: Path,
    command: Sequence[str],
    label: Label | None = None,
    start: Sequence[Loaded] | None = None,
) -> Result:
    """Train in a claimed folder; whatever happens is recorded there and said in one line.

    Args:
        config: checked.
        folder: the run folder; with several seeds, the parent of theirs.
        command: the command line, for the record.
        label: of a job of a sweep.
        start: the checkpoints to go on from, one a member, whose folders the caller has locked; nothing for a new run.
    """
    console = new_console()
    seeds, folders = members(config, folder)
    run_files: list[run_dir.RunFile] = []
    display = ProgressDisplay(_title(config, label), config.total_steps, console, label.position if label else "")
    watcher = Watcher(display, run_files)
    stop = StopRequest()
    logging.raiseExceptions = False  # a log that cannot be written is no reason to fill the terminal
    logging.captureWarnings(True)  # into the log; the terminal belongs to the progress display
    resources = contextlib.ExitStack()
    try:
        with stop:
            if start is None:
                with explaining(folder):
                    _begin(config, folder, folders)
                resources.enter_context(run_dir.locked({folder, *folders}))
            for path in dict.fromkeys([folder, *folders]):
                run_files.append(run_dir.RunFile(path, command, None if start is None else start[0].step))
            for path in set(folders) - {folder}:
                resources.enter_context(_logging_to(path / "train.log"))
            outcome = _train(config, folders, watcher, stop, console, label, start)
            for run_file in run_files:
                run_file.end("interrupted" if outcome.interrupted else "done", last_step=outcome.step)
    except ForcedStop as forced:
        for run_file in run_files:
            with contextlib.suppress(DiskError):
                run_file.end("interrupted", last_step=watcher.step)
        return Result(int(str(forced.code)))
    except BaseException as error:  # a simulator's SystemExit must not look like success either
        expected = isinstance(error, DivergedError | DiskError | UserError)
        message = one_line(error if expected else f"{type(error).__name__}: {error}")
        if isinstance(error, MemoryError) or re.search("out of memory|ALLOC_FAILED", message):
            message = _out_of_memory(message, folders)
        log.exception("failed")
        for run_file in run_files:
            with contextlib.suppress(DiskError):
                run_file.end("failed", last_step=watcher.step, error=message)
        which = f"{label.position} " if label else ""
        where = f" (log: {folder / 'train.log'})" if (folder / "train.log").exists() else ""
        say(f"dpg-train: {which}failed: {message}{where}")
        code = 2 if isinstance(error, UserError) and label is None else 1
        return Result(code if stop.signal is None else 128 + stop.signal, error=message)
    finally:
        resources.close()
        logging.captureWarnings(False)

    trust = asks_for_trust(config) is not None
    if outcome.interrupted:
        command_to_go_on = f"dpg-train resume={quoted(below_here(folder))}{' trust=true' if trust else ''}"
        say(f"dpg-train: stopped at step {outcome.step:,}; go on with {command_to_go_on}")
    else:
        print_summary(console, outcome, seeds, folders, trust=trust, brief=label is not None)
    return Result(0 if stop.signal is None else 128 + stop.signal, outcome)


def _out_of_memory(message: str, folders: Sequence[Path]) -> str:
    """What ran out, shortly, and what is left of the run."""
    steps = set.intersection(*(set(saved_steps(path)) for path in folders))
    left = f"; the checkpoint of step {max(steps):,} is valid" if steps else ""
    return f"out of memory: {message.partition('. ')[0]}{left}"


def failures(sweep: Path) -> list[tuple[Path, str]]:
    """Folder and reason of every failed job of a sweep."""
    failed = []
    for path in sorted(sweep.rglob("run.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["status"] == "failed" and not (path.parents[1] / "run.json").exists():  # no member of a job
            failed.append((path.parent, content["error"]))
    return failed


def members(config: TrainConfig, folder: Path) -> tuple[Sequence[int], list[Path]]:
    """The seeds of a run, and the run folder of each."""
    seeds = range(config.seed, config.seed + config.num_seeds)
    return seeds, [folder] if config.num_seeds == 1 else [folder / f"seed_{seed}" for seed in seeds]


def write_configs(config: TrainConfig, folder: Path) -> None:
    """`config.yaml` of a run and of each of its members."""
    _, folders = members(config, folder)
    write_whole(Disk(), folder / "config.yaml", dump(config).encode())
    if folders != [folder]:
        for member, path in enumerate(folders):
            write_whole(Disk(), path / "config.yaml", dump(_of_member(config, member)).encode())


def _begin(config: TrainConfig, folder: Path, folders: Sequence[Path]) -> None:
    """Write what each folder is.

    Raises:
        UserError: another run is in it, as when jobs of a sweep are given one folder.
    """
    try:
        (folder / "run.json").touch(exist_ok=False)
    except FileExistsError as error:
        raise UserError(f"{folder} holds a run already") from error
    if folders != [folder]:
        for member, path in enumerate(folders):
            path.mkdir()
            with contextlib.suppress(UserError):  # there is none, or a run that was killed at its start has torn it
                store_hydra(folder / ".hydra", path / ".hydra", seed=config.seed + member, num_seeds=1)
    write_configs(config, folder)


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """What goes into the log goes into this file too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))  # Hydra's
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk
            handler.close()


def _of_member(config: TrainConfig, member: int) -> TrainConfig:
    return config.model_copy(update={"seed": config.seed + member, "num_seeds": 1})


def _title(config: TrainConfig, label: Label | None) -> str:
    last = config.seed + config.num_seeds - 1
    seeds = f"seed {last}" if config.num_seeds == 1 else f"seeds {config.seed} to {last}, mean ± spread over seeds"
    title = f"{config.algo['name']} on {config.env.id}, {seeds}"
    newest = newer_version(config.env.id)
    job = " ".join(filter(None, label)) + ": " if label else ""
    return job + title + (f" (the newest version is {newest})" if newest else "")


def _curve_name(config: TrainConfig, member: int, path: Path, label: Label | None) -> str:
    """A name for TensorBoard's HParams tab: what differs first, and at the end where, which keeps names unique."""
    folder, seed = path, ""
    if config.num_seeds > 1:
        folder, seed = path.parent, path.name
    what = (label.differs if label else "") or f"{config.algo['name']} on {config.env.id}"
    return " ".join(filter(None, (what, seed, f"({'/'.join(folder.parts[-2:])})")))


def _notes(config: TrainConfig, training: Training, problem: str | None, thread_problem: str | None) -> list[str]:
    """What is allowed and probably not meant, or good to know.

    Args:
        config: of the run.
        training: its objects.
        problem: why the environment cannot be copied; None if it can.
        thread_problem: why it is not thread-safe; None if it is.
    """
    notes = []
    if problem is not None:
        notes.append(
            f"{config.env.id} cannot be copied in the middle of an episode ({problem}): if this run is resumed, it "
            "begins a new episode there, and is not the same bit for bit"
        )
    keys = ("env_processes", "env_threads")
    given = [f"{key}={value}" for key in keys if (value := getattr(config, key)) not in ("auto", 1)]
    if given and thread_problem is not None:
        notes.append(f"{', '.join(given)}: {config.env.id} is stepped in a plain loop instead: {thread_problem}")
    if config.compile and not isinstance(training.learner, CapturedLearner):
        notes.append("compile=true has no effect here: only work that is captured on a GPU is compiled")
    if not has_time_limit(training.evaluation_envs.example):
        notes.append(f"{config.env.id} has no time limit of its own; env.max_episode_steps=1000 would set one")
    first = max(config.learning_starts, config.algo["batch_size"] - 1)
    if first >= config.total_steps:
        notes.append(
            f"nothing will be learned: updates start after step {first:,}, total_steps is {config.total_steps:,}"
        )
    return notes


def _train(
    config: TrainConfig,
    folders: Sequence[Path],
    watcher: Watcher,
    stop: StopRequest,
    console: Console,
    label: Label | None,
    start: Sequence[Loaded] | None,
) -> Outcome:
    with contextlib.ExitStack() as opened:
        safety, durations = ThreadSafety(), list[float]()
        watch = safety.watch if may_share_steps(config) else lambda _: contextlib.nullcontext()
        problem = copies_exactly(environment_maker(config), watch=watch, durations=durations)
        stepping = choose_stepping(config, safety.problem, durations)
        training = build(config, copyable=problem is None, **stepping._asdict())
        opened.callback(training.close)
        choice = choose(config, *sizes(training.environments))
        for run_file in watcher.run_files:
            run_file.chose(choice.as_json())
        for note in filter(None, [*_notes(config, training, problem, safety.problem), choice.describe()]):
            console.print(f"note: {note}", soft_wrap=True)
        starts = [None] * len(folders) if start is None else start
        for path, own in zip(folders, starts, strict=True):
            if own is not None:
                rewind(path, own, Disk())
        recorders = []
        for member, (path, own) in enumerate(zip(folders, starts, strict=True)):
            recorder = Recorder(
                path,
                _of_member(config, member).model_dump(),
                _curve_name(config, member, path, label),
                None if own is None else own.state["files"],
            )
            opened.callback(recorder.close)
            recorders.append(recorder)
        versions = run_dir.versions()
        with watcher.display:
            return train(
                *training,
                recorders,
                [
                    Checkpoints(path, versions, config.checkpoint.keep, start=own)
                    for path, own in zip(folders, starts, strict=True)
                ],
                start,
                total_steps=config.total_steps,
                random_steps=config.random_steps,
                learning_starts=config.learning_starts,
                updates_per_step=config.updates_per_step,
                truncation_bootstraps=config.truncation_bootstraps,
                eval_every=config.eval.every,
                checkpoint_every=config.checkpoint.every,
                log_every=config.log.every,
                progress=watcher,
                stop=stop,
            )
