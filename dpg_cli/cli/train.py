"""`dpg-train`: train, or sweep with `-m`.

Hydra makes folders before any task runs, and ends after any error with exit code 1. So this module composes and checks
the config first, claims the folder, and only then hands over to Hydra. A mistake leaves no folder behind.
"""

import argparse
import contextlib
import io
import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dpg_cli.config import TrainConfig

# Hydra's flags that print something and train nothing, besides --cfg.
LOOKS = {"--package", "-p", "--info", "-i", "--shell-completion", "-sc", "--hydra-help", "--version"}

HEAD = """\
dpg-train: train deterministic policy gradient agents.

Examples
  dpg-train                                             TD3 on HalfCheetah-v4
  dpg-train algo=ddpg env=Pendulum-v1 noise=ou seed=3
  dpg-train experiment=td3_paper env=Hopper-v4 num_seeds=3
  dpg-train -m algo=ddpg,td3 env=Pendulum-v1 'seed=range(5)'
  dpg-train resume=RUN_DIR [total_steps=2e6]            resume a run exactly
  tensorboard --logdir outputs
"""
KEYS = """
Keys
  seed, num_seeds, num_envs, total_steps, random_steps, learning_starts,
  updates_per_step, buffer_size, share_next_obs, truncation_bootstraps,
  device, threads, env_threads, env_processes, compile, precision,
  eval.*, checkpoint.*, log.*, algo.*, env.*, noise.*

Flags
  -m                sweep over comma-separated values, range(...), choice(...)
  --cfg job         print the config; with --resolve, as a run stores it
  --config-dir DIR  add a folder of your own YAML files
  -sc install=bash  completion: eval "$(dpg-train -sc install=bash)"
  --hydra-help      all of Hydra's flags
"""


def main() -> None:
    """The console script."""
    from dpg_cli.errors import DiskError, UserError, one_line

    try:
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
    if "-h" in arguments or "--help" in arguments:
        print(_help(), end="")
        return 0

    from hydra.types import RunMode

    from dpg_cli import config as configs
    from dpg_cli.cli.handover import hand_over, openly, quoted
    from dpg_cli.errors import UserError

    configs.register()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-c", "--cfg")
    parser.add_argument("--resolve", action="store_true")
    flags, rest = parser.parse_known_args(arguments)
    looks = {argument.partition("=")[0] for argument in rest if argument.startswith("-")}
    if unknown := sorted(looks - LOOKS):
        raise UserError(f"{unknown[0]}: unknown flag; see dpg-train --help")
    if flags.cfg not in (None, "job", "hydra", "all"):
        raise UserError(f"--cfg={flags.cfg}: should be job, hydra or all")
    if flags.cfg is None and (flags.resolve or looks & {"--package", "-p"}):
        raise UserError("--resolve and --package: need --cfg")
    if flags.cfg is not None and flags.multirun:
        raise UserError("--cfg: shows the config of one run; leave out -m")
    if rest[:2] == ["-sc", "query=bash"]:
        _complete()
        return 0
    as_written = flags.cfg == "job" and flags.resolve and not looks
    if looks or (flags.cfg is not None and not as_written):
        hand_over(lambda _: None, [openly(argument) for argument in arguments])
        return 0

    overrides = [openly(override) for override in rest]
    if any(override.partition("=")[0] == "resume" for override in overrides):
        from dpg_cli.cli.resume import resume

        return resume(arguments)
    if flags.config_dir is not None:
        folder = Path(flags.config_dir).resolve()
        if not folder.is_dir():
            raise UserError(f"--config-dir={flags.config_dir}: no such folder")
        overrides.append(f"hydra.searchpath=[{quoted(f'file://{folder}')},'gymnasium://']")

    fixed = configs.without_sweeps(overrides) if flags.multirun else overrides
    composed = configs.compose(fixed)
    if as_written:
        if composed.hydra.mode is RunMode.MULTIRUN:
            given = {override.lstrip("+").partition("=")[0] for override in overrides}
            swept = [f"{key}={v}" for key, v in (composed.hydra.sweeper.params or {}).items() if key not in given]
            if swept:
                note = f"this is a sweep over {' '.join(swept)}; each job also sets one of these values"
                print(f"dpg-train: {note}", file=sys.stderr)
        print(configs.dump(configs.validate(composed)), end="")
        return 0
    if composed.hydra.job.chdir:
        raise UserError("hydra.job.chdir=true: not supported; a run never changes the working directory")
    if flags.multirun or composed.hydra.mode is RunMode.MULTIRUN:
        from dpg_cli.cli.sweep import sweep

        return sweep(overrides, composed)
    return _single(composed)


def _single(composed: "DictConfig") -> int:
    """Train once; returns the exit code."""
    from dpg_cli import config as configs
    from dpg_cli.cli import build, job
    from dpg_cli.cli.disk import check_disk
    from dpg_cli.cli.handover import remove
    from dpg_cli.errors import DiskError, UserError, one_line
    from dpg_cli.storage.atomic import Disk, explaining, write_whole
    from dpg_cli.storage.run_dir import claim, command_line, is_requeued

    checked = configs.validate(composed)
    folder = configs.folder(composed, "hydra.run.dir")
    if is_requeued(folder):
        return _go_on(checked, folder)
    try:
        obs_dim, action_dim = build.check(checked)
    except SystemExit as error:
        raise UserError(f"env.id={checked.env.id}: exited the program when it was created") from error
    check_disk(checked, obs_dim, action_dim, folder)
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
        results.append(job.run(checked, folder, command))

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
    from dpg_cli.cli.resume import go_on
    from dpg_cli.errors import UserError

    if (difference := configs.difference(config, configs.load_from(folder))) is not None:
        raise UserError(f"{difference}, in {folder / 'config.yaml'}, the run that this requeued job started")
    print(f"requeued job {os.environ['SLURM_JOB_ID']}: resuming its own run in {folder}")
    return go_on(config, folder.resolve())


def _help() -> str:
    from dpg_cli.config import GROUPS, choices

    env = "any Gymnasium id with continuous actions, also module:Id"
    lines = [HEAD, "Groups, one choice each"]
    for group in GROUPS:
        text = env if group == "env" else ", ".join(choices(group))
        lines += textwrap.wrap(text, 79, initial_indent=f"  {group:12}", subsequent_indent=" " * 14)
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
    answer = io.StringIO()
    with contextlib.suppress(Exception), contextlib.redirect_stdout(answer):  # messages would garble the prompt
        hand_over(lambda _: None, ["-sc", "query=bash"])
    print(" ".join(f"{word}=" if word in GROUPS else word for word in answer.getvalue().split()))
