"""One training in its run folder, from its start to its `run.json`."""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dpg_cli import run_dir
from dpg_cli.cli.build import build
from dpg_cli.cli.progress import ProgressDisplay, print_summary
from dpg_cli.cli.signals import StopRequest
from dpg_cli.config import TrainConfig, dump
from dpg_cli.envs import newer_version
from dpg_cli.errors import DivergedError, UserError
from dpg_cli.metrics import Recorder
from dpg_cli.rollout import Episode, Evaluation
from dpg_cli.trainer import Outcome, train

log = logging.getLogger(__name__)


class JobFailedError(Exception):
    """A job of a sweep failed; its run folder says why."""


@dataclass
class Result:
    """How a job ended: with an outcome, or with a message that says why not."""

    exit_code: int
    outcome: Outcome | None = None
    message: str = ""


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


def run(config: TrainConfig, folder: Path, command: Sequence[str]) -> Result:
    """Train in a claimed folder; whatever happens is recorded there and said in one line.

    Args:
        config: checked.
        folder: the run folder; with several seeds, the parent of theirs.
        command: the command line, for the record.
    """
    console = Console()
    seeds = range(config.seed, config.seed + config.num_seeds)
    folders = [folder] if config.num_seeds == 1 else [folder / f"seed_{seed}" for seed in seeds]
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    run_files = [run_dir.RunFile(folder, command)]
    for seed, member in zip(seeds, folders, strict=True):
        if member != folder:
            member.mkdir()
            own = config.model_copy(update={"seed": seed, "num_seeds": 1})
            (member / "config.yaml").write_text(dump(own), encoding="utf-8")
            run_files.append(run_dir.RunFile(member, command))

    title = f"{config.algo['name']} on {config.env.id}, seed {', '.join(map(str, seeds))}"
    if newest := newer_version(config.env.id):
        title += f" (the newest version is {newest})"
    watcher = Watcher(ProgressDisplay(title, config.total_steps, console), run_files)
    stop = StopRequest()
    logging.captureWarnings(True)  # into the log; the terminal belongs to the progress display
    try:
        with stop:
            outcome = _train(config, folders, watcher, stop)
    except Exception as error:
        expected = isinstance(error, DivergedError | UserError)
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        log.exception("failed")
        for run_file in run_files:
            run_file.end("failed", last_step=watcher.step, error=message)
        print(f"dpg-train: failed: {message} (log: {folder / 'train.log'})", file=sys.stderr)
        return Result(1, message=message)
    finally:
        logging.captureWarnings(False)

    for run_file in run_files:
        run_file.end("interrupted" if outcome.interrupted else "done", last_step=outcome.step)
    if stop.signal is not None and outcome.interrupted:
        print(f"dpg-train: stopped at step {outcome.step:,}; checkpoint written in {folder}", file=sys.stderr)
        return Result(128 + stop.signal, outcome)
    print_summary(console, outcome, seeds, folders)
    return Result(0, outcome)


def failures(sweep: Path) -> list[tuple[str, str]]:
    """Name and reason of every failed job of a sweep."""
    failed = []
    for path in sorted(sweep.glob("*/run.json"), key=lambda p: (len(p.parent.name), p.parent.name)):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["status"] == "failed":
            failed.append((path.parent.name, content["error"]))
    return failed


def _train(config: TrainConfig, folders: Sequence[Path], watcher: Watcher, stop: StopRequest) -> Outcome:
    training = build(config)
    recorders = [
        Recorder(folder, config.model_copy(update={"seed": seed, "num_seeds": 1}).model_dump())
        for folder, seed in zip(folders, training.environments.seeds, strict=True)
    ]
    try:
        with watcher.display:
            return train(
                training.algorithm,
                training.environments,
                training.evaluation_envs,
                training.noise,
                training.replay,
                recorders,
                folders,
                total_steps=config.total_steps,
                random_steps=config.random_steps,
                learning_starts=config.learning_starts,
                updates_per_step=config.updates_per_step,
                truncation_bootstraps=config.truncation_bootstraps,
                eval_every=config.eval.every,
                checkpoint_every=config.checkpoint.every,
                checkpoint_keep=config.checkpoint.keep,
                log_every=config.log.every,
                versions=run_dir.versions(),
                progress=watcher,
                stop=stop,
            )
    finally:
        for recorder in recorders:
            recorder.close()
        training.close()
