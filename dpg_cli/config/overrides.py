"""Overrides in Hydra's grammar: parse them, with messages that show the right form."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from dpg_cli.config.messages import not_a_choice
from dpg_cli.config.tree import GROUPS, NAMED, config_dir
from dpg_cli.errors import UserError


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides and check those of groups.

    Raises:
        UserError: the syntax is wrong, or the value of a group cannot be the name of a choice.
    """
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()  # for glob(...), which asks for a group's choices
        parsed = [_parse(text, loader) for text in overrides]
        for text, override in zip(overrides, parsed, strict=True):
            if is_group(override):
                _check_group(text, override, loader, overrides)
            group, _, leaf = override.key_or_group.partition(".")
            if group in NAMED and leaf == "name":
                raise UserError(f"{text}: set by {group}=; use {group}={text.partition('=')[2]}")
    return parsed


def check_given_once(overrides: Sequence[str]) -> None:
    """Reject a group that is given twice.

    Raises:
        UserError: names both.
    """
    given: dict[str, str] = {}
    for text, override in zip(overrides, parse(overrides), strict=True):
        key = override.get_key_element().lstrip("+~")
        if is_group(override) and key in given:
            raise UserError(f"{given[key]} {text}: {key} is given twice")
        given[key] = text


def is_group(override: Override) -> bool:
    """Whether an override chooses an option of a group."""
    return override.key_or_group in GROUPS or "/" in override.key_or_group


def parse_value(key: str, text: str) -> Any:
    """Parse a value with Hydra's grammar, so that `resume=` accepts the same values as a new run.

    Raises:
        UserError: the syntax is wrong, or there are several values.
    """
    parsed = _parse(f"{key}={text}")
    if parsed.is_sweep_override():
        raise UserError(f"{key}={text}: takes one value, not several")
    return parsed.value()


def search_folders(overrides: Sequence[str]) -> list[Path]:
    """The folders of the user's own YAML files that `hydra.searchpath` names."""
    key = "hydra.searchpath"
    given = [parse_value(key, text.partition("=")[2]) for text in overrides if text.startswith(f"{key}=")]
    places = [str(place) for value in given if isinstance(value, list) for place in value]
    return [Path(place.removeprefix("file://")) for place in places if place.startswith("file://")]


def check_spaces(arguments: Sequence[str]) -> None:
    """Reject the parts of a list or of `key = value` that a user typed with spaces and without quotes.

    Raises:
        UserError: shows the right form.
    """
    for at, argument in enumerate(arguments):
        rest = list(arguments[at + 1 :])
        if "=" in argument and _open_brackets(argument) > 0:
            for end in range(1, len(rest) + 1):
                whole = " ".join([argument, *rest[:end]])
                if _open_brackets(whole) == 0:
                    raise UserError(f"{whole}: the shell splits it at its spaces; write {shlex.quote(whole)}")
        elif "=" in argument and argument.endswith(",") and rest and "=" not in rest[0]:
            parts = [argument]
            while rest and parts[-1].endswith(","):
                parts.append(rest.pop(0))
            raise UserError(f"{' '.join(parts)}: the shell splits it at its spaces; write {''.join(parts)}")
        elif " " in argument:
            continue
        elif match := re.match(r"([^\s=]+)(?: = ?|= (?!\S*=))(\S+)", " ".join([argument, *rest[:2]])):
            raise UserError(f"{match[0]}: write {match[1]}={match[2]}, without spaces")


def _check_group(text: str, override: Override, loader: ConfigLoader, overrides: Sequence[str]) -> None:
    """Reject values on which Hydra fails without naming the key."""
    group, value = override.key_or_group, text.partition("=")[2]
    if override.is_sweep_override() or override.is_delete():
        return
    if group in GROUPS and override.is_add():
        raise UserError(f"{text}: write {text.lstrip('+')}")
    given = override.value()
    names = given if isinstance(given, list) else [given]
    if not names or not all(isinstance(name, str) for name in names):
        of_hydra = loader.get_group_options(group, ObjectType.CONFIG)
        raise UserError(not_a_choice(group, value, search_folders(overrides), of_hydra))


def _parse(text: str, loader: ConfigLoader | None = None) -> Override:
    try:
        return OverridesParser.create(loader).parse_overrides([text])[0]
    except Exception as error:  # HydraException, and what its functions raise for odd values
        raise UserError(f"{text}: {_problem(text, str(error))}") from error


def _problem(text: str, error: str) -> str:
    """Why Hydra cannot parse an override, and its right form if there is one.

    Args:
        text: the override.
        error: Hydra's message, mostly in the terms of its parser.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if match := re.search(r"while evaluating '.*': (.+)", error):
        return match[1]
    if not equals:
        return "not of the form key=value"
    if _is_valid(stripped := f"{key}={value}"):
        return f"write {shlex.quote(stripped)}, without spaces around the key"
    if _open_brackets(value) != 0:
        return "a bracket or a quote is not closed"
    if re.search(r"(^|[\[{(,])\s*,|,\s*($|[\]})])", value):
        return "a value is missing before or after a comma"
    if _is_valid(quoted := f'{key}="{value}"'):
        return f"not of the form key=value; quote this value: {shlex.quote(quoted)}"
    return "not of the form key=value"


def _is_valid(text: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([text])
    except Exception:
        return False
    return True


def _open_brackets(text: str) -> int:
    """How many brackets and quotes are still open at the end of a text."""
    text = re.sub(r"""(["'])(?:\\.|(?!\1).)*\1""", "", text)  # without its quoted parts
    return sum(text.count(opening) for opening in "[{('\"") - sum(text.count(closing) for closing in "]})")
