"""`dpg-train -m`: one job for each combination of values."""

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from dpg_cli import config as configs
from dpg_cli.cli import handover, job
from dpg_cli.cli.init import folders_of
from dpg_cli.cli.names import Label
from dpg_cli.cli.progress import below_here, new_console, quoted
from dpg_cli.cli.signals import StopRequest
from dpg_cli.errors import DiskError, UserError, one_line
from dpg_cli.storage.atomic import explaining
from dpg_cli.storage.run_dir import claim, command_line


def sweep(overrides: Sequence[str], composed: DictConfig) -> int:
    """Train once for each combination of values; returns the exit code.

    Raises:
        UserError: a job has a mistake. Raised before anything is written.
    """
    folder = Path(os.path.abspath(configs.folder(composed, "hydra.sweep.dir")))
    plan = Sweep(folder, list(configs.combinations(overrides, composed)), planned=configs.has_basic_sweeper(composed))
    plan.check()
    claim(folder, "hydra.sweep.dir")
    curve_names = plan.write_curve_names()
    command, console = command_line(), new_console()
    between_jobs, one_after_another, begun = StopRequest(), configs.has_basic_launcher(composed), []

    def task(config: DictConfig) -> float:
        begun.append(True)
        if between_jobs.signal is not None:
            sys.exit(128 + between_jobs.signal)  # not an Exception, so that it ends the sweep
        hydra_config = HydraConfig.get()
        where, number = Path(hydra_config.runtime.output_dir), hydra_config.job.num
        label = plan.label(number, list(hydra_config.overrides.task))
        checked = configs.validate(config)
        if not one_after_another:  # parallel jobs would compete for cores
            given = checked.model_dump(include={"threads", "env_threads", "env_processes"})
            checked = checked.model_copy(update={key: 1 for key, value in given.items() if value == "auto"})
        result = job.run(checked, where, command, label)
        plan.ended(number, label, where, result)
        if result.exit_code > 128:
            sys.exit(result.exit_code)
        # A failed job returns NaN: after an exception Hydra would end the sweep with the current batch of jobs.
        return math.nan if result.outcome is None else result.outcome.score()

    removed = False
    try:
        with between_jobs, explaining(folder):
            handover.hand_over(task, ["-m", *overrides, f"hydra.sweep.dir={handover.quoted(folder)}"])
    except DiskError:
        raise
    except Exception as error:
        written_before_any_job = {"multirun.yaml", "tensorboard.flags"}
        if begun or not (one_after_another or written_before_any_job.issuperset(os.listdir(folder))):
            raise
        handover.remove(folder)
        removed = True
        if isinstance(error, UserError):
            raise
        raise UserError(f"hydra: {type(error).__name__}: {one_line(error)}") from error
    finally:
        failed = plan.failures()
        if not removed:
            plan.print_scores(console, curve_names, in_this_process=one_after_another)
            for where, reason in failed.items():
                print(f"dpg-train: job {where} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


class Sweep:
    """The jobs of a sweep: which of how many each is, what differs between them, how each went.

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
        self._job_folders: list[str | None] = []
        self._common = set.intersection(*(set(job) for job in jobs))
        self._results: dict[int, tuple[str, Path, job.Result]] = {}

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
                checked = configs.validate(config)
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
            self._job_folders.append(name)

    def ended(self, number: int, label: Label, folder: Path, result: job.Result) -> None:
        """Record how a job ended."""
        self._results[number] = (label.differs, folder, result)

    def write_curve_names(self) -> Path | None:
        """Write a file of TensorBoard flags that label each run by the settings that differ, not by its number.

        Returns:
            The file; None if there is one job, or the folders are unknown or have names that the flag cannot hold.
        """
        folder = self._folder.resolve()
        unfit = any(character in f"{folder}{self._job_folders}" for character in ":\n") or "," in str(folder)
        if not self._planned or None in self._job_folders or len(self._jobs) == 1 or unfit:
            return None
        names = [self.label(0, job).differs.translate({ord(","): " ", ord(":"): "_"}) for job in self._jobs]
        spec = ",".join(f"{name}:{folder / str(own)}" for name, own in zip(names, self._job_folders, strict=True))
        path = self._folder / "tensorboard.flags"
        path.write_text(f"--logdir_spec={spec}\n", encoding="utf-8")
        return path

    def print_scores(self, console: Console, curve_names: Path | None, *, in_this_process: bool) -> None:
        """Print the scores of the jobs that ran in this process, the sweep folder and the command for curves."""
        table = Table(box=None, header_style="", pad_edge=False)
        table.add_column("job", justify="right")
        table.add_column("settings that differ", overflow="fold")
        table.add_column("mean of the last ten evaluations", justify="right")
        for number, (differs, _, result) in self._results.items():
            score = "failed" if result.outcome is None else f"{result.outcome.score():.1f}"
            stopped = ", stopped early" if result.outcome is not None and result.outcome.interrupted else ""
            table.add_row(str(number), differs, score + stopped)
        if self._results:  # empty if a launcher ran the jobs in other processes
            console.print(table)
        missing = len(self._jobs) - len(self._results) if self._planned and in_this_process else 0
        if missing:
            console.print(f"{missing} {'job' if missing == 1 else 'jobs'} did not start")
        console.print(f"  sweep folder {below_here(self._folder)}", soft_wrap=True)
        logdir = f"--logdir {quoted(below_here(self._folder))}"
        if curve_names is not None:
            logdir = f"--flagfile {quoted(below_here(curve_names))}"
        console.print(f"  curves       tensorboard {logdir}", soft_wrap=True)

    def failures(self) -> dict[str, str]:
        """The reason of every failed job, by its number, or by its folder if another process ran it."""
        known = {folder.resolve() for _, folder, _ in self._results.values()}
        found = {str(n): result.error for n, (_, _, result) in self._results.items() if result.error is not None}
        for folder, reason in _failures(self._folder):
            if folder.resolve() not in known:
                found[os.path.relpath(folder, self._folder)] = reason
        return found


def _failures(folder: Path) -> list[tuple[Path, str]]:
    """Folder and reason of every failed job of a sweep."""
    failed = []
    for path in sorted(folder.rglob("run.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["status"] == "failed" and not (path.parents[1] / "run.json").exists():  # not the folder of one seed
            failed.append((path.parent, content["error"]))
    return failed
