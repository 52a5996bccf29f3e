"""Check before a training starts that the disk has room for its replay, and for the noise in its checkpoints."""

import os
import shutil
from pathlib import Path

from dpg_cli.cli.memory import series_bytes
from dpg_cli.cli.names import members
from dpg_cli.config import TrainConfig
from dpg_cli.errors import UserError
from dpg_cli.precision import PRECISIONS
from dpg_cli.replay import Replay

NOTED = 10**9  # bytes that are worth a note


def replay_bytes(config: TrainConfig, obs_dim: int, action_dim: int) -> int:
    """Most bytes that the stored transitions of all seeds take at once."""
    if config.offline or not config.checkpoint.replay:
        return 0
    # A shard stays until no kept checkpoint needs its last row, and the next checkpoint is written before that.
    rows = min(config.total_steps, config.buffer_size + (config.checkpoint.keep + 1) * config.checkpoint.every)
    dtype = PRECISIONS[config.precision].parameters
    return Replay.memory(rows, obs_dim, action_dim, config.num_seeds, dtype, share_next_obs=False)


def noise_bytes(config: TrainConfig, action_dim: int) -> int:
    """Most bytes that the series of pink and colored noise take in all checkpoints at once."""
    return (config.checkpoint.keep + 1) * series_bytes(config, action_dim)


def check_disk(config: TrainConfig, obs_dim: int, action_dim: int, folder: Path) -> None:
    """Reject a training whose replay, with the series of its noise, does not fit on the disk.

    Args:
        config: of the run.
        obs_dim: size of an observation.
        action_dim: size of an action.
        folder: of the run, which may not exist yet. What it already stores counts as there.

    Raises:
        UserError: says how much is needed, how much is free, and what would help.
    """
    replay, noise = replay_bytes(config, obs_dim, action_dim), noise_bytes(config, action_dim)
    runs = members(config, folder)[1]
    stored = sum(path.stat().st_size for run in runs for path in (run / "replay").glob("*.npy"))
    states = sum(path.stat().st_size for run in runs for path in run.glob("checkpoints/step_*/state.safetensors"))
    stored, free = stored + min(noise, states), free_bytes(folder)
    if replay + noise - stored <= free:
        return
    also = f" and already has {_size(stored)}" if stored else ""
    room = f"{also}, and {_size(free)} are free in {_existing(folder)}; use another disk"
    if noise > replay:
        raise UserError(
            f"noise={config.noise['name']}, num_envs={config.num_envs}: the checkpoints take up to {_size(noise)} on "
            f"disk for the noise's series{room}, fewer environments, a smaller checkpoint.keep, or noise=gaussian"
        )
    raise UserError(
        f"checkpoint.replay=true: {_what(noise)} {'take' if noise else 'takes'} up to {_size(replay + noise)} on disk"
        f"{room}, a smaller buffer_size, or checkpoint.replay=false, which keeps no replay, but such a run cannot be "
        "resumed"
    )


def disk_note(config: TrainConfig, obs_dim: int, action_dim: int) -> str | None:
    """How much the replay and the noise's series will take on the disk; None if that is little."""
    replay, noise = replay_bytes(config, obs_dim, action_dim), noise_bytes(config, action_dim)
    if replay + noise <= NOTED:
        return None
    if noise > replay:
        name = config.noise["name"]
        return f"the checkpoints will take up to {_size(noise)} on disk for the series of noise={name}"
    return (
        f"{_what(noise)} will take up to {_size(replay + noise)} on disk; checkpoint.replay=false keeps no replay, but "
        "such a run cannot be resumed"
    )


def _what(noise: int) -> str:
    return "the replay and the noise's series" if noise else "the replay"


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that a folder is on, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """The folder, or the closest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 10**8 else f"{count / 1e6:,.1f} MB"
