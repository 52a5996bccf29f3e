"""The flags of `dpg-train`: its own, and those of Hydra that it has too."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from dpg_cli.errors import UserError

SHELLS = ("bash", "fish", "zsh")
CONFIGS = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise it as a `UserError`."""
        raise UserError(message.removeprefix("argument "))


def split(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags of a command line, and the rest: overrides and unknown flags.

    Raises:
        UserError: a flag lacks its value, or has one that it does not take.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    for names in (("-h", "--help"), ("--version",), ("-m", "--multirun"), ("--resolve",), ("--hydra-help",)):
        parser.add_argument(*names, action="store_true")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-c", "--cfg", choices=CONFIGS)
    parser.add_argument("-p", "--package")
    parser.add_argument("-i", "--info", nargs="?", const="all")
    parser.add_argument("-sc", "--shell-completion", action="store_true")
    flags, rest = parser.parse_known_args(arguments)
    if flags.info is not None and "=" in flags.info:  # an override that follows --info is none of its values
        rest, flags.info = [flags.info, *rest], "all"
    return flags, rest


def check(flags: argparse.Namespace, rest: Sequence[str]) -> None:
    """Check which flags are given together, and that no other is given.

    Raises:
        UserError: names the first wrong one.
    """
    for at, argument in enumerate(rest):
        if argument.startswith("-"):
            raise UserError(f"{argument.partition('=')[0]}: unknown flag; {_right_form(argument, rest[at + 1 :])}")
    if flags.info not in (None, *INFO):
        raise UserError(f"--info={flags.info}: should be one of {', '.join(INFO)}")
    if flags.cfg is None and (flags.resolve or flags.package is not None):
        raise UserError("--resolve and --package: need --cfg")
    if flags.cfg is not None and flags.multirun:
        raise UserError("--cfg: shows the config of one run; leave out -m")
    one_of = {"-m": flags.multirun, "--cfg": flags.cfg, "--info": flags.info, "--hydra-help": flags.hydra_help}
    given = [name for name, value in (one_of | {"-sc": flags.shell_completion}).items() if value]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]}: cannot be given together")
    if flags.shell_completion:
        action, _, shell = rest[0].partition("=") if len(rest) == 1 else ("", "", "")
        if action not in ("install", "uninstall", "query") or shell not in SHELLS:
            raise UserError(f"-sc: takes install=SHELL or uninstall=SHELL; SHELL is {', '.join(SHELLS)}")


def for_hydra(flags: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    """The command line for Hydra, which accepts overrides only side by side."""
    values = {"--cfg": flags.cfg, "--package": flags.package, "--info": flags.info}
    switches = {"--resolve": flags.resolve, "--hydra-help": flags.hydra_help, "-sc": flags.shell_completion}
    given = [f"{name}={value}" for name, value in values.items() if value is not None]
    return [*given, *(name for name, value in switches.items() if value), *overrides]


def _right_form(flag: str, following: Sequence[str]) -> str:
    """How to give the key that an unknown flag means, as other programs have it."""
    from dpg_cli.config import GROUPS, TrainConfig, counterpart

    name, equals, value = flag.lstrip("-").partition("=")
    if not equals:
        value = next((word for word in following[:1] if not word.startswith("-") and "=" not in word), "...")
    found = counterpart(name := name.replace("-", "_"))
    if found is not None and found.remark:
        return f"use {' and '.join(found.keys)}, {found.remark}"
    known = name.partition(".")[0] in (*GROUPS, *TrainConfig.model_fields, "resume")
    keys = found.keys if found is not None else (name,) if known else ()
    return (
        f"write {' '.join(key if '=' in key else f'{key}={value}' for key in keys)}" if keys else "see dpg-train --help"
    )
