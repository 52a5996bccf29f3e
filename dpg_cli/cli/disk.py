"""Check before a training starts that its replay fits on the disk, where it takes more room than everything else."""

import os
import shutil
from pathlib import Path

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


def check_disk(config: TrainConfig, obs_dim: int, action_dim: int, folder: Path) -> None:
    """Reject a training whose replay does not fit on the disk.

    Args:
        config: of the run.
        obs_dim: size of an observation.
        action_dim: size of an action.
        folder: of the run, which may not exist yet. What it already stores counts as there.

    Raises:
        UserError: says how much is needed, how much is free, and what would help.
    """
    needed = replay_bytes(config, obs_dim, action_dim)
    stored = sum(path.stat().st_size for run in members(config, folder)[1] for path in (run / "replay").glob("*.npy"))
    free = free_bytes(folder)
    if needed - stored > free:
        also = f" and already has {_size(stored)}" if stored else ""
        raise UserError(
            f"checkpoint.replay=true: the replay takes up to {_size(needed)} on disk{also}, and {_size(free)} are free "
            f"in {_existing(folder)}; use another disk, a smaller buffer_size, or checkpoint.replay=false, which keeps "
            "no replay, but such a run cannot be resumed"
        )


def disk_note(config: TrainConfig, obs_dim: int, action_dim: int) -> str | None:
    """How much the replay will take on the disk; None if that is little."""
    needed = replay_bytes(config, obs_dim, action_dim)
    if needed <= NOTED:
        return None
    return (
        f"the replay will take up to {_size(needed)} on disk; checkpoint.replay=false keeps none, but such a run "
        "cannot be resumed"
    )


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that a folder is on, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """The folder, or the closest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 10**8 else f"{count / 1e6:,.1f} MB"
