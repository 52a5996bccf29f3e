"""Build the algorithm and the learner of a checked config, on a device."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from dpg_cli.algorithms import ALGORITHMS, Algorithm
from dpg_cli.captured_learner import CapturedLearner
from dpg_cli.cli.machine import affinity
from dpg_cli.compiled_learner import CompiledLearner
from dpg_cli.config import TrainConfig
from dpg_cli.config.defaults import defaults
from dpg_cli.dataset import Dataset
from dpg_cli.errors import UserError
from dpg_cli.learner import Learner
from dpg_cli.networks import ARCHITECTURES, Architecture, Numbers
from dpg_cli.networks.layers import dense_of
from dpg_cli.precision import PRECISIONS
from dpg_cli.priorities import Priorities
from dpg_cli.replay import DatasetReplay, DeviceDatasetReplay, DeviceReplay, Replay
from dpg_cli.seeding import Purpose, torch_generator
from dpg_cli.separate_learner import SeparateLearner

META = torch.device("meta")  # tensors there have shapes and no memory
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
    numbers = Numbers(device, precision.parameters, precision.products, autograd=config.compile)
    try:
        return ALGORITHMS[name](
            **values,
            obs_dim=obs_dim,
            action_dim=action_dim,
            seeds=range(config.seed, config.seed + config.num_seeds),
            architecture=architecture_of(config),
            numbers=numbers,
            huber=config.replay["name"] == "lap",
            offline=config.offline,
        )
    except ValueError as error:
        raise UserError(f"algo.{error}") from error
    except (RuntimeError, MemoryError) as error:
        if device.type == "cuda" and not isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(f"{network_sizes(config)}: not enough memory for these networks") from error


def architecture_of(config: TrainConfig) -> Architecture:
    """Makes the layers of the networks."""
    name, sizes = named(config.network)
    return ARCHITECTURES[name](**sizes)


def network_sizes(config: TrainConfig) -> str:
    """The keys that set the sizes of the networks and are not at their defaults, else all, with their values."""
    name, own = named(config.network)
    sizes, usual = {f"network.{key}": value for key, value in own.items()}, defaults("network", name)
    if not own:
        keys = ("hidden_sizes", "encoder_sizes", "embedding_size")
        sizes = {f"algo.{key}": config.algo[key] for key in keys if key in config.algo}
        usual = defaults("algo", config.algo["name"])
    given = {k: v for k, v in sizes.items() if (tuple(v) if isinstance(v, list) else v) != usual.get(k)}
    return ", ".join(f"{key}={value}" for key, value in (given or sizes).items())


def check_networks(config: TrainConfig) -> None:
    """Check hyperparameters against each other, without an environment.

    Raises:
        UserError: they contradict each other.
    """
    new_algorithm(config.model_copy(update={"num_seeds": 1}), 1, 1, META)


def new_learner(
    config: TrainConfig,
    algorithm: Algorithm,
    obs_dim: int,
    action_dim: int,
    dataset: Dataset | None = None,
    *,
    captured: bool,
) -> Learner:
    """Make the learner and its replay, on the algorithm's device.

    Args:
        config: checked.
        algorithm: learns and acts.
        obs_dim: size of an observation.
        action_dim: size of an action.
        dataset: to learn from; None: an empty replay.
        captured: whether to capture its work in graphs. Ignored with `share_next_obs`, for which the host keeps track
            of shared observations.
    """
    device = algorithm.device
    seeds = range(config.seed, config.seed + config.num_seeds)
    if dataset is not None:
        return _offline_learner(config, algorithm, dataset, seeds, captured=captured)
    if algorithm.separate and config.num_seeds > 1:
        ones = [config.model_copy(update={"seed": seed, "num_seeds": 1}) for seed in seeds]
        algorithms = [new_algorithm(one, obs_dim, action_dim, device) for one in ones]
        each = zip(ones, algorithms, strict=True)
        return SeparateLearner([new_learner(*own, obs_dim, action_dim, captured=captured) for own in each])
    sizes = min(config.buffer_size, config.total_steps + config.num_envs - 1), obs_dim, action_dim
    dtype = PRECISIONS[config.precision].parameters
    chosen = windows(config, algorithm, sizes[0])
    if captured and not config.share_next_obs:
        streams = [torch_generator(seed, Purpose.REPLAY, device) for seed in seeds]
        on_device = DeviceReplay(*sizes, streams, device, dtype, config.num_envs, **chosen)
        return CapturedLearner(algorithm, on_device, compiled=config.compile)
    streams = [torch_generator(seed, Purpose.REPLAY) for seed in seeds]
    shared = config.share_next_obs
    replay = Replay(*sizes, streams, device, dtype, config.num_envs, share_next_obs=shared, **chosen)
    return (CompiledLearner if config.compile else Learner)(algorithm, replay)


def _offline_learner(
    config: TrainConfig, algorithm: Algorithm, dataset: Dataset, seeds: Sequence[int], *, captured: bool
) -> Learner:
    device, sizes = algorithm.device, (dataset.obs_dim, dataset.action_dim)
    rows, chosen = dataset.rows.to(device), windows(config, algorithm, len(dataset))
    algorithm.normalize_by(dataset.mean, dataset.deviation, len(dataset))
    streams = [torch_generator(seed, Purpose.REPLAY, device if captured else "cpu") for seed in seeds]
    if captured:
        on_device = DeviceDatasetReplay(rows, *sizes, streams, **chosen)
        return CapturedLearner(algorithm, on_device, compiled=config.compile)
    replay = DatasetReplay(rows, *sizes, streams, **chosen)
    return (CompiledLearner if config.compile else Learner)(algorithm, replay)


def windows(config: TrainConfig, algorithm: Algorithm, capacity: int) -> dict[str, Any]:
    """The arguments of a replay that say what it samples."""
    name, values = named(config.replay)
    members = len(algorithm.generators)
    return {
        "n_steps": algorithm.n_steps,
        "discount": algorithm.discount,
        "truncation_bootstraps": config.truncation_bootstraps,
        "priorities": Priorities(members, capacity, **values, device=algorithm.device) if name == "lap" else None,
    }


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
    """Inputs and outputs of the critic's layer with the most weights."""
    one = new_algorithm(config.model_copy(update={"num_seeds": 1}), obs_dim, 0, META)
    largest = max(dense_of(one.critic.layers), key=lambda layer: layer.inputs * layer.outputs)
    return largest.inputs, largest.outputs


def named(values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The `name` of a group's choice, and its other values."""
    rest = dict(values)
    return str(rest.pop("name")), rest
