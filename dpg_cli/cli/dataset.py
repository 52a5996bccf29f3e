"""`dataset=`: read what a run learns from offline, run folders that may come from strangers or a Minari data set."""

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpg_cli import config as configs
from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.cli.machine import available_memory
from dpg_cli.config import TrainConfig
from dpg_cli.dataset import Assembly, Dataset, InvalidDataError, memory, places_by_environment
from dpg_cli.environments import minari_data
from dpg_cli.environments.group import Env
from dpg_cli.environments.make import FlatEnv
from dpg_cli.errors import UserError, one_line
from dpg_cli.precision import PRECISIONS
from dpg_cli.storage import checkpoint
from dpg_cli.storage.checkpoint import Loaded

MINARI = "minari:"
FLAGS = ("terminated", "truncated")


def check_dataset(config: TrainConfig) -> None:
    """Check, without an environment and without reading transitions, that this run has a data set if it needs one.

    Raises:
        UserError: it has none, or a run folder of it does not exist.
    """
    name = str(config.algo["name"])
    if config.dataset is None and ALGORITHMS[name].offline_only:
        raise UserError(f"algo={name}: learns offline; add dataset=RUN_DIR or dataset=minari:NAME")
    if config.dataset is not None:
        _sources(config.dataset)


def read_dataset(config: TrainConfig, env: Env) -> Dataset | None:
    """The data set that `config` names; None if it names none.

    Args:
        config: of the run.
        env: one of its environments.

    Raises:
        UserError: a source is missing, damaged, written by another version, or empty, or does not fit the environment
            or the memory; or there are fewer transitions than a batch.
    """
    check_dataset(config)
    if config.dataset is None:
        return None
    assert isinstance(env, FlatEnv)
    folders, name = _sources(config.dataset)
    if name is not None:
        dataset = minari_data.read(name, env, lambda count: _assembly(config, count, env))
    else:
        dataset = _of_runs(config, folders, env)
    if len(dataset) < (batch_size := config.algo["batch_size"]):
        raise UserError(
            f"dataset={config.dataset}: has {len(dataset):,} transitions, fewer than algo.batch_size={batch_size}"
        )
    return dataset


def dataset_notes(config: TrainConfig, dataset: Dataset) -> list[str]:
    """What a run says about its data set, one line each."""
    lines = [dataset.describe()]
    if others := [env_id for env_id in dataset.env_ids if env_id != config.env.id]:
        lines.append(f"the data set is of {', '.join(map(one_line, others))}; evaluations are on {config.env.id}")
    if dataset.clipped:
        outside = f"outside the bounds of {config.env.id}, and are clipped"
        lines.append(f"{dataset.clipped:,} action components of the data set are {outside}")
    return lines


def bytes_on_disk(config: TrainConfig) -> int:
    """The bytes of the shards of its run folders, which are about those that they take in memory; 0 for Minari."""
    folders, _ = _sources(str(config.dataset))
    return sum(path.stat().st_size for folder in folders for path in (folder / "replay").glob("*.npy"))


def check_same(config: TrainConfig, dataset: Dataset, starts: Sequence[Loaded]) -> None:
    """Check that a run resumes with the data set that it has learned from.

    Raises:
        UserError: it is another one.
    """
    for start in starts:
        if start.state.get("dataset") != dataset.digest:
            raise UserError(
                f"dataset={config.dataset}: its transitions are not those that this run has learned from; if the run "
                "folder was trained further, restore the old one"
            )


def _sources(dataset: str) -> tuple[list[Path], str | None]:
    """The members' run folders, or the name of the Minari data set.

    Raises:
        UserError: a folder is missing or given twice, or both kinds are given.
    """
    items = dataset.split(",")
    if any(item.startswith(MINARI) for item in items):
        if len(items) > 1:
            raise UserError(f"dataset={dataset}: takes run folders or one Minari data set")
        if dataset == MINARI:
            raise UserError("dataset=minari: names no data set; use dataset=minari:NAME")
        return [], dataset.removeprefix(MINARI)
    folders: list[Path] = []
    for root in map(Path, items):
        if not root.is_dir():
            hint = "; for Minari write minari:NAME" if root.name == "minari" else ""
            raise UserError(f"dataset={root}: no such folder{hint}")
        seeds = sorted(int(path.name[5:]) for path in root.glob("seed_*") if re.fullmatch(r"seed_\d+", path.name))
        folders += [root / f"seed_{seed}" for seed in seeds] or [root]
    for folder in folders:
        if not (folder / "config.yaml").exists():
            raise UserError(f"dataset={folder}: not a run folder: it has no config.yaml")
        if folders.count(folder) > 1:
            raise UserError(f"dataset={folder}: given twice")
    return folders, None


def _of_runs(config: TrainConfig, folders: Sequence[Path], env: FlatEnv) -> Dataset:
    found = []
    for folder in folders:
        try:
            own = configs.load_from(folder)
            if own.dataset is not None:
                raise UserError(f"it learned offline and has no transitions of its own; use dataset={own.dataset}")
            stored = checkpoint.newest_transitions(folder, available_memory())
            for problem in stored.problems:
                print(f"warning: {one_line(problem)}", file=sys.stderr)
            _check_fields(stored.transitions.dtype, env, own.env.id if own.env.id != config.env.id else None)
        except UserError as error:
            raise UserError(f"dataset={folder}: {error}") from error
        found.append((folder, own, stored))
    assembly = _assembly(config, sum(stored.transitions.size for *_, stored in found), env)
    sources = []
    for folder, own, stored in found:
        try:
            _add(assembly, own.num_envs, stored)
        except (ValueError, UserError) as error:
            raise UserError(f"dataset={folder}: {error}") from error
        of_several = str(folder.parent) in str(config.dataset).split(",")
        sources.append((folder.parent if of_several else folder, stored.step))
    counted = Counter(sources)
    lines = [f"{root} at step {step:,}" + (f" ({n} seeds)" if n > 1 else "") for (root, step), n in counted.items()]
    return assembly.finished(lines, [own.env.id for _, own, _ in found])


def _add(assembly: Assembly, num_envs: int, stored: checkpoint.Stored) -> None:
    """Add a run's transitions, one environment after another.

    Raises:
        InvalidDataError: they are not those of a run with so many environments.
    """
    number, count = stored.first, stored.transitions.size
    offset, counts = places_by_environment(number, count, num_envs)
    offset += assembly.filled
    for env in np.flatnonzero(counts):
        first = number + (env - number) % num_envs
        assembly.begins(int(offset[env] + first // num_envs), whole=bool(first < num_envs))
    for part in stored.transitions.parts():
        numbers = np.arange(number, number + len(part))
        envs = numbers % num_envs
        if any(part[name].view(np.uint8).max(initial=0) > 1 for name in FLAGS):
            raise InvalidDataError("whether a transition ended its episode is neither 0 nor 1")
        if not np.array_equal(part["env"], envs):
            raise InvalidDataError(f"the transitions do not take turns among num_envs={num_envs} environments")
        columns = [part[name] for name in ("obs", "action", "reward", "next_obs", *FLAGS)]
        assembly.put(offset[envs] + numbers // num_envs, *columns)
        number += len(part)
    if number != stored.first + count:
        raise InvalidDataError("a shard has changed while it was read")
    for cut in stored.cuts:
        assembly.cut(int(offset[cut % num_envs] + cut // num_envs))


def _check_fields(dtype: np.dtype[Any], env: FlatEnv, other: str | None) -> None:
    """Check that a shard holds transitions of the environment's sizes.

    Raises:
        UserError: it does not; with both numbers, and the `other` environment that the shard is of, if only the sizes
            differ.
    """
    vectors: tuple[str, ...] = ("obs", "action", "next_obs")
    fields: Mapping[str, Any] = dtype.fields or {}
    numbers = {name: fields[name][0] for name in (*vectors, "reward") if name in fields}
    flags = [fields[name][0] for name in FLAGS if name in fields]
    valid = (
        list(fields) == [*vectors[:2], "reward", "next_obs", *FLAGS, "env"]
        and all(own.base in (np.float32, np.float64) for own in numbers.values())
        and all(own == np.bool_ for own in flags)
        and fields["env"][0] == np.uint16
        and numbers["reward"].shape == ()
        and all(len(numbers[name].shape) == 1 for name in vectors)
        and numbers["obs"].shape == numbers["next_obs"].shape
    )
    if not valid:
        raise UserError(f"its shards do not hold transitions but {str(dtype)[:100]}")
    for name, what, space in (
        ("obs", "an observation", env.observation_space),
        ("action", "an action", env.action_space),
    ):
        (own,), (size,) = numbers[name].shape, space.shape or ()
        if own != size:
            env_id = env.spec.id if env.spec is not None else "the environment"
            use = "" if other is None else f"; use env={one_line(other)}"
            raise UserError(f"{what} has {own} numbers, and {size} in {env_id}{use}")


def _assembly(config: TrainConfig, count: int, env: FlatEnv) -> Assembly:
    """An empty data set for `count` transitions.

    Raises:
        UserError: there is not enough memory.
    """
    (obs_dim,), (action_dim,) = env.observation_space.shape or (), env.action_space.shape or ()
    dtype: torch.dtype = PRECISIONS[config.precision].parameters
    needed, free = memory(count, obs_dim, action_dim, dtype), available_memory()
    if needed > free:
        raise UserError(
            f"dataset={config.dataset}: {count:,} transitions take {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB of memory are free; use fewer run folders"
        )
    return Assembly(count, obs_dim, action_dim, dtype)
