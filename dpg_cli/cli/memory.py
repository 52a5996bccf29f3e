"""Check before a training starts that it fits into memory.

The operating system gives the replay its memory only as it fills, so too large a run would fail hours later.
"""

import math

import gymnasium
import torch

from dpg_cli.cli.learners import META, network_sizes, new_algorithm
from dpg_cli.cli.machine import available_memory
from dpg_cli.config import TrainConfig
from dpg_cli.dataset import memory as dataset_memory
from dpg_cli.errors import UserError
from dpg_cli.networks.layers import dense_of
from dpg_cli.noise import LONGEST_SERIES, NOISES, PowerLaw, series_steps
from dpg_cli.precision import PRECISIONS
from dpg_cli.priorities import CHILDREN, Priorities
from dpg_cli.replay import Replay

ENVIRONMENT_BYTES = 2**28  # bound on the environments of one seed, and all small parts, in a checkpoint
GPU_RESERVE = 2**30  # for graphs and the work space of libraries
WINDOW_BYTES = 64  # of a step of a window: places, rewards and masks
LAYERS_KEPT = 12  # most copies of a network's layer outputs that an update keeps at once


def check_memory(
    config: TrainConfig, obs_dim: int, action_dim: int, device: torch.device, transitions: int = 0
) -> None:
    """Reject a training that does not fit into memory.

    Args:
        config: of the run.
        obs_dim: size of an observation.
        action_dim: size of an action.
        device: of the run.
        transitions: of the data set of an offline run, which is in main memory already.

    Raises:
        UserError: says how much is needed, how much is free, and what would fit.
    """
    where, elsewhere = ("memory", "") if device.type == "cpu" else (str(device), ", or device=cpu")
    free = available_memory() if device.type == "cpu" else free_gpu_memory(device)
    networks = learner_bytes(config, obs_dim, action_dim) + sample_bytes(config)
    if device.type != "cpu":
        if free < GPU_RESERVE:
            raise UserError(
                f"device={device}: {free / 2**30:.1f} GiB of its memory are free, and {GPU_RESERVE / 2**30:.0f} GiB is "
                "needed in addition to networks and replay; end other programs on it, or use device=cpu"
            )
        networks += update_bytes(config, obs_dim, action_dim) + GPU_RESERVE
    if networks > free:
        raise UserError(
            f"{network_sizes(config)}: not enough memory for these networks: with "
            f"num_seeds={config.num_seeds} they take {networks / 2**30:,.1f} GiB, "
            f"and {free / 2**30:.1f} GiB of {where} are free: use smaller ones, or reduce num_seeds{elsewhere}"
        )
    noise = 2 * series_bytes(config, action_dim)  # with the copy for a checkpoint
    if noise > (free_main := available_memory()):
        raise UserError(
            f"noise={config.noise['name']}, num_envs={config.num_envs}: not enough memory for the noise: its series "
            f"take {noise / 2**30:,.1f} GiB, and {free_main / 2**30:.1f} GiB of memory are free: reduce num_envs or "
            "num_seeds, or use noise=gaussian"
        )
    if config.offline:
        _check_offline(config, transitions, (obs_dim, action_dim), device, free - networks)
        return
    capacity = min(config.buffer_size, config.total_steps)
    shared, needed = config.share_next_obs, stored_bytes(config, obs_dim, action_dim)
    room = free - (networks if device.type != "cpu" else noise)
    if needed > room:
        fits = int(capacity * 0.95 * room / needed) // 1000 * 1000
        smaller = f"buffer_size={fits:_} would fit" if fits >= config.algo["batch_size"] else "reduce num_seeds"
        shareable = ""
        if not shared and device.type == "cpu":
            less = stored_bytes(config.model_copy(update={"share_next_obs": True}), obs_dim, action_dim)
            shareable = f", share_next_obs=true needs {less / needed:.0%} of that"
        raise UserError(
            f"buffer_size={config.buffer_size}: {capacity:,} transitions for {config.num_seeds} seeds take "
            f"{needed / 2**30:.1f} GiB, and {room / 2**30:.1f} GiB of {where} are free: {smaller}{shareable}{elsewhere}"
        )


def _check_offline(
    config: TrainConfig, transitions: int, sizes: tuple[int, int], device: torch.device, free: int
) -> None:
    """Reject an offline training whose priorities, or whose copy of the data set on a GPU, do not fit into memory.

    Raises:
        UserError: says how much is needed, and how much is free.
    """
    needed = _priorities(config, transitions)
    if device.type != "cpu":
        needed += dataset_memory(transitions, *sizes, PRECISIONS[config.precision].parameters)
    if needed > free:
        smaller = "use fewer transitions or reduce num_seeds" if device.type == "cpu" else "use device=cpu"
        raise UserError(
            f"dataset={config.dataset}: {transitions:,} transitions for {config.num_seeds} seeds take another "
            f"{needed / 2**30:.1f} GiB, and {max(0, free) / 2**30:.1f} GiB of {device} are free: {smaller}"
        )


def _priorities(config: TrainConfig, capacity: int, members: int | None = None) -> int:
    return Priorities.memory(members or config.num_seeds, capacity) if config.replay["name"] == "lap" else 0


def stored_bytes(config: TrainConfig, obs_dim: int, action_dim: int) -> int:
    """Bytes of a full replay, with its priorities."""
    capacity, dtype = min(config.buffer_size, config.total_steps), PRECISIONS[config.precision].parameters
    shared = config.share_next_obs
    rows = Replay.memory(capacity, obs_dim, action_dim, config.num_seeds, dtype, share_next_obs=shared)
    return rows + _priorities(config, capacity)


def series_bytes(config: TrainConfig, action_dim: int) -> int:
    """Bytes of the series of pink and colored noise; 0 with other noise.

    The time limit is that of the registered environment, since dm_control's own is known only once it is made.
    """
    if config.offline or not issubclass(NOISES[config.noise["name"]], PowerLaw):
        return 0
    limit = config.env.max_episode_steps
    if limit is None and (spec := gymnasium.registry.get(config.env.id.rpartition(":")[2])) is not None:
        limit = spec.max_episode_steps
    return 8 * config.num_seeds * config.num_envs * series_steps(limit) * action_dim


def learner_bytes(config: TrainConfig, obs_dim: int, action_dim: int) -> int:
    """Bytes of all networks, with targets, gradients and the moments of their optimizers."""
    one = new_algorithm(config.model_copy(update={"num_seeds": 1}), obs_dim, action_dim, META)
    parameters = sum(network.flat.numel() for network in one.networks().values())
    learned = sum(optimizer.network.flat.numel() for optimizer in one.optimizers().values())
    precision = PRECISIONS[config.precision]
    each = (parameters + 3 * learned) * precision.parameters.itemsize  # two moments and the gradient
    if precision.products is not precision.parameters:
        each += parameters * precision.products.itemsize  # a rounded copy
    return config.num_seeds * (each + sum(tensor.nbytes for tensor in one.member_state.values()))


def update_bytes(config: TrainConfig, obs_dim: int, action_dim: int) -> int:
    """Most bytes that the layer outputs of an update take. A graph holds them all the time."""
    one = new_algorithm(config.model_copy(update={"num_seeds": 1}), obs_dim, action_dim, META)
    outputs = sum(
        math.prod(network.members) * layer.outputs
        for network in (optimizer.network for optimizer in one.optimizers().values())
        for layer in dense_of(network.layers)
    )
    rows = config.num_seeds * config.algo["batch_size"]
    projected = config.algo.get("num_atoms", 0) ** 2  # D4PG's shares of each atom in each other
    numbers: int = rows * (LAYERS_KEPT * outputs + projected)
    return numbers * PRECISIONS[config.precision].parameters.itemsize


def sample_bytes(config: TrainConfig) -> int:
    """Most bytes that choosing a batch takes, besides the batch."""
    windows = WINDOW_BYTES * config.algo["n_steps"] if config.algo["n_steps"] > 1 else 0
    each = windows + (3 * 8 * CHILDREN if config.replay["name"] == "lap" else 0)
    rows: int = config.num_seeds * config.algo["batch_size"]
    return rows * each


def most_bytes(config: TrainConfig, obs_dim: int, action_dim: int, transitions: int = 0) -> int:
    """Most bytes of one seed's stored state or policy. Larger files, which a stranger may have made, are not read.

    Args:
        config: of the run.
        obs_dim: size of an observation.
        action_dim: size of an action.
        transitions: of the data set of an offline run.
    """
    noise = 8 * config.num_envs * LONGEST_SERIES * action_dim
    capacity = transitions if config.offline else min(config.buffer_size, config.total_steps)
    priorities = _priorities(config, capacity, 1)
    most = 2 * learner_bytes(config, obs_dim, action_dim) + noise + priorities + ENVIRONMENT_BYTES
    return min(most, available_memory() // 2)


def free_gpu_memory(device: torch.device) -> int:
    """Free bytes of a GPU, including those that torch has reserved and does not use."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept
