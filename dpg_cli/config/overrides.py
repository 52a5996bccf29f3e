"""Overrides in Hydra's grammar: single values, and the jobs of a sweep."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from dpg_cli.config.composition import has_basic_sweeper, user_error
from dpg_cli.config.messages import first_line
from dpg_cli.config.tree import config_dir
from dpg_cli.errors import UserError


def parse_value(key: str, text: str) -> Any:
    """Parse a value with Hydra's grammar, so that `resume=` accepts the same values as a new run.

    Raises:
        UserError: the syntax is wrong, or there are several values.
    """
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        raise UserError(f"{key}={text}: {first_line(error)}") from error
    if parsed.is_sweep_override():
        raise UserError(f"{key}={text}: takes one value, not several")
    return parsed.value()


def without_sweeps(overrides: Sequence[str]) -> list[str]:
    """The overrides that have one value.

    Raises:
        UserError: the syntax is wrong.
    """
    return [text for text, parsed in zip(overrides, _parse(overrides), strict=True) if not parsed.is_sweep_override()]


def combinations(overrides: Sequence[str], composed: DictConfig) -> Iterator[list[str]]:
    """The overrides of each job of a sweep.

    Only the jobs of Hydra's own sweeper are known beforehand. For any other sweeper, the one item holds the overrides
    that all jobs share.

    Raises:
        UserError: the syntax is wrong.
    """
    if not has_basic_sweeper(composed):
        yield without_sweeps(overrides)
        return
    params = [f"{key}={value}" for key, value in (composed.hydra.sweeper.params or {}).items()]
    axes: dict[str, list[str]] = {}
    texts = [*params, *overrides]
    for parsed in _parse(texts):
        key = parsed.get_key_element()
        if parsed.is_discrete_sweep():
            axes[key] = [f"{key}={value}" for value in parsed.sweep_string_iterator()]
        else:
            axes[key] = [f"{key}={parsed.get_value_element_as_str()}"]
    yield from (list(combination) for combination in itertools.product(*axes.values()))


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()  # for glob(...), which asks for a group's choices
            return OverridesParser.create(loader).parse_overrides(list(overrides))
    except HydraException as error:
        raise user_error(error, overrides) from error
