"""Hand over to Hydra's own command line."""

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal import hydra as hydra_internals
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dpg_cli.cli.arguments import readable
from dpg_cli.config import config_dir, register, user_error
from dpg_cli.errors import UserError, one_line


def hand_over(task: Callable[[DictConfig], Any], arguments: Sequence[str]) -> None:
    """Run Hydra's own command line.

    Raises:
        UserError: Hydra reports an error.
        Exception: the task raised it.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *arguments]
    internals: Any = hydra_internals
    internals.ConfigLoaderImpl = Loader
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise user_error(error, arguments) from error
    finally:
        internals.ConfigLoaderImpl = ConfigLoaderImpl


class Loader(ConfigLoaderImpl):
    """Hydra's, also in the processes of other launchers, where Hydra loads its plugins again and forgets ours."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """As Hydra's."""
        register()
        return super().load_sweep_config(master_config, sweep_overrides)


@contextlib.contextmanager
def without_second_check() -> Iterator[None]:
    """While active, Hydra's sweeper does not compose every job beforehand, which `Plan.check` has done.

    It takes a tenth of a second a job.
    """
    check = Sweeper.validate_batch_is_legal
    Sweeper.validate_batch_is_legal = lambda self, batch: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = check  # type: ignore[method-assign]


def show(arguments: Sequence[str]) -> int:
    """Let Hydra print something; returns the exit code. No task runs, so every error is the command line's.

    Raises:
        UserError: Hydra cannot print it.
    """
    try:
        with readable():
            hand_over(lambda _: None, arguments)
    except UserError:
        raise
    except SystemExit as ended:
        return 2 if ended.code else 0
    except Exception as error:
        raise UserError(f"hydra: {type(error).__name__}: {one_line(error)}") from error
    return 0


def with_joined_folders(override: str) -> str:
    """The override of a single run, in which `dataset=a,b` names two folders; Hydra would take it for a sweep."""
    key, _, value = override.partition("=")
    return f"{key}={quoted(value)}" if key == "dataset" and "," in value and value[0] not in "'\"[" else override


def openly(override: str) -> str:
    """The override in Hydra's form. Any key of `env.kwargs` can be set, and users need not write `+`."""
    return f"++{override}" if override.startswith("env.kwargs.") else override


def quoted(value: object) -> str:
    """A quoted string in Hydra's grammar."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def remove(folder: Path) -> None:
    """Remove a folder in which Hydra failed before any training, for example because of an unknown log level."""
    logging.shutdown()  # closes Hydra's log file, which has no logger yet if Hydra failed before attaching it
    shutil.rmtree(folder)
