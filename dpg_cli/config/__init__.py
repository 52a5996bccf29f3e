"""The config: its tree, its schema, composing it with Hydra, and its files in a run folder.

Only this package and `cli/` import Hydra.
"""

from dpg_cli.config.composition import (
    checked_jobs,
    compose,
    folder,
    has_basic_launcher,
    has_basic_sweeper,
    has_local_launcher,
    has_ray_launcher,
    has_slurm_launcher,
    job_folder,
    run,
    select,
    user_error,
    validate,
    write_hydra,
)
from dpg_cli.config.files import asks_for_trust, dump, given, load, load_from, store_hydra
from dpg_cli.config.names_elsewhere import counterpart
from dpg_cli.config.overrides import check_given_once, check_spaces, parse_value, search_folders
from dpg_cli.config.schema import TrainConfig, changed, check, difference
from dpg_cli.config.sweeps import combinations, of_preset, without_hydra, without_sweeps
from dpg_cli.config.tree import GROUPS, choices, config_dir, register
from dpg_cli.storage.untrusted import load_yaml, read_yaml

__all__ = [
    "GROUPS",
    "TrainConfig",
    "asks_for_trust",
    "changed",
    "check",
    "check_given_once",
    "check_spaces",
    "checked_jobs",
    "choices",
    "combinations",
    "compose",
    "config_dir",
    "counterpart",
    "difference",
    "dump",
    "folder",
    "given",
    "has_basic_launcher",
    "has_basic_sweeper",
    "has_local_launcher",
    "has_ray_launcher",
    "has_slurm_launcher",
    "job_folder",
    "load",
    "load_from",
    "load_yaml",
    "of_preset",
    "parse_value",
    "read_yaml",
    "register",
    "run",
    "search_folders",
    "select",
    "store_hydra",
    "user_error",
    "validate",
    "without_hydra",
    "without_sweeps",
    "write_hydra",
]
