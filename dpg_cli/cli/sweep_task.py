"""A job of a sweep, in whichever process it runs."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from dpg_cli import config as configs
from dpg_cli.cli import job, slurm
from dpg_cli.cli.here import here
from dpg_cli.cli.job import Result
from dpg_cli.cli.names import Label, members
from dpg_cli.cli.resume import CHANGEABLE, go_on
from dpg_cli.cli.sweep_plan import Naming
from dpg_cli.cli.sweep_scores import scores_of
from dpg_cli.cli.sweep_states import overrides_of
from dpg_cli.errors import CompileError, UserError, one_line
from dpg_cli.storage import run_dir
from dpg_cli.storage.atomic import Disk, remove_leftovers
from dpg_cli.sweeps import record

WAIT_FOR_OLDER = 60.0  # seconds
RESUMED = "sweep_job"  # the key that tells a resumed sweep's job its number and folder


class Known(NamedTuple):
    """The overrides and configs of all jobs of a resumed sweep, by number."""

    overrides: Sequence[Sequence[str]]
    configs: Sequence[configs.TrainConfig]


class Described(NamedTuple):
    """A job that is about to start."""

    number: int
    config: configs.TrainConfig
    folder: Path
    label: Label
    overrides: Sequence[str]


def describe(naming: Naming, config: DictConfig, hydra: Any, known: Known | None = None) -> Described:
    """A job, from its composed config and Hydra's own node.

    Args:
        naming: of the sweep's jobs.
        config: composed.
        hydra: the node.
        known: of all jobs, if this process has read them; a resumed sweep's job otherwise reads its own.

    Raises:
        UserError: the config is wrong.
    """
    folder = Path(hydra.runtime.output_dir)
    if RESUMED in config:
        number = int(config[RESUMED].number)
        if known is not None:
            overrides, checked = list(known.overrides[number]), known.configs[number]
        else:
            overrides = overrides_of(folder)
            checked = configs.check(record.stored_configs(naming.folder)[number])
    else:
        number, overrides = int(hydra.job.num), list(hydra.overrides.task)
        checked = configs.validate(config, here())
    return Described(number, checked, folder, naming.label(number, overrides), overrides)


def train_alone(naming: Naming, command: Sequence[str], composed: DictConfig, hydra: Any) -> tuple[Path, Result]:
    """Train a job that another launcher has started in a process of its own; returns its folder and how it ended.

    Args:
        naming: of the sweep's jobs.
        command: the command line of the sweep, for the record.
        composed: the job's config.
        hydra: Hydra's own node.
    """
    found = describe(naming, composed, hydra)
    naming.link_curves(found.number, found.label, found.config, found.folder)
    with slurm.requeued() as requeue:
        alone = slurm.cpus_of_job() > 1  # jobs of other launchers share cores
        checked = found.config if alone else one_thread(found.config)
        result = run_job(checked, found.folder, command, found.label)
        if result.exit_code > 128 and checked.checkpoint.replay:  # else it would start again each time
            requeue()
    return found.folder, result


def run_job(
    config: configs.TrainConfig,
    folder: Path,
    command: Sequence[str],
    label: Label,
    report: Callable[..., None] | None = None,
    stopped: Callable[[], int | None] = lambda: None,
) -> Result:
    """Train a job in its folder: from the start, from its checkpoint if it was begun, or not at all if it is done.

    Args:
        config: checked.
        folder: of the job.
        command: the command line of the sweep, for the record.
        label: of the job.
        report: as for `job.run`.
        stopped: the signal that has asked the sweep to stop, before the training handles signals; None without one.
    """
    try:
        _wait_for_older(config, folder, stopped)
        if not _holds_a_run(folder):
            return job.run(config, folder, command, label, report=report)
        stored = configs.load_from(folder)
        if (difference := configs.difference(config, stored, without=CHANGEABLE)) is not None:
            raise UserError(f"{folder} already holds a run, with {difference}")
        if run_dir.status(folder) == "done" and stored.total_steps >= config.total_steps:
            return Result(0)
        total = {"total_steps": config.total_steps}
        return go_on(configs.changed(stored, total), folder, label=label, report=report)
    except UserError as error:
        if isinstance(error, CompileError) and (number := stopped()) is not None:  # the signal ended the compiler too
            return Result(128 + number)
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


def _wait_for_older(config: configs.TrainConfig, folder: Path, stopped: Callable[[], int | None]) -> None:
    """Wait for an older process of the same job.

    It may still write its checkpoint after its sweep was killed, and a cluster may start the job of a failed node again
    before it has ended there.
    """
    _, folders = members(config, folder)
    until = time.monotonic() + WAIT_FOR_OLDER
    while any(map(run_dir.is_locked, {folder, *folders})) and time.monotonic() < until and stopped() is None:
        time.sleep(0.5)


def _holds_a_run(folder: Path) -> bool:
    """Whether a folder holds a run. What is left of one that was killed while its folder was made is removed."""
    if not (folder / "run.json").exists():
        return False
    if run_dir.status(folder) is None and not (folder / "config.yaml").exists():
        made = [path for path in folder.glob("seed_*") if not (path / "config.yaml").exists()]
        for path in (*made, folder / "run.json"):
            Disk().remove(path)
        remove_leftovers(Disk(), folder)
        return False
    return True
