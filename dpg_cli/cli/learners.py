"""Build the algorithm and the learner of a checked config, on a device."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from dpg_cli.algorithms import ALGORITHMS, Algorithm
from dpg_cli.captured_learner import CapturedLearner
from dpg_cli.cli.machine import affinity
from dpg_cli.config import TrainConfig
from dpg_cli.errors import UserError
from dpg_cli.learner import Learner
from dpg_cli.precision import PRECISIONS
from dpg_cli.replay import DeviceReplay, Replay
from dpg_cli.seeding import Purpose, torch_generator

MAX_AUTO_THREADS = 4  # networks of a few hundred units gain nothing from more
SMALL_PRODUCT = 2**20  # multiplications of a layer; below it, waking a second thread costs more than it saves


class Threads(NamedTuple):
    """The number of torch's threads, and why it was chosen."""

    number: int
    why: str


def new_algorithm(config: TrainConfig, obs_dim: int, action_dim: int, device: torch.device) -> Algorithm:
    """Make the algorithm.

    Raises:
        UserError: the hyperparameters contradict each other, or there is not enough memory for the networks.
    """
    name, values = named(config.algo)
    precision = PRECISIONS[config.precision]
    try:
        return ALGORITHMS[name](
            **values,
            obs_dim=obs_dim,
            action_dim=action_dim,
            seeds=range(config.seed, config.seed + config.num_seeds),
            device=device,
            dtype=precision.parameters,
            products=precision.products,
        )
    except ValueError as error:
        raise UserError(f"algo.{error}") from error
    except (RuntimeError, MemoryError) as error:
        if device.type == "cuda" and not isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            f"algo.hidden_sizes={config.algo['hidden_sizes']}: not enough memory for these networks"
        ) from error


def new_learner(config: TrainConfig, algorithm: Algorithm, obs_dim: int, action_dim: int, *, captured: bool) -> Learner:
    """Make the learner and its replay, on the algorithm's device.

    Args:
        config: checked.
        algorithm: learns and acts.
        obs_dim: size of an observation.
        action_dim: size of an action.
        captured: whether to capture its work in graphs. Ignored with `share_next_obs`, for which the host keeps track
            of shared observations.
    """
    device = algorithm.actor.flat.device
    seeds = range(config.seed, config.seed + config.num_seeds)
    sizes = min(config.buffer_size, config.total_steps + config.num_envs - 1), obs_dim, action_dim
    dtype = PRECISIONS[config.precision].parameters
    if captured and not config.share_next_obs:
        streams = [torch_generator(seed, Purpose.REPLAY, device) for seed in seeds]
        replay = DeviceReplay(*sizes, streams, device, dtype, config.num_envs)
        return CapturedLearner(algorithm, replay, compiled=config.compile)
    streams = [torch_generator(seed, Purpose.REPLAY) for seed in seeds]
    shared = config.share_next_obs
    return Learner(algorithm, Replay(*sizes, streams, device, dtype, config.num_envs, share_next_obs=shared))


def choose_threads(config: TrainConfig, obs_dim: int) -> Threads:
    """Torch's threads. `auto` is one if all products are small, else all cores up to `MAX_AUTO_THREADS`."""
    if config.threads != "auto":
        return Threads(config.threads, "as configured")
    rows, (inputs, outputs) = config.num_seeds * config.algo["batch_size"], largest_product(config, obs_dim)
    if rows * inputs * outputs < SMALL_PRODUCT:
        return Threads(1, f"threads=auto: the largest product, {rows} x {inputs} x {outputs}, is small")
    cores = affinity()
    return Threads(min(cores, MAX_AUTO_THREADS), f"threads=auto: {cores} cores, at most {MAX_AUTO_THREADS} threads")


def largest_product(config: TrainConfig, obs_dim: int) -> tuple[int, int]:
    """Inputs and outputs of the layer with the most weights, up to the last hidden layer."""
    layers = pairwise([obs_dim, *config.algo["hidden_sizes"]])
    return max(layers, key=lambda layer: layer[0] * layer[1], default=(0, 0))


def named(values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The `name` of a group's choice, and its other values."""
    rest = dict(values)
    return str(rest.pop("name")), rest
