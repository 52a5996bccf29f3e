"""Whether a training fits into memory, asked before it starts: a replay is touched only as it fills."""

import contextlib
from itertools import pairwise
from pathlib import Path

import torch

from dpg_cli.config import TrainConfig
from dpg_cli.errors import UserError
from dpg_cli.precision import PRECISIONS
from dpg_cli.replay import Replay

ENVIRONMENT_BYTES = 2**28  # what the environments of one seed and all else could take in a checkpoint
GPU_RESERVE = 2**30  # for the libraries' own work space, and for graphs
LAYERS_KEPT = 12  # layers' worth of numbers that an update of one network keeps at once, at most


def check_memory(config: TrainConfig, obs_dim: int, action_dim: int, device: torch.device) -> None:
    """Refuse what does not fit, since it would end a run hours later.

    Raises:
        UserError: it says how much is needed, how much there is, and what would fit.
    """
    where, elsewhere = ("memory", "") if device.type == "cpu" else (str(device), ", or device=cpu")
    free = available_memory() if device.type == "cpu" else free_gpu_memory(device)
    networks = learner_bytes(config, obs_dim, action_dim)
    if device.type != "cpu":
        if free < GPU_RESERVE:
            raise UserError(
                f"device={device}: {free / 2**30:.1f} GiB of its memory are free, and {GPU_RESERVE / 2**30:.0f} GiB is "
                "needed beside networks and replay; end other programs there, or use device=cpu"
            )
        networks += update_bytes(config) + GPU_RESERVE
    if networks > free:
        raise UserError(
            f"algo.hidden_sizes={config.algo['hidden_sizes']}: not enough memory for these networks: with "
            f"num_seeds={config.num_seeds} they take {networks / 2**30:,.1f} GiB, "
            f"and {free / 2**30:.1f} GiB of {where} are free: use smaller ones, or reduce num_seeds{elsewhere}"
        )
    capacity = min(config.buffer_size, config.total_steps)
    dtype, shared = PRECISIONS[config.precision].parameters, config.share_next_obs
    needed = Replay.memory(capacity, obs_dim, action_dim, config.num_seeds, dtype, share_next_obs=shared)
    room = free - networks if device.type != "cpu" else free
    if needed > room:
        fits = int(capacity * 0.95 * room / needed) // 1000 * 1000
        smaller = f"buffer_size={fits:_} would fit" if fits >= config.algo["batch_size"] else "reduce num_seeds"
        shareable = "" if shared or device.type != "cpu" else ", share_next_obs=true needs about half"
        raise UserError(
            f"buffer_size={config.buffer_size}: {capacity:,} transitions for {config.num_seeds} seeds take "
            f"{needed / 2**30:.1f} GiB, and {room / 2**30:.1f} GiB of {where} are free: {smaller}{shareable}{elsewhere}"
        )


def learner_bytes(config: TrainConfig, obs_dim: int, action_dim: int) -> int:
    """What all networks, their targets, gradients and the moments of their optimizers take."""
    hidden = config.algo["hidden_sizes"]

    def parameters(inputs: int, outputs: int) -> int:
        return sum((rows + 1) * columns for rows, columns in pairwise([inputs, *hidden, outputs]))

    critics: int = config.algo.get("num_critics", 1) * parameters(obs_dim + action_dim, 1)
    precision = PRECISIONS[config.precision]
    rounded = precision.products is not precision.parameters
    copies = 5 + rounded  # network, target, two moments, gradient; a rounded network
    each = copies * precision.parameters.itemsize
    return config.num_seeds * (parameters(obs_dim, action_dim) + critics) * each


def update_bytes(config: TrainConfig) -> int:
    """What the layers of an update take at most while it is made, and in a graph all the time."""
    rows = config.num_seeds * config.algo["batch_size"] * (1 + config.algo.get("num_critics", 1))
    numbers: int = LAYERS_KEPT * rows * sum(config.algo["hidden_sizes"])
    return numbers * PRECISIONS[config.precision].parameters.itemsize


def most_bytes(config: TrainConfig, obs_dim: int, action_dim: int) -> int:
    """Bytes that a stored state of one seed, or its policy, could have: a stranger's file is not read beyond them."""
    return min(2 * learner_bytes(config, obs_dim, action_dim) + ENVIRONMENT_BYTES, available_memory() // 2)


def available_memory() -> int:
    """Bytes that can still be taken: of the machine, or of the container that this process is in."""
    about = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(about["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, KeyError):  # no container, none with a limit, or an old kernel
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        available = min(available, limit - used + int(stat["inactive_file"]))  # what files take is given up on demand
    return available


def free_gpu_memory(device: torch.device) -> int:
    """Bytes that can still be taken, those that torch keeps for itself too."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept
