"""The launcher of a resumed sweep, from the command that the sweep was started with, which may be a stranger's."""

import re
import shlex
from collections.abc import Sequence

from dpg_cli.cli import handover
from dpg_cli.errors import UserError, one_line
from dpg_cli.sweeps.record import SweepFile

PREFIX = "hydra.launcher."
LAUNCHERS = ("basic", "local", "slurm", "ray", "joblib", "submitit_local", "submitit_slurm")
# Options that are taken over. The others could run commands of a stranger's sweep.
OPTIONS = (
    *("n_jobs", "retries", "fail_fast", "gpus"),
    *("partition", "account", "qos", "constraint", "exclude", "cpus_per_task", "mem_gb", "mem_per_cpu"),
    *("gpus_per_node", "gres", "timeout_min", "signal_delay_s", "max_num_timeout", "array_parallelism"),
    *("ray.init.num_cpus", "ray.init.num_gpus", "ray.remote.num_cpus", "ray.remote.num_gpus", "ray.remote.memory"),
    *("ray.remote.max_retries", "ray.remote.scheduling_strategy"),
)
PLAIN = re.compile(r"[\w.,:+@%/&|*-]{1,200}")  # no quotes, spaces or interpolations
NUMBER = re.compile(r"-?\d+(\.\d+)?|true|false|null|\[\d+(,\d+)*\]")


def launcher_of(file: SweepFile) -> list[str]:
    """The overrides that choose the launcher of the sweep's command, with its options.

    Raises:
        UserError: the launcher is not a known one.
    """
    if file.launcher not in LAUNCHERS:
        name = one_line(file.launcher)
        raise UserError(f"the sweep was started with hydra/launcher={name}; add hydra/launcher= to this command")
    taken = []
    if not any(text.startswith("hydra/launcher=") for text in file.command) and file.launcher != "basic":
        print(f"note: options of hydra/launcher={file.launcher} that come from a preset are not taken from the sweep")
    for text in filter(_is_option, file.command):
        key, value = _key(text), text.partition("=")[2]
        value = value[1:-1] if re.fullmatch(r"'[^']*'|\"[^\"]*\"", value) else value
        if key in OPTIONS and NUMBER.fullmatch(value):
            taken.append(f"{PREFIX}{key}={value}")
        elif key in OPTIONS and PLAIN.fullmatch(value):
            taken.append(f"{PREFIX}{key}={handover.quoted(value)}")
        else:
            print(f"note: {one_line(text)} is not taken from the sweep's command; add it to this one if it is needed")
    return [f"hydra/launcher={file.launcher}", *taken]


def to_give_again(command: Sequence[str]) -> str:
    """The options of a command that resuming its sweep does not take over, for the line that says how to resume."""
    options = [text for text in filter(_is_option, command) if _key(text) not in OPTIONS]
    return "".join(f" {shlex.quote(text)}" for text in options)


def _is_option(text: str) -> bool:
    return text.lstrip("+").startswith(PREFIX)


def _key(text: str) -> str:
    return text.lstrip("+").removeprefix(PREFIX).partition("=")[0]
