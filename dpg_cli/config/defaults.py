"""The defaults of this version, for configs that an earlier version wrote."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from dpg_cli.config.tree import NAMED, config_dir
from dpg_cli.storage.untrusted import read_yaml

WITHOUT_NAME = {"network": "mlp", "replay": "uniform"}  # what runs from before these groups have


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config with the keys that it lacks: those added since it was written, with their defaults.

    Keys whose default depends on others are left out. A config that has less than half of the keys was written by
    another program, and stays as it is.

    Args:
        config: by dotted key, such as `algo.tau`.
    """
    found = dict(defaults("", "train"))
    for group in NAMED:
        found |= defaults(group, str(config.get(f"{group}.name", WITHOUT_NAME.get(group))))
    return found | dict(config) if len(found.keys() & config.keys()) > len(found) / 2 else dict(config)


@functools.cache
def defaults(group: str, name: str) -> dict[str, Any]:
    """The defaults of a choice of a group, or of `train.yaml`, by dotted key; empty if there is no such file."""
    path = config_dir() / group / f"{name}.yaml"
    known = path in (config_dir() / group).glob("*.yaml")  # the name comes from a run folder, perhaps a stranger's
    return _plain(read_yaml(path), f"{group}." if group else "") if known else {}


def _plain(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _plain(value, f"{prefix}{key}.")
        elif key != "defaults" and not (isinstance(value, str) and "${" in value):
            found[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else _number(value)
    return found


def _number(value: Any) -> Any:
    """YAML takes `1e-3`, without a point, for a string."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+e-?\d+", value) else value
