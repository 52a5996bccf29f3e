"""What a script has measured, as a JSON file beside the machine that it was measured on."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from dpg_cli.cli.machine import affinity
from dpg_cli.errors import UserError


def machine() -> dict[str, Any]:
    """Where a figure comes from."""
    return {
        "platform": platform.platform(),
        "cores": affinity(),
        "load": os.getloadavg(),
        "torch": torch.__version__,
    }


def check_files(values: dict[str, str], *keys: str) -> None:
    """Reject files that cannot be written before anything is measured for them.

    Raises:
        UserError: the key, and why not.
    """
    for key in keys:
        try:
            if key in values:
                Path(values[key]).open("ab").close()
        except OSError as error:
            raise UserError(f"{key}={values[key]}: {error.strerror}") from error


def write(values: dict[str, str], result: dict[str, Any]) -> None:
    """The result as JSON, where `out=` says."""
    if "out" in values:
        Path(values["out"]).write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n", encoding="utf-8")
