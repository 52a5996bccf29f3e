"""`dpg-train resume=RUN_DIR`: resume a run exactly, from its own config and its newest whole checkpoint.

Hydra is not involved, and no code from the folder runs: its config is data, its state is safetensors and JSON.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dpg_cli import config as configs
from dpg_cli.cli import build, job
from dpg_cli.cli.arguments import parse
from dpg_cli.cli.dataset import check_same
from dpg_cli.cli.device import choose, named_device
from dpg_cli.cli.disk import check_disk
from dpg_cli.cli.folder import load_config, logging_to, write_configs
from dpg_cli.cli.here import below_here
from dpg_cli.cli.init import check_init
from dpg_cli.cli.memory import most_bytes
from dpg_cli.cli.names import Label, members
from dpg_cli.cli.progress import quoted
from dpg_cli.errors import UserError, one_line
from dpg_cli.storage import checkpoint, run_dir
from dpg_cli.storage.atomic import Disk, explaining, remove_leftovers
from dpg_cli.storage.untrusted import check_kinds, records

# Keys that do not affect steps already taken.
CHANGEABLE = (
    *("total_steps", "eval.every", "eval.episodes"),
    *("checkpoint.every", "checkpoint.keep", "checkpoint.replay", "log.every"),
    *("device", "threads", "env_threads", "env_processes", "compile"),
)
CURVES = ("metrics.jsonl", "evaluations.jsonl")


def resume(arguments: Sequence[str]) -> int:
    """Resume a run; returns the exit code.

    Raises:
        UserError: there is no such run or no whole checkpoint in it, or a key affects steps already taken.
    """
    values = parse([a for a in arguments if not _names_the_past(a)], ("resume", "trust", *CHANGEABLE), ("resume",))
    folder = Path(values.pop("resume")).resolve()
    stored = load_config("resume", folder, values.pop("trust", "false"))
    for argument in filter(_names_the_past, arguments):
        key = argument.partition("=")[0]
        raise UserError(f"{key}: affects steps already taken; resume= can change {', '.join(CHANGEABLE)}")
    config = configs.changed(stored, {key: configs.parse_value(key, text) for key, text in values.items()})
    if (config.eval.episodes == 0) != (stored.eval.episodes == 0):
        scores = "training episodes" if stored.eval.episodes == 0 else "evaluations"
        raise UserError(f"eval.episodes={config.eval.episodes}: this run has scores of {scores}, which would be mixed")
    return go_on(config, folder, keep_device="device" not in values).exit_code


def go_on(
    config: configs.TrainConfig,
    folder: Path,
    *,
    keep_device: bool = True,
    label: Label | None = None,
    report: Callable[..., None] | None = None,
) -> job.Result:
    """Resume the run in a folder.

    Args:
        config: of the run, with the changes.
        folder: of the run.
        keep_device: whether `device=auto` means the device that the run was started on.
        label: of the job, if the run is part of a sweep; the log is then open already.
        report: as for `job.run`.

    Raises:
        UserError: there is no whole checkpoint in the folder, it is not a run folder, or the device cannot be used.
    """
    check_kinds(folder)
    who = "" if label is None else f"{label.position} "
    stored_config = config
    if keep_device and config.device == "auto" and (device := run_dir.device(folder)) is not None:
        config = config.model_copy(update={"device": device})
        try:
            named_device(device)
        except UserError as error:
            reason = str(error).partition("; ")[0].partition(": ")[2]
            move = f"dpg-train resume={quoted(below_here(folder))} device=cpu"
            raise UserError(f"the run was on {device}, and {reason}; {move} resumes it on the CPU") from error
    _, folders = members(config, folder)
    saved = [checkpoint.saved_steps(path) for path in folders]
    if not all(saved) and not any(max(steps, default=0) for steps in saved):
        return _from_the_start(config, folder, folders, label, report)
    if label is not None and not config.resumable and run_dir.status(folder) != "done":
        print(f"{who}starts again at step 0: with checkpoint.replay=false it cannot be resumed")
        return _from_the_start(config, folder, folders, label, report, has_results=True)
    for path in folders:
        if not path.is_dir():
            raise UserError(f"resume={folder}: {path.name} is missing; each other seed_*/ can be resumed alone")
    checked = build.check(config)
    obs_dim, action_dim, transitions = checked.obs_dim, checked.action_dim, checked.transitions
    at = config.step
    with run_dir.locked({folder, *folders}):  # before the checkpoints are read, so that no other process writes one
        try:
            starts = _newest(folders, most_bytes(config, obs_dim, action_dim, transitions))
        except checkpoint.NoReplayError as error:
            if run_dir.status(folder) == "done" and config.total_steps <= error.step:
                print(f"{folder}: done at {at} {error.step:,}")
                return job.Result(0)
            raise UserError(f"resume={error}") from error
        except checkpoint.OldFormatError as error:
            raise UserError(f"resume={error}") from error
        if run_dir.status(folder) == "done" and config.total_steps <= starts[0].step:
            print(f"{folder}: done at {at} {starts[0].step:,}; a larger total_steps= continues it")
            return job.Result(0)
        if checked.dataset is not None:
            check_same(config, checked.dataset, starts)
        check_disk(config, obs_dim, action_dim, folder)
        _warn_of_versions(starts[0])
        before, now = run_dir.device(folder), choose(config, obs_dim, action_dim, transitions).device
        if before is not None and torch.device(before).type != now.type:
            print(f"warning: the resumed run is not the same bit for bit: device {before} -> {now}", file=sys.stderr)
        for path, steps in zip(folders, saved, strict=True):
            if len(folders) > 1 and steps[-1] > (step := starts[0].step):
                back = f"returns from {at} {steps[-1]:,} to {step:,}, the highest with a checkpoint of every seed"
                print(f"warning: {path}: {back}", file=sys.stderr)
        with explaining(folder):
            remove_leftovers(Disk(), folder)
            write_configs(stored_config, folder)
        print(f"{who}resuming at {at} {starts[0].step:,}")
        return _train(config, folder, starts, checked, label, report)


def _from_the_start(
    config: configs.TrainConfig,
    folder: Path,
    folders: Sequence[Path],
    label: Label | None,
    report: Callable[..., None] | None,
    *,
    has_results: bool = False,
) -> job.Result:
    """Start again in the folder of a run that ended before its first checkpoint, or that has none that can be resumed.

    With `has_results`, results are removed.

    Raises:
        UserError: the run has results, so its checkpoints are lost.
    """
    for path in folders:
        found = any((path / "replay").glob("*")) or any(_holds_a_later_step(path / name) for name in CURVES)
        if found and not has_results:
            raise UserError(f"resume={path}: it has results, but no checkpoints; start a new run")
    checked = build.check(config)
    check_init(config, checked.obs_dim, checked.action_dim)
    check_disk(config, checked.obs_dim, checked.action_dim, folder)
    with explaining(folder), run_dir.locked([folder]):
        parts = {folder / name for name in ("run.json", "checkpoints", "replay")}
        for path in {*folders, *parts, *folder.glob("*.jsonl"), *folder.glob("events.*")} - {folder}:
            Disk().remove(path)
        remove_leftovers(Disk(), folder)
    if label is None:
        print(f"nothing was trained yet: starting at {config.step} 0")
    return _train(config, folder, None, checked, label, report)


def _train(
    config: configs.TrainConfig,
    folder: Path,
    starts: Sequence[checkpoint.Loaded] | None,
    checked: build.Checked,
    label: Label | None,
    report: Callable[..., None] | None,
) -> job.Result:
    """Train with a log, which Hydra opens only for new runs and for the jobs of a sweep."""
    logging.root.setLevel(logging.INFO)
    with contextlib.ExitStack() as opened:
        if label is None:
            with explaining(folder):
                opened.enter_context(logging_to(folder / "train.log"))
        return job.run(config, folder, run_dir.command_line(), label, start=starts, checked=checked, report=report)


def _holds_a_later_step(path: Path) -> bool:
    return path.exists() and any(record["step"] > 0 for record in records(path))


def _names_the_past(argument: str) -> bool:
    """Whether it sets a key that affects steps already taken."""
    key = argument.partition("=")[0].lstrip("+~")
    fields = configs.TrainConfig.model_fields
    return key not in CHANGEABLE and key.partition(".")[0] in fields and key not in ("eval", "checkpoint", "log")


def _newest(folders: Sequence[Path], most: int) -> list[checkpoint.Loaded]:
    """The checkpoints of the highest step at which every member has a whole one."""
    starts, problems = checkpoint.newest(folders, most)
    for problem in problems:
        print(f"warning: {one_line(problem)}", file=sys.stderr)
    if not starts and len(folders) > 1 and not problems:
        steps = "; ".join(f"{path.name}: {checkpoint.saved_steps(path)}" for path in folders)
        raise UserError(f"resume={folders[0].parent}: no step at which every seed has a checkpoint; found {steps}")
    if not starts:
        raise UserError(f"resume={folders[0]}: there is no whole checkpoint")
    return starts


def _warn_of_versions(start: checkpoint.Loaded) -> None:
    now = run_dir.versions()
    changes = [f"{name} {old} -> {now.get(name)}" for name, old in start.versions.items() if now.get(name) != old]
    if changes:
        print(f"warning: the resumed run is not the same bit for bit: {one_line(', '.join(changes))}", file=sys.stderr)
