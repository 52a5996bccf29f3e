"""`dpg-train resume=SWEEP_DIR`: run what is left of a sweep, with the configs that it was started with."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpg_cli import config as configs
from dpg_cli.cli import handover
from dpg_cli.cli.here import below_here, here
from dpg_cli.cli.import_path import add_working_directory
from dpg_cli.cli.names import members
from dpg_cli.cli.progress import new_console
from dpg_cli.cli.sweep import NothingStartedError, Running, check_compiler, check_launcher, finish, launch
from dpg_cli.cli.sweep_options import launcher_of
from dpg_cli.cli.sweep_plan import Plan
from dpg_cli.cli.sweep_states import state_of
from dpg_cli.cli.sweep_task import RESUMED
from dpg_cli.errors import UserError, one_line
from dpg_cli.storage import checkpoint, run_dir, untrusted
from dpg_cli.storage.atomic import Disk, explaining, remove_leftovers
from dpg_cli.storage.untrusted import run_file
from dpg_cli.sweeps import record, slurm

MOST_ASKED = 20  # jobs, of which each takes a tenth of a second
KEYS = "total_steps, trust, hydra/launcher and hydra.launcher.*"


def named_sweep(arguments: Sequence[str]) -> Path | None:
    """The folder of the sweep that `resume=` names; None if it names something else."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "resume" and value:
            folder = Path(value).absolute()
            try:
                return folder if (folder / record.FILE).is_file() else None
            except OSError:  # a name that is too long
                return None
    return None


def resume_sweep(folder: Path, arguments: Sequence[str]) -> int:
    """Run the jobs that are not done; returns the exit code.

    Args:
        folder: of the sweep.
        arguments: the command line.

    Raises:
        UserError: a key cannot be changed, the sweep is damaged, needs `trust=true`, or is being run already.
    """
    values, hydra = _parsed(arguments)
    file = record.load(folder)
    if not (folder / record.CONFIGS).exists():
        raise UserError(
            f"resume={folder}: has no {record.CONFIGS}; a search has none, because it decides on its jobs as it goes; "
            f"resume={folder}/NUMBER resumes one job"
        )
    if "${" in str(folder):
        raise UserError(f"resume={folder}: Hydra reads ${{ as the start of an interpolation; rename the folder")
    untrusted.check_sweep(folder, map(_where, file.jobs))
    stored = {number: configs.check(tree) for number, tree in record.stored_configs(folder).items()}
    jobs = file.jobs
    numbers = [entry.number for entry in jobs]
    if not jobs or numbers != list(range(len(jobs))) or stored.keys() != set(numbers):
        raise UserError(f"resume={folder}: its jobs were not known when it was started, so it cannot be resumed")
    asks = next(filter(None, map(configs.asks_for_trust, stored.values())), None)
    if asks is not None and values.get("trust") != "true":
        raise UserError(f"{asks}; if you trust it, trust=true")
    if asks is not None:
        add_working_directory()
    if "total_steps" in values:
        total = {"total_steps": configs.parse_value("total_steps", values["total_steps"])}
        most = max(config.total_steps for config in stored.values())
        stored = {number: configs.changed(config, total) for number, config in stored.items()}
        if total["total_steps"] < most:
            raise UserError(f"total_steps={values['total_steps']}: the sweep has {most:,} already")
    launcher = [] if any(text.startswith("hydra/launcher=") for text in hydra) else launcher_of(file)
    composed = configs.compose([*launcher, *hydra])
    plan = Plan(folder, [entry.overrides for entry in jobs], planned=True)
    check_launcher(composed)
    known = [stored[entry.number] for entry in jobs]
    running = Running(plan, file, known, composed, trust=asks is not None)
    with run_dir.locked([folder]):
        with explaining(folder):
            remove_leftovers(Disk(), folder)
        queued = slurm.still_queued(folder)
        if "total_steps" in values and queued:
            raise UserError("total_steps: jobs are in SLURM's queue with the old value; wait for their end first")
        found = {entry.number: _state(folder / _where(entry), stored[entry.number]) for entry in jobs}
        left = [entry for entry in jobs if found[entry.number][0] != "done"]
        _check_resumable(folder, left, stored)
        check_compiler(composed, [stored[entry.number] for entry in left])
        if "total_steps" in values:
            record.store_configs(folder, ((number, config.model_dump()) for number, config in stored.items()))
        for number, (state, reason) in found.items():
            file.set(number, state=state, reason=reason)
        file.flush()
        if not left:
            print(f"{below_here(folder)}: all {len(jobs)} jobs are done; a larger total_steps= continues them")
            return 1 if finish(running, new_console()) else 0
        print(f"{below_here(folder)}: {len(jobs) - len(left)} of {len(jobs)} jobs are done")
        running.queued = {entry.number: queued[entry.number] for entry in left if entry.number in queued}
        left = [entry for entry in left if entry.number not in queued]
        if running.queued:
            count = len(running.queued)
            which = "1 job that is" if count == 1 else f"{count} jobs that are"
            print(f"waiting for {which} in SLURM's queue")
        if not left:
            return launch(running, [])
        running.order = [entry.number for entry in left]
        _tell_differences(plan, left, stored)
        for entry in left:
            where = folder / _where(entry)
            if not (where / "run.json").exists():  # a job that was begun has its .hydra/
                overrides = configs.without_hydra(entry.overrides)
                with contextlib.suppress(UserError):
                    configs.write_hydra(overrides, where, entry.number, stored[entry.number])
        values_of = ",".join(f"{{number:{entry.number},folder:{handover.quoted(_where(entry))}}}" for entry in left)
        own = [
            *("-m", f"+{RESUMED}={values_of}", f"hydra.sweep.dir={handover.quoted(folder)}"),
            f"hydra.sweep.subdir=${{{RESUMED}.folder}}",
            "hydra.output_subdir=null",  # .hydra/ of a job that was begun stays
        ]
        try:
            return launch(running, [*own, *launcher, *hydra])
        except NothingStartedError as error:
            raise UserError(str(error)) from error


def _parsed(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Our keys with their values, and the overrides of Hydra's launcher."""
    values: dict[str, str] = {}
    hydra = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in ("hydra/launcher",) or key.lstrip("+").startswith("hydra.launcher."):
            hydra.append(argument)
        elif equals and key in ("resume", "total_steps", "trust"):
            if key in values:
                raise UserError(f"{key}: given twice")
            values[key] = value
        else:
            raise UserError(f"{argument}: resume= of a sweep can only change {KEYS}")
    if values.get("trust", "false") not in ("true", "false"):
        raise UserError(f"trust={values['trust']}: should be true or false")
    return values, hydra


def _state(folder: Path, config: configs.TrainConfig) -> tuple[str, str | None]:
    """State and reason of a job, from its folder; one that is to be extended is pending."""
    state, reason = state_of(folder)
    return ("pending", reason) if state == "done" and _made(folder) < config.total_steps else (state, reason)


def _check_resumable(folder: Path, left: Sequence[record.Job], stored: Mapping[int, configs.TrainConfig]) -> None:
    """Check the folders of the jobs to run, before anything is changed.

    Raises:
        UserError: one leads elsewhere, or another version wrote it.
    """
    for entry in left:
        where = folder / _where(entry)
        if where.exists():
            untrusted.check_kinds(where)
            for member in members(stored[entry.number], where)[1]:
                try:
                    checkpoint.check_format(member)
                except checkpoint.OldFormatError as error:
                    raise UserError(f"resume={folder}: job {entry.number}: {error}") from error


def _where(entry: record.Job) -> str:
    return str(entry.number) if entry.folder is None else entry.folder


def _made(folder: Path) -> int:
    """Steps that a job has made."""
    step: Any = run_file(folder).get("last_step")
    return step if isinstance(step, int) else 0


def _tell_differences(plan: Plan, left: Sequence[record.Job], stored: Mapping[int, configs.TrainConfig]) -> None:
    """Say where today's YAML files differ from the stored configs, which count. One job for each choice of files."""
    asked: dict[tuple[str, ...], int] = {}
    for entry in left:
        files = tuple(text for text in entry.overrides if text.lstrip("+").partition("=")[0] in configs.GROUPS)
        asked.setdefault(files, entry.number)
    same = ("total_steps", "threads", "env_threads", "env_processes", "device")
    told = set()
    for number in list(asked.values())[:MOST_ASKED]:
        try:
            today = configs.validate(configs.compose(configs.without_hydra(plan.jobs[number])), here())
            difference = configs.difference(today, stored[number], without=same)
            note = None if difference is None else f"today's YAML files have {difference}"
        except UserError as error:
            note = f"today's YAML files do not fit this sweep ({one_line(error)})"
        if note is not None and note not in told:
            told.add(note)
            print(f"note: {note}; the sweep's own configs count", file=sys.stderr)
