"""Launchers and sweepers of Hydra that come in packages of their own."""

import importlib.util

from omegaconf import DictConfig

from dpg_cli import config as configs
from dpg_cli.errors import UserError, to_install

# By class: the modules that it needs, and how to install them.
NEEDED = {
    "SlurmLauncher": (("hydra_plugins.hydra_submitit_launcher", "submitit"), to_install("slurm")),
    "RayLauncher": (("hydra_plugins.hydra_ray_launcher", "ray"), to_install("ray")),
    "OptunaSweeper": (("hydra_plugins.hydra_optuna_sweeper",), "pip install hydra-optuna-sweeper"),
}


def check(composed: DictConfig) -> None:
    """Check that what the launcher and the sweeper need is installed.

    Raises:
        UserError: it is missing.
    """
    for kind in ("launcher", "sweeper"):
        name = str(configs.select(composed, f"hydra.{kind}._target_")).rpartition(".")[2]
        modules, how = NEEDED.get(name, ((), ""))
        if any(importlib.util.find_spec(module) is None for module in modules):
            choice = configs.select(composed, f"hydra.runtime.choices.hydra/{kind}")
            package = modules[0].rpartition(".")[2].replace("_", "-")
            raise UserError(f"hydra/{kind}={choice}: needs {package}; {how}")
