"""`dpg-train -m`: one job for each combination of values."""

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from dpg_cli import config as configs
from dpg_cli.cli import handover, job, launch
from dpg_cli.cli.here import below_here, here
from dpg_cli.cli.init import folders_of
from dpg_cli.cli.job import Result
from dpg_cli.cli.names import Label, member_names, members, without_seed
from dpg_cli.cli.progress import new_console, quoted
from dpg_cli.cli.signals import StopRequest
from dpg_cli.config import TrainConfig
from dpg_cli.errors import DiskError, UserError, one_line
from dpg_cli.storage.atomic import explaining
from dpg_cli.storage.run_dir import claim, command_line

CURVES = "tensorboard"  # the folder of links in that of a sweep
MAX_NAME = 200  # bytes of a link's name, of the 255 that file systems allow


def sweep(overrides: Sequence[str], composed: DictConfig) -> int:
    """Train once for each combination of values; returns the exit code.

    Raises:
        UserError: a job has a mistake. Raised before anything is written.
    """
    folder = Path(os.path.abspath(configs.folder(composed, "hydra.sweep.dir")))
    plan = Sweep(folder, list(configs.combinations(overrides, composed)), planned=configs.has_basic_sweeper(composed))
    plan.check()
    if configs.has_local_launcher(composed):
        launch.check(configs.select(composed, "hydra.launcher"))
    claim(folder, "hydra.sweep.dir")
    command, console = command_line(), new_console()
    between_jobs, one_after_another, begun = StopRequest(), configs.has_basic_launcher(composed), []

    def task(config: DictConfig) -> float:
        begun.append(True)
        if between_jobs.signal is not None:
            sys.exit(128 + between_jobs.signal)  # not an Exception, so that it ends the sweep
        hydra_config = HydraConfig.get()
        where, number = Path(hydra_config.runtime.output_dir), hydra_config.job.num
        label = plan.label(number, list(hydra_config.overrides.task))
        checked = configs.validate(config, here())
        if not one_after_another:  # parallel jobs would compete for cores
            given = checked.model_dump(include={"threads", "env_threads", "env_processes"})
            checked = checked.model_copy(update={key: 1 for key, value in given.items() if value == "auto"})
        plan.link_curves(number, label, checked, where)
        result = job.run(checked, where, command, label)
        plan.ended(number, label, where, result)
        if result.exit_code > 128:
            sys.exit(result.exit_code)
        # A failed job returns NaN: after an exception Hydra would end the sweep with the current batch of jobs.
        return math.nan if result.outcome is None else result.outcome.score()

    removed = False
    _running.append(Current(plan, command))
    try:
        with between_jobs, explaining(folder):
            handover.hand_over(task, ["-m", *overrides, f"hydra.sweep.dir={handover.quoted(folder)}"])
    except DiskError:
        raise
    except Exception as error:
        if begun or not (one_after_another or {"multirun.yaml"}.issuperset(os.listdir(folder))):
            raise
        handover.remove(folder)
        removed = True
        if isinstance(error, UserError):
            raise
        raise UserError(f"hydra: {type(error).__name__}: {one_line(error)}") from error
    finally:
        _running.clear()
        failed = plan.failures()
        if not removed:
            plan.print_scores(console, in_this_process=one_after_another or configs.has_local_launcher(composed))
            for where, reason in failed.items():
                print(f"dpg-train: job {where} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


class Sweep:
    """The jobs of a sweep: their names, their folders and their results.

    Args:
        folder: of the sweep.
        jobs: the overrides of each job; where the sweeper decides on jobs as it goes, those that all will have.
        planned: whether `jobs` are all.

    Raises:
        UserError: `jobs` is empty.
    """

    def __init__(self, folder: Path, jobs: Sequence[Sequence[str]], *, planned: bool):
        if not jobs:
            raise UserError("-m: the sweep has no jobs, because a key has no values")
        self._folder = folder
        self._jobs = jobs
        self._planned = planned
        self._common = set.intersection(*(set(job) for job in jobs))
        self._results: dict[int, tuple[str, Path, job.Result]] = {}
        self.known: list[configs.TrainConfig] = []

    def label(self, number: int, overrides: Sequence[str]) -> Label:
        """The label of a job: its position and the settings that differ. Numbers start at 0, like the folders."""
        position = f"{number + 1}/{len(self._jobs)}" if self._planned else f"{number + 1}"
        differs = " ".join(override.lstrip("+") for override in overrides if override not in self._common)
        return Label(f"[{position}] job {number}", differs)

    def check(self) -> None:
        """Compose and check the config of every job.

        Raises:
            UserError: a job's config is wrong, or two jobs would be the same run or share a folder.
        """
        runs: dict[str, int] = {}
        folders: dict[str, int] = {}
        for number, overrides in enumerate(self._jobs):
            try:
                config = configs.compose(overrides)
                checked = configs.validate(config, here())
                self.known.append(checked)
                if checked.init is not None:
                    folders_of(checked)
                resolved, name = configs.dump(checked), configs.job_folder(config, number)
            except UserError as error:
                differs = self.label(number, overrides).differs
                raise UserError(f"{error} (with {differs})" if differs else str(error)) from error
            if (same := runs.setdefault(resolved, number)) != number:
                raise UserError(f"-m: jobs {same} and {number} would be the same run ({' '.join(overrides)})")
            if name is not None and (same := folders.setdefault(name, number)) != number:
                raise UserError(f"hydra.sweep.subdir: jobs {same} and {number} would share the folder {name}")

    def ended(self, number: int, label: Label, folder: Path, result: job.Result) -> None:
        """Record how a job ended."""
        self._results[number] = (label.differs, folder, result)

    def link_curves(self, number: int, label: Label, config: configs.TrainConfig, folder: Path) -> None:
        """Link the run folders of a job in `tensorboard/`, named by the settings that differ.

        TensorBoard names a run by its path. The links are relative, so that the sweep can be moved. No training needs
        them, so errors of the disk are ignored here.

        Args:
            number: of the job.
            label: of the job.
            config: of the job.
            folder: of the job.
        """
        links = self._folder / CURVES
        seeds, runs = members(config, folder)
        names = member_names(label.differs or f"job {number}", seeds)
        with contextlib.suppress(OSError):
            links.mkdir(exist_ok=True)
            for name, run in zip(names, runs, strict=True):
                link, target = links / _file_name(name), os.path.relpath(run, links)
                if link.is_symlink() and os.readlink(link) == target:  # a launcher tries a job again
                    continue
                if link.is_symlink():  # names that differ in a slash, or far behind
                    link = links / f"{_file_name(name)} job {number}"
                link.symlink_to(target, target_is_directory=True)

    def print_scores(self, console: Console, *, in_this_process: bool) -> None:
        """Print the scores of the jobs that ran in this process, the sweep folder and the command for curves."""
        scored = [result.outcome.evaluated for *_, result in self._results.values() if result.outcome is not None]
        mixed = any(scored) and not all(scored)
        what = "" if mixed else " evaluations" if all(scored) else " training episodes"
        table = _table(["job", "settings that differ", f"mean of the last ten{what}"])
        over_seeds: dict[str, list[float]] = {}
        for number, (differs, _, result) in self._results.items():
            score = "failed"
            if result.outcome is not None:
                score = "–" if math.isnan(result.outcome.score()) else f"{result.outcome.score():.1f}"
                if mixed:
                    score += " (evaluations)" if result.outcome.evaluated else " (training episodes)"
                if result.outcome.interrupted:
                    score += ", stopped early"
                if scores := [own for own in result.outcome.scores() if not math.isnan(own)]:
                    over_seeds.setdefault(without_seed(differs), []).extend(scores)
            table.add_row(str(number), differs, score)
        if self._results:  # empty if a launcher ran the jobs in other processes
            console.print(table)
        if any(len(scores) > 1 for scores in over_seeds.values()):
            console.print()
            table = _table(["seeds", "settings that differ", "mean ± spread over seeds"])
            for settings, scores in over_seeds.items():
                table.add_row(str(len(scores)), settings, f"{np.mean(scores):.1f} ± {np.std(scores):.1f}")
            console.print(table)
        missing = len(self._jobs) - len(self._results) if self._planned and in_this_process else 0
        if missing:
            console.print(f"{missing} {'job' if missing == 1 else 'jobs'} did not start")
        folder = below_here(self._folder)
        console.print(f"  sweep folder {folder}", soft_wrap=True)
        console.print(f"  curves       tensorboard --logdir {quoted(folder / CURVES)}", soft_wrap=True)
        console.print(f"  compare      dpg-report {quoted(folder)}", soft_wrap=True)

    def failures(self) -> dict[str, str]:
        """The reason of every failed job, by its number, or by its folder if another process ran it."""
        known = {folder.resolve() for _, folder, _ in self._results.values()}
        found = {str(n): result.error for n, (_, _, result) in self._results.items() if result.error is not None}
        for folder, reason in _failures(self._folder):
            if folder.resolve() not in known:
                found[os.path.relpath(folder, self._folder)] = reason
        return found


def _table(headers: Sequence[str]) -> Table:
    """A table of a number, settings and a score."""
    table = Table(box=None, header_style="", pad_edge=False)
    number, settings, score = headers
    table.add_column(number, justify="right")
    table.add_column(settings, overflow="fold")
    table.add_column(score, justify="right")
    return table


def _file_name(text: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[/\x00-\x1f]", "_", text).encode()[:MAX_NAME].decode(errors="ignore").strip()


def _failures(folder: Path) -> list[tuple[Path, str]]:
    """Folder and reason of every failed job of a sweep."""
    failed = []
    for path in sorted(folder.rglob("run.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["status"] == "failed" and not (path.parents[1] / "run.json").exists():  # not the folder of one seed
            failed.append((path.parent, content["error"]))
    return failed


class Current:
    """The running sweep, for the local launcher. STAND-IN until sweep.json keeps the states."""

    def __init__(self, plan: Sweep, command: Sequence[str]):
        self._plan, self._command = plan, command
        self.known: Sequence[TrainConfig] = plan.known
        self._jobs: dict[int, tuple[Label, Path]] = {}

    def job(self, number: int, composed: DictConfig) -> tuple[TrainConfig, Path, Label, Sequence[str]]:
        """The config of a job, its folder, its label and the command line."""
        folder = Path(composed.hydra.runtime.output_dir)
        label = self._plan.label(number, list(composed.hydra.overrides.task))
        checked = configs.validate(composed, here())
        self._plan.link_curves(number, label, checked, folder)
        self._jobs[number] = label, folder
        return checked, folder, label, self._command

    def started(self, number: int) -> None:
        """Called when a job starts."""

    def ended(self, number: int, result: Result | None, state: str, reason: str | None) -> None:
        """Called when a job ends."""
        if result is not None and number in self._jobs:
            self._plan.ended(number, *self._jobs[number], result)


_running: list[Current] = []


def current() -> Current:
    """The running sweep. STAND-IN."""
    return _running[0]


def run_job(
    config: TrainConfig,
    folder: Path,
    command: Sequence[str],
    label: Label,
    report: Callable[..., None] | None = None,
) -> Result:
    """Run a job in its folder: train, or resume its own unfinished run. STAND-IN."""
    from dpg_cli.cli import build
    from dpg_cli.storage import checkpoint, run_dir

    if not (folder / "run.json").exists():
        return job.run(config, folder, command, label, report=report)
    checked = build.check(config)
    with run_dir.locked({folder}):
        starts, _ = checkpoint.newest([folder], 2**30)
        return job.run(config, folder, command, label, starts or None, checked, report)
