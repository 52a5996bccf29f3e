"""Run folders of the commands: read the config of an existing one, and start a new one."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from dpg_cli import config as configs
from dpg_cli.cli.import_path import add_working_directory
from dpg_cli.cli.names import members
from dpg_cli.errors import UserError
from dpg_cli.storage.atomic import Disk, write_whole

MAX_DEPTH = 6  # at which runs are looked for below a folder: a home folder is large


def load_config(key: str, run: Path, trust: str) -> configs.TrainConfig:
    """The config of a run folder, which may come from a stranger.

    Args:
        key: the key of the command line that named the folder, for messages.
        run: the folder.
        trust: "true" if the environment may import modules and open files that the config names, or "false".

    Raises:
        UserError: there is no run folder or no valid config, the config asks for trust, or `trust` is neither.
    """
    if trust not in ("true", "false"):
        raise UserError(f"trust={trust}: should be true or false")
    if not os.path.isdir(run):  # a name that is too long raises in Path.is_dir
        raise UserError(f"{key}={run}: no such folder")
    if not (run / "config.yaml").exists():
        raise UserError(f"{key}={run}: not a run folder: it has no config.yaml")
    config = configs.load_from(run)
    if trust != "true" and (reason := configs.asks_for_trust(config)) is not None:
        raise UserError(f"{reason}; if you trust it, trust=true")
    if trust == "true":
        add_working_directory()
    return config


def runs_below(folder: Path) -> Iterator[Path]:
    """The run folders of single seeds below a folder, as they are found. Neither links nor hidden folders are followed.

    Args:
        folder: such as `outputs`; in a run folder only its seeds are looked for.
    """
    for where, folders, files in os.walk(folder):
        path = Path(where)
        if {"config.yaml", "run.json"} <= set(files):
            folders[:] = sorted(name for name in folders if name.startswith("seed_"))
            if not folders and path != folder:
                yield path
        elif len(path.parts) - len(folder.parts) < MAX_DEPTH:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
        else:
            folders.clear()


def begin(config: configs.TrainConfig, folder: Path) -> None:
    """Write the config of a claimed folder, and make the folders of its members.

    Raises:
        UserError: the folder already holds a run, as when two jobs of a sweep share a folder.
    """
    try:
        (folder / "run.json").touch(exist_ok=False)
    except FileExistsError as error:
        raise UserError(f"{folder} already holds a run") from error
    seeds, folders = members(config, folder)
    for seed, path in zip(seeds, folders, strict=True):
        if path != folder:
            path.mkdir()
            with contextlib.suppress(UserError):  # .hydra is missing, or incomplete after a kill at the start
                configs.store_hydra(folder / ".hydra", path / ".hydra", seed=seed, num_seeds=1)
    write_configs(config, folder)


def write_configs(config: configs.TrainConfig, folder: Path) -> None:
    """Write `config.yaml` of a run and of each of its members."""
    write_whole(Disk(), folder / "config.yaml", configs.dump(config).encode())
    for member, path in enumerate(members(config, folder)[1]):
        if path != folder:
            write_whole(Disk(), path / "config.yaml", configs.dump(config_of_member(config, member)).encode())


def config_of_member(config: configs.TrainConfig, member: int) -> configs.TrainConfig:
    """The config that trains this member alone."""
    return config.model_copy(update={"seed": config.seed + member, "num_seeds": 1})


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log to this file as well, in the format of Hydra's log."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk
            handler.close()
