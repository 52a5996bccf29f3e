"""A run folder that a command is given, perhaps a stranger's."""

from pathlib import Path

from dpg_cli import config as configs
from dpg_cli.errors import UserError


def load_config(key: str, run: Path, trust: str) -> configs.TrainConfig:
    """The config of a run folder.

    Args:
        key: of the command line that names the folder.
        run: the folder.
        trust: `true` if what the config names may be imported, or opened by the environment.

    Raises:
        UserError: no run folder, no config, or one that asks for trust.
    """
    if trust not in ("true", "false"):
        raise UserError(f"trust={trust}: should be true or false")
    if not run.is_dir():
        raise UserError(f"{key}={run}: no run folder, there is none of that name")
    if not (run / "config.yaml").exists():
        raise UserError(f"{key}={run}: no run folder, there is no config.yaml in it")
    config = configs.load_from(run)
    if trust != "true" and (reason := configs.asks_for_trust(config)) is not None:
        raise UserError(f"{reason}; if you trust it, trust=true")
    return config
