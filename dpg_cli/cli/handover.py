"""Handing over to Hydra's own command line."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dpg_cli.config import config_dir, user_error


def hand_over(task: Callable[[DictConfig], Any], arguments: Sequence[str]) -> None:
    """Run Hydra's own command line, with errors as exceptions.

    Raises:
        UserError: Hydra complains.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise user_error(error, arguments) from error


def openly(override: str) -> str:
    """An override as Hydra takes it: the keys of `env.kwargs` are open, and need no `+`."""
    return f"++{override}" if override.startswith("env.kwargs.") else override


def quoted(value: object) -> str:
    """A string in Hydra's grammar."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def remove(folder: Path) -> None:
    """Remove a folder in which Hydra failed before any training, as for a log level that does not exist."""
    logging.shutdown()  # Hydra's file, which no logger has if it failed between the two
    shutil.rmtree(folder)
