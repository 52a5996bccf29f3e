"""The names of a run on the terminal, in TensorBoard and on disk."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dpg_cli.config import TrainConfig
from dpg_cli.environments.make import newer_version


class Label(NamedTuple):
    """The label of a job of a sweep."""

    position: str  # such as "[3/4] job 2"
    differs: str  # the settings that differ between jobs, such as "algo=td3 seed=0"


@dataclass(frozen=True)
class Names:
    """The names of a run.

    Attributes:
        title: what is trained, in one line.
        position: of the job in its sweep; empty for a single run.
        seeds: one per member.
        folders: one per member.
        curves: one name per member, for TensorBoard's HParams tab.
    """

    title: str
    position: str
    seeds: Sequence[int]
    folders: Sequence[Path]
    curves: Sequence[str]


def names_of(config: TrainConfig, folder: Path, label: Label | None = None) -> Names:
    """The names of a run.

    Args:
        config: of the run.
        folder: the run folder; with several seeds, the parent of theirs.
        label: of the job, if it is part of a sweep.
    """
    what = f"{config.algo['name']} on {config.env.id}" + (", offline" if config.offline else "")
    seeds, folders = members(config, folder)
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}, mean ± spread over seeds"
    newest = newer_version(config.env.id)
    job = " ".join(filter(None, label)) + ": " if label else ""
    title = f"{job}{what}, {which}" + (f" (the newest version is {newest})" if newest else "")
    # The settings that differ come first. The folder at the end keeps names unique.
    where = f"({'/'.join(folder.parts[-2:])})"
    differs = (label.differs if label else "") or what
    curves = [f"{name} {where}" for name in member_names(differs, seeds)]
    return Names(title, label.position if label else "", seeds, folders, curves)


def settings_that_differ(overrides: Sequence[str], common: Set[str]) -> str:
    """The overrides of a run except those that all runs have, such as `algo=td3 seed=0`."""
    return " ".join(override.lstrip("+") for override in overrides if override not in common)


def member_names(differs: str, seeds: Sequence[int]) -> list[str]:
    """The settings that differ, for each member. If there are several, with the member's own seed."""
    return [differs] if len(seeds) == 1 else [f"{without_seed(differs)} seed={seed}".strip() for seed in seeds]


def without_seed(differs: str) -> str:
    """The settings that differ, except the seed."""
    return " ".join(setting for setting in differs.split(" ") if not setting.startswith("seed="))


def members(config: TrainConfig, folder: Path) -> tuple[Sequence[int], list[Path]]:
    """The seeds of a run, and the run folder of each."""
    seeds = range(config.seed, config.seed + config.num_seeds)
    return seeds, [folder] if config.num_seeds == 1 else [folder / f"seed_{seed}" for seed in seeds]
