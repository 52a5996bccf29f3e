"""The jobs of a sweep."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from hydra.core.override_parser.types import Override, RangeSweep
from omegaconf import DictConfig

from dpg_cli.config.composition import has_basic_sweeper, select
from dpg_cli.config.overrides import parse
from dpg_cli.errors import UserError

MAX_JOBS = 10_000  # all are composed and checked before the first starts


def without_sweeps(overrides: Sequence[str]) -> list[str]:
    """The overrides that have one value.

    Raises:
        UserError: the syntax is wrong.
    """
    return [text for text, parsed in zip(overrides, parse(overrides), strict=True) if not parsed.is_sweep_override()]


def of_preset(composed: DictConfig) -> Mapping[str, str]:
    """What a preset sweeps over: the values of each key, as they are written in an override.

    Raises:
        UserError: `hydra.sweeper.params` cannot be resolved, or is no mapping.
    """
    params = select(composed, "hydra.sweeper.params") or {}
    if not isinstance(params, Mapping):
        raise UserError(f"hydra.sweeper.params={params}: must be a mapping of keys to values")
    return params


def without_hydra(overrides: Sequence[str]) -> list[str]:
    """The overrides of a job except those of Hydra itself, which could import a stranger's modules.

    A search path stays if it names folders only.
    """

    def is_safe(text: str) -> bool:
        folders = text.startswith("hydra.searchpath=") and not re.search(r"pkg:|\$", text)
        return folders or not re.match(r"[+~]*hydra([/.@=:]|$)", text)

    return list(filter(is_safe, overrides))


def combinations(overrides: Sequence[str], composed: DictConfig) -> Iterator[list[str]]:
    """The overrides of each job of a sweep.

    Only the jobs of Hydra's own sweeper are known beforehand. For any other sweeper, the one item holds the overrides
    that all jobs share.

    Raises:
        UserError: the syntax is wrong, a key has a range of values but no list of them, or there are too many jobs.
    """
    if not has_basic_sweeper(composed):
        yield without_sweeps(overrides)
        return
    texts = [f"{key}={value}" for key, value in of_preset(composed).items()]
    axes: dict[str, list[str]] = {}
    for text, parsed in zip([*texts, *overrides], [*parse(texts), *parse(overrides)], strict=True):
        key = parsed.get_key_element()
        axes[key] = [f"{key}={value}" for value in _values(text, parsed)]
    if (jobs := math.prod(map(len, axes.values()))) > MAX_JOBS:
        raise UserError(f"-m: the sweep has {jobs:,} jobs; the limit is {MAX_JOBS:,}")
    yield from (list(combination) for combination in itertools.product(*axes.values()))


def _values(text: str, parsed: Override) -> list[str]:
    """The values of a key, each as it is written in an override."""
    if parsed.is_interval_sweep():
        raise UserError(f"{text}: has no list of values; write choice(a,b,...) or range(start,stop,step)")
    if not parsed.is_sweep_override():
        return [parsed.get_value_element_as_str()]
    if isinstance(swept := parsed.value(), RangeSweep):
        start, stop, step = (float(number or 0) for number in (swept.start, swept.stop, swept.step))
        if step == 0:
            raise UserError(f"{text}: the step must not be 0")
        if not (stop - start) / step <= MAX_JOBS:  # NaN too
            raise UserError(f"{text}: more than {MAX_JOBS:,} values")
    return list(parsed.sweep_string_iterator())
