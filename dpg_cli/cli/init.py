"""`init=RUN_DIR`: start a new run from the networks of another run, which may come from a stranger."""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpg_cli.algorithms import Algorithm
from dpg_cli.cli.learners import new_algorithm
from dpg_cli.cli.memory import most_bytes
from dpg_cli.cli.stored_networks import misfit
from dpg_cli.config import TrainConfig, load_from
from dpg_cli.errors import UserError, one_line
from dpg_cli.storage import checkpoint

Networks = Mapping[str, Mapping[str, Tensor]]  # one member's tensors, by network and name, without a member axis


class Source(NamedTuple):
    """The networks from which a seed starts."""

    step: int
    networks: Networks
    problems: list[str]  # of later checkpoints


def check_init(config: TrainConfig, obs_dim: int, action_dim: int) -> None:
    """Check, before anything is written, that every seed can start from the networks that `init` names.

    Raises:
        UserError: the folder lacks a seed, a whole checkpoint or a network, or a shape differs.
    """
    if config.init is not None:
        one = new_algorithm(config.model_copy(update={"num_seeds": 1}), obs_dim, action_dim, torch.device("cpu"))
        for _ in _read(config, one):  # one folder's networks are in memory at a time
            pass


def initialise(config: TrainConfig, algorithm: Algorithm) -> str | None:
    """Load the networks that `init` names into a new algorithm.

    Returns:
        One line that says where they come from; None without `init`.

    Raises:
        UserError: as for `check_init`.
    """
    if config.init is None:
        return None
    sources = dict(_read(config, algorithm))
    algorithm.load_networks([sources[folder].networks for folder in folders_of(config)])
    for source in sources.values():
        for problem in source.problems:
            print(f"warning: {one_line(problem)}", file=sys.stderr)
    steps = sorted({source.step for source in sources.values()})
    at = _counted(next(iter(sources)))
    when = f"{at} {steps[0]:,}" if len(steps) == 1 else f"{at}s {steps[0]:,} to {steps[-1]:,}"
    return f"the networks start as at {when} of {config.init}"


def _counted(folder: Path) -> str:
    """What the steps of a run are, `step` or `update`, as far as its config can be read."""
    try:
        return load_from(folder).step
    except UserError:
        return "step"


def folders_of(config: TrainConfig) -> list[Path]:
    """The run folder from which each seed starts: the folder that `init` names, or its `seed_<k>` for seed k.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(str(config.init))
    if not root.is_dir():
        raise UserError(f"init={root}: no such folder")
    seeds = range(config.seed, config.seed + config.num_seeds)
    found = sorted(int(path.name[5:]) for path in root.glob("seed_*") if re.fullmatch(r"seed_\d+", path.name))
    if not found:
        return [root] * len(seeds)
    for seed in seeds:
        if seed not in found:
            hold = f"holds the seeds {', '.join(map(str, found))}"
            one = f"init={root}/seed_{found[0]} starts every seed from one of them"
            raise UserError(f"init={root}: {hold}, and not seed {seed} of this run; {one}")
    return [root / f"seed_{seed}" for seed in seeds]


def _read(config: TrainConfig, algorithm: Algorithm) -> Iterator[tuple[Path, Source]]:
    """Each folder from which a seed starts, with what its newest whole checkpoint holds."""
    own = algorithm.networks_state(0)
    most = most_bytes(config, algorithm.actor.obs_dim, algorithm.actor.action_dim)
    for folder in dict.fromkeys(folders_of(config)):
        try:
            step, state, problems = checkpoint.newest_algorithm(folder, most)
            yield folder, Source(step, _fitting(config, own, state, algorithm.initial), problems)
        except UserError as error:
            raise UserError(f"init={folder}: {error}") from error


def _fitting(config: TrainConfig, own: Networks, state: Mapping[str, Any], initial: Mapping[str, str]) -> Networks:
    """The networks in a stored state, in the precision of this run's, once names and shapes are found equal.

    Args:
        config: of this run.
        own: its networks.
        state: the stored one.
        initial: names of networks that it may lack, and of those of which they are copies at first.

    Raises:
        UserError: they are not; the message names the settings that the run needs, or the network and its layer.
    """
    for network in ("actor", "critic"):
        if not isinstance(state.get(network), Mapping):
            raise UserError(f"its newest whole checkpoint lacks the {network}")
    if (problem := misfit(config, own, state)) is not None:
        raise UserError(problem)
    found: dict[str, dict[str, Tensor]] = {}
    for network, tensors in own.items():
        name, stored = network.replace("_", " "), state.get(network, state.get(initial.get(network, "")))
        if not isinstance(stored, Mapping):
            raise UserError(f"its newest whole checkpoint lacks the {name}")
        found[network] = {}
        for key, tensor in tensors.items():
            given, what = stored.get(key), f"{name} {_described(key)}"
            if not isinstance(given, Tensor) or not given.is_floating_point():
                raise UserError(f"{what} is not a floating-point tensor")
            if given.shape != tensor.shape:
                raise UserError(f"{what} has shape {tuple(given.shape)}, this run's has {tuple(tensor.shape)}")
            found[network][key] = given.to(tensor.dtype)
            if not found[network][key].isfinite().all():
                raise UserError(f"{what} holds a number that is not finite")
    return found


def _described(key: str) -> str:
    """A tensor's name in messages: `layer 1` for the weights of the first layer."""
    match = re.fullmatch(r"layers\.(\d+)\.(weight|bias)", key)
    if match is None:
        return key
    return f"layer {int(match[1]) + 1}" + (" bias" if match[2] == "bias" else "")
