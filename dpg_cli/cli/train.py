"""`dpg-train`: train, or sweep with `-m`.

Hydra makes folders before any task runs, and ends after any error with exit code 1. So this module composes and checks
the config first, claims the folder, and only then hands over to Hydra. A mistake leaves no folder behind.
"""

import contextlib
import difflib
import io
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dpg_cli.config import TrainConfig

HEAD = """\
dpg-train: train deterministic policy gradient agents.

Examples
  dpg-train                                             TD3 on HalfCheetah-v4
  dpg-train algo=ddpg env=Pendulum-v1 noise=ou seed=3
  dpg-train experiment=td3_paper env=Hopper-v4 num_seeds=3
  dpg-train algo=td7 env=Hopper-v4
  dpg-train replay=lap algo.n_steps=3 noise=pink        TD3 with improvements, all of which are switches
  dpg-train -m algo=ddpg,td3 env=Pendulum-v1 'seed=range(5)'
  dpg-train -m hydra/launcher=local 'seed=range(10)'    several jobs at a time
  dpg-train algo=td3_bc env=Hopper-v4 dataset=RUN_DIR   learn offline, from a run's transitions
  dpg-train resume=RUN_DIR [total_steps=2e6]            resume a run exactly
  dpg-train resume=SWEEP_DIR                            run what is left of a sweep, with any launcher
  tensorboard --logdir outputs
"""
KEYS = """
Keys
  seed, num_seeds, num_envs, total_steps, random_steps, learning_starts,
  updates_per_step, buffer_size, share_next_obs, truncation_bootstraps,
  device, threads, env_threads, env_processes, compile, precision, dataset, init,
  eval.*, checkpoint.*, log.*, algo.*, network.*, env.*, noise.*, replay.*

Flags
  -m                sweep over comma-separated values, range(...), choice(...)
  --cfg job         print the config; with --resolve, as a run stores it
  --config-dir DIR  add a folder of your own YAML files
  -sc install=bash  completion: eval "$(dpg-train -sc install=bash)"
  --version         versions of dpg-cli, torch, gymnasium, mujoco and others
  --hydra-help      all of Hydra's flags
"""


def main() -> None:
    """The console script."""
    from dpg_cli.cli import here, signals
    from dpg_cli.cli.machine import require_posix
    from dpg_cli.errors import DiskError, UserError, one_line

    here.remember()
    signals.remember()
    try:
        require_posix()
        sys.exit(_run_command(sys.argv[1:]))
    except UserError as error:
        print(f"dpg-train: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except DiskError as error:
        print(f"dpg-train: failed: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("dpg-train: stopped before the start", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        print(f"dpg-train: failed: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _run_command(arguments: Sequence[str]) -> int:
    from dpg_cli.cli import flags as own
    from dpg_cli.cli.arguments import print_versions, readable
    from dpg_cli.errors import UserError

    arguments = [_with_home(argument) for argument in arguments]
    flags, rest = own.split(arguments)
    folders = [] if flags.config_dir is None else [Path(flags.config_dir).resolve()]
    if folders and not os.path.isdir(folders[0]):  # a name that is too long raises in Path.is_dir
        raise UserError(f"--config-dir={flags.config_dir}: no such folder")
    if flags.help:
        with readable():
            print(_help(folders), end="")
        return 0
    if flags.version:
        print_versions()
        return 0

    from hydra.types import RunMode

    from dpg_cli import config as configs
    from dpg_cli.cli.handover import openly, quoted, show, with_joined_folders
    from dpg_cli.cli.here import here
    from dpg_cli.cli.import_path import add_working_directory

    configs.register()
    own.check(flags, rest)
    configs.check_spaces(rest)
    if flags.shell_completion and rest == ["query=bash"]:
        _complete()
        return 0
    if flags.shell_completion or flags.hydra_help:
        return show(own.for_hydra(flags, rest))
    if any(argument.partition("=")[0] == "resume" for argument in rest):
        from dpg_cli.cli.resume import resume
        from dpg_cli.cli.sweep_resume import named_sweep, resume_sweep

        if (sweep_folder := named_sweep(rest)) is not None:
            return resume_sweep(sweep_folder, arguments)
        return resume(arguments)
    overrides = [openly(override) for override in rest]
    if not flags.multirun:
        overrides = [with_joined_folders(override) for override in overrides]
    overrides += [f"hydra.searchpath=[{quoted(f'file://{folder}')},'gymnasium://']" for folder in folders]
    configs.check_given_once(overrides)
    composed = configs.compose(configs.without_sweeps(overrides) if flags.multirun else overrides)
    mode = configs.select(composed, "hydra.mode")
    if flags.cfg == "job" and flags.resolve and flags.package is None:
        if mode is RunMode.MULTIRUN:
            given = {override.lstrip("+").partition("=")[0] for override in overrides}
            if swept := [f"{key}={value}" for key, value in configs.of_preset(composed).items() if key not in given]:
                note = f"this is a sweep over {' '.join(swept)}; each job also sets one of these values"
                print(f"dpg-train: {note}", file=sys.stderr)
        with readable():
            print(configs.dump(configs.validate(composed, here())), end="")
        return 0
    if flags.package not in (None, "_global_") and configs.select(composed, flags.package) is None:
        raise UserError(f"--package={flags.package}: no such key")
    if flags.cfg is not None or flags.info is not None:
        return show(own.for_hydra(flags, overrides))
    if configs.select(composed, "hydra.job.chdir"):
        raise UserError("hydra.job.chdir=true: not supported; a run never changes the working directory")
    add_working_directory()
    if flags.multirun or mode is RunMode.MULTIRUN:
        from dpg_cli.cli.sweep import sweep

        return sweep(overrides, composed)
    return _single(composed, folders)


def _with_home(argument: str) -> str:
    """The argument, with `~` expanded for the environment's arguments, whose paths a run stores.

    Raises:
        UserError: another key has a `~`, which Hydra's grammar does not accept.
    """
    from dpg_cli.cli.arguments import check_home

    key, equals, value = argument.partition("=")
    if equals and key.lstrip("+").startswith("env.kwargs."):
        return f"{key}=" + re.sub(r"(^|[\[,]) *~/", rf"\g<1>{Path.home()}/", value)
    check_home(argument)
    return argument


def _single(composed: "DictConfig", folders: Sequence[Path]) -> int:
    """Train once; returns the exit code.

    Args:
        composed: from `compose()`.
        folders: of the user's own YAML files, for messages.
    """
    from dpg_cli import config as configs
    from dpg_cli.cli import build, job
    from dpg_cli.cli.disk import check_disk
    from dpg_cli.cli.handover import remove
    from dpg_cli.cli.here import here
    from dpg_cli.cli.init import check_init
    from dpg_cli.environments.make import UnknownIdError
    from dpg_cli.errors import DiskError, UserError, one_line
    from dpg_cli.storage.atomic import Disk, explaining, write_whole
    from dpg_cli.storage.run_dir import claim, command_line, is_requeued

    checked = configs.validate(composed, here())
    folder = Path(os.path.abspath(configs.folder(composed, "hydra.run.dir")))  # an environment may change the directory
    if is_requeued(folder):
        return _go_on(checked, folder)
    try:
        found = build.check(checked)
    except UnknownIdError as error:
        own = set(configs.choices("env", folders)).difference(configs.choices("env"))
        close = difflib.get_close_matches(checked.env.id, own, n=1)
        raise UserError(f"{error}; --config-dir has env={close[0]}" if close else str(error)) from error
    except SystemExit as error:
        raise UserError(f"env.id={checked.env.id}: exited the program when it was created") from error
    check_init(checked, found.obs_dim, found.action_dim)
    check_disk(checked, found.obs_dim, found.action_dim, folder)
    claim(folder, "hydra.run.dir")
    try:
        with explaining(folder):  # from here on the run can be resumed
            write_whole(Disk(), folder / "config.yaml", configs.dump(checked).encode())
    except DiskError:
        folder.rmdir()
        raise
    command, begun, results = command_line(), [], []

    def task(_: "DictConfig") -> None:
        begun.append(True)
        results.append(job.run(checked, folder, command, checked=found))

    try:
        with explaining(folder):
            configs.run(composed, folder, task)
    except DiskError:
        raise
    except Exception as error:
        if begun:
            raise
        remove(folder)
        raise UserError(f"hydra: {type(error).__name__}: {one_line(error)}") from error
    return results[0].exit_code


def _go_on(config: "TrainConfig", folder: Path) -> int:
    """Resume the run that an earlier start of this cluster job left unfinished; returns the exit code."""
    from dpg_cli import config as configs
    from dpg_cli.cli.here import below_here
    from dpg_cli.cli.resume import go_on
    from dpg_cli.errors import UserError

    if (difference := configs.difference(config, configs.load_from(folder))) is not None:
        raise UserError(f"{difference}, in {folder / 'config.yaml'}, the run that this requeued job started")
    print(f"requeued job {os.environ['SLURM_JOB_ID']}: resuming its own run in {below_here(folder)}")
    return go_on(config, folder.resolve()).exit_code


def _help(folders: Sequence[Path]) -> str:
    """The help.

    Args:
        folders: of the user's own YAML files, whose choices are listed too.
    """
    from dpg_cli.config import GROUPS, choices

    lines = [HEAD, "Groups, one choice each"]
    for group in GROUPS:
        names = choices(group, folders)
        if group == "env":
            own = [name for name in names if name not in choices(group)]
            names = ["any Gymnasium id with continuous actions", "also module:Id", *own]
        lines += textwrap.wrap(", ".join(names), 79, initial_indent=f"  {group:12}", subsequent_indent=" " * 14)
    lines.append("  hydra/launcher  local, slurm, ray: jobs of a sweep in parallel")
    return "\n".join(lines) + "\n" + KEYS


def _complete() -> None:
    """Complete for the shell as Hydra does, and also mid-line, after quotes and with keys of `env.kwargs`."""
    from dpg_cli.cli.handover import hand_over, openly
    from dpg_cli.config import GROUPS

    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT", len(line)))]
    before, _, current = line.rpartition(" ")
    words = []
    with contextlib.suppress(ValueError):  # an unclosed quote
        words = [openly(word) for word in shlex.split(before) if " " not in word]
    os.environ["COMP_LINE"] = " ".join([*(words or ["dpg-train"]), current])
    answer, messages = io.StringIO(), io.StringIO()  # messages would garble the prompt
    with contextlib.suppress(Exception, SystemExit), redirect_stdout(answer), redirect_stderr(messages):
        hand_over(lambda _: None, ["-sc", "query=bash"])
    print(" ".join(f"{word}=" if word in GROUPS else word for word in answer.getvalue().split()))
