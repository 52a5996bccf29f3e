"""Errors of pydantic, Hydra and OmegaConf as one line that names the key, its value and what is expected."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import MissingConfigException
from pydantic import BaseModel, ValidationError

from dpg_cli.config.names_elsewhere import CHOICES, Counterpart, counterpart
from dpg_cli.config.tree import GROUPS, NAMED, choices, keys_by_choice
from dpg_cli.errors import first_line

HIDDEN_SIZES = {  # the keys that take the place of algo.hidden_sizes, by the choice of networks
    "simba": Counterpart(("network.actor_size", "network.critic_size")),
    "layer_norm": Counterpart(("network.actor_sizes", "network.critic_sizes"), "such as [256,256]"),
}


class Known(NamedTuple):
    """What there is to choose from.

    Attributes:
        keys: all valid ones.
        chosen: the names of the choices whose keys are among them, by group.
    """

    keys: Sequence[str]
    chosen: Mapping[str, str]


def explain(error: Exception, known: Callable[[], Known], folders: Sequence[Path]) -> str:
    """An error of Hydra or OmegaConf as one line that names the key.

    Args:
        error: theirs.
        known: called if a key is unknown.
        folders: of the user's own YAML files.
    """
    text = first_line(error)
    if isinstance(error, MissingConfigException) and (match := re.search(r"Could not find '([^']*)'", str(error))):
        return _missing(match[1], error.options or (), folders)
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match[1], known())
    if match := re.search(r"Ambiguous value for argument '(.+)'", text):
        return f"{match[1]}: several values; add -m to sweep over them, or write a list as key=[a,b]"
    if match := re.search(r"Sweep parameters '(.+)' requires --multirun", text):
        return f"{match[1]}: several values; add -m to sweep over them"
    if isinstance(error, RecursionError):
        return "a value is nested too deeply"
    return text if str(error).strip() else f"not a valid config: {text}"


def not_a_choice(group: str, value: str, folders: Sequence[Path], of_hydra: Sequence[str]) -> str:
    """The message about a value that names no file of a group.

    Args:
        group: such as `algo` or `hydra/launcher`.
        value: given to it.
        folders: of the user's own YAML files.
        of_hydra: the choices if it is a group of Hydra's own.
    """
    if group == "env":
        return f"env={value}: must be a Gymnasium id, such as Hopper-v5, or module:Id"
    names = choices(group, folders) if group in GROUPS else of_hydra
    use = CHOICES.get(group, {}).get(value.lower())
    return f"{group}={value}: must be one of {', '.join(names)}{f'; use {use}' if use else _closest(value, names)}"


def describe(model: type[BaseModel], error: ValidationError, prefix: str) -> str:
    """The first error of pydantic as one line. `prefix` is that of the model's keys, such as `algo.`."""
    first, *others = error.errors()
    if first["type"] == "extra_forbidden":
        chosen = {prefix[:-1]: model.__name__} if prefix else {}
        *parents, name = (str(part) for part in first["loc"])
        for parent in parents:
            annotation = model.model_fields[parent].annotation
            assert isinstance(annotation, type)
            model = annotation
        prefix += "".join(f"{parent}." for parent in parents)
        return unknown_key(prefix + name, Known([prefix + field for field in model.model_fields], chosen))
    key, expected = _key(first["loc"]), _expectation(first)
    for other in others:  # the other branches of a union
        if _key(other["loc"]) == key:
            expected += f" or {_expectation(other).removeprefix('should be ')}"
    if first["type"] == "missing":
        return f"{prefix}{key}: missing"
    return f"{prefix}{key}={'null' if first['input'] is None else first['input']}: {expected}"


def unknown_key(key: str, known: Known) -> str:
    """The message about an unknown key: which algorithm has it, what to use in its place, or the closest key."""
    if owner := _owner(key, known.chosen):
        return f"{key}: {owner}"
    if (found := counterpart(key)) and not key.startswith("hydra"):
        if found.keys == ("algo.hidden_sizes",):
            found = HIDDEN_SIZES.get(known.chosen.get("network", ""), found)
        return f"{key}: unknown key; use {_with_remarks(found, known.chosen)}"
    names = {f"{group}.name" for group in NAMED}  # which only the group sets
    keys = [k for k in known.keys if key.startswith("hydra") or not k.startswith("hydra")]
    elsewhere = [f"{group}.{name}" for group in known.chosen for name in keys_by_choice(group)]
    keys, elsewhere = ([k for k in some if k not in names] for some in (keys, elsewhere))
    group, _, last = key.rpartition(".")  # perhaps only the group is missing or wrong
    close = [k for k in [*keys, *elsewhere] if k.rpartition(".")[2] == last and k != key]
    close.sort(key=lambda k: k.count("."))
    if not close and group in NAMED:  # else the closest may be the group itself
        keys = [k for k in keys if k.startswith(f"{group}.")]
        close = _close(key, keys) or _close(key, [k for k in elsewhere if k.startswith(f"{group}.")])
    elif not close:
        close = _close(key, keys)
    if not close:
        return f"{key}: unknown key"
    return f"{key}: unknown key; did you mean {_with_remarks(Counterpart((close[0],)), known.chosen)}?"


def _with_remarks(found: Counterpart, chosen: Mapping[str, str]) -> str:
    """The keys, and which choice has them if it is another than the chosen ones."""
    given = dict(key.split("=") for key in found.keys if "=" in key)
    owners = dict.fromkeys(_owner(key, {**chosen, **given}) for key in found.keys)
    if len(found.keys) > 1 and len(owners) == 1:
        owners = {owner.replace("a key of", "keys of", 1): None for owner in owners}
    return ", ".join([" and ".join(found.keys), *filter(None, [found.remark, *owners])])


def _missing(path: str, options: Sequence[str], folders: Sequence[Path]) -> str:
    """The message about a file that does not exist, such as `noise/oui` or `hydra/launcher/nix`."""
    group, _, name = path.partition("/")
    if group == "hydra":
        group, _, name = path.rpartition("/")
    elif group not in GROUPS:
        return f"{group}={name}: unknown key"
    return not_a_choice(group, name, folders, options)


def _owner(key: str, chosen: Mapping[str, str]) -> str:
    """Which other algorithm or noise has a key, such as `a key of algo=td3, not of algo=ddpg`; empty if none has."""
    group, _, name = key.partition(".")
    owners = keys_by_choice(group).get(name, []) if group in chosen else []
    if not owners or chosen[group] in owners:
        return ""
    *others, last = (f"{group}={owner}" for owner in owners)
    found = f"{', '.join(others)} and {last}" if others else last
    return f"a key of {found}, not of {group}={chosen[group]}"


def _key(location: Iterable[int | str]) -> str:
    # Pydantic marks a union's branch by a part of the location that is not an identifier.
    return ".".join(str(part) for part in location if isinstance(part, int) or str(part).isidentifier())


def _expectation(error: Mapping[str, Any]) -> str:
    if error["type"] == "string_pattern_mismatch":
        return "should be auto, cpu, cuda or cuda:N"
    return str(error["msg"]).replace("Input should be", "should be")


def _close(word: str, known: Iterable[str]) -> list[str]:
    return [other for other in difflib.get_close_matches(word.lower(), known, n=2, cutoff=0.6) if other != word]


def _closest(word: str, known: Iterable[str]) -> str:
    close = _close(word, known)
    return f"; did you mean {close[0]}?" if close else ""
