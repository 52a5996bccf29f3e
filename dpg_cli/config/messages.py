"""Errors of pydantic, Hydra and OmegaConf as one line that names the key, its value and what is expected."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hydra.errors import OverrideParseException
from pydantic import BaseModel, ValidationError

from dpg_cli.config.tree import choices


def explain(error: Exception, known_keys: Callable[[], Sequence[str]]) -> str:
    """An error of Hydra or OmegaConf as one line that names the key.

    Args:
        error: theirs.
        known_keys: called for all valid keys if a key is unknown.
    """
    text = first_line(error)
    if match := re.search(r"Could not find '(\w+)/([^']+)'", str(error)):
        group, name = match.groups()
        known = choices(group)
        return f"{group}={name}: must be one of {', '.join(known)}{_closest(name, known)}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1].partition("@")[0], known_keys())
    if match := re.search(r"Ambiguous value for argument '(.+)'", text):
        return f"{match[1]}: several values; add -m to sweep over them, or write a list as key=[a,b]"
    if match := re.search(r"Error parsing override '(.+)'", text):
        return f"{match[1]}: not of the form key=value ({str(error).splitlines()[1].strip()})"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value ({text})"
    return text


def describe(model: type[BaseModel], error: ValidationError, prefix: str) -> str:
    """The first error of pydantic as one line. `prefix` is that of the model's keys, such as `algo.`."""
    first, *others = error.errors()
    if first["type"] == "extra_forbidden":
        *parents, name = (str(part) for part in first["loc"])
        for parent in parents:
            annotation = model.model_fields[parent].annotation
            assert isinstance(annotation, type)
            model = annotation
        prefix += "".join(f"{parent}." for parent in parents)
        return _unknown_key(prefix + name, [prefix + field for field in model.model_fields])
    key, expected = _key(first["loc"]), _expectation(first)
    for other in others:  # the other branches of a union
        if _key(other["loc"]) == key:
            expected += f" or {_expectation(other).removeprefix('should be ')}"
    if first["type"] == "missing":
        return f"{prefix}{key}: missing"
    return f"{prefix}{key}={first['input']}: {expected}"


def _key(location: Iterable[int | str]) -> str:
    # Pydantic marks a union's branch by a part of the location that is not an identifier.
    return ".".join(str(part) for part in location if isinstance(part, int) or str(part).isidentifier())


def _expectation(error: Mapping[str, Any]) -> str:
    if error["type"] == "string_pattern_mismatch":
        return "should be auto, cpu, cuda or cuda:N"
    return str(error["msg"]).replace("Input should be", "should be")


def _unknown_key(key: str, known: Iterable[str]) -> str:
    return f"{key}: unknown key{_closest(key, known)}"


def _closest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:  # perhaps only the group before the dot is missing or wrong
        last = word.rpartition(".")[2]
        close = [k for k in known if k.rpartition(".")[2] == last][:1]
    return f"; did you mean {close[0]}?" if close else ""


def first_line(error: object) -> str:
    """The first non-empty line of a message, or the name of the error's type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
