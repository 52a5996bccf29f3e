"""The launcher. Hydra imports this module at every start, so what does the work is imported when it launches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LocalLauncherConf:
    """The keys of `hydra.launcher`. They are checked by `dpg_cli.cli.launch.check`, whose messages name the key."""

    _target_: str = "hydra_plugins.dpg_local_launcher.launcher.LocalLauncher"
    n_jobs: Any = "auto"  # jobs at once; auto: the number of cores, fewer if memory is short
    retries: Any = 1  # how often a job whose process was killed is started again
    fail_fast: Any = False  # whether the first failure stops the sweep
    gpus: Any = "auto"  # auto: all; none; or a list such as [0,1]


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="dpg_cli")


class LocalLauncher(Launcher):
    """Runs each job in a process of its own, several at a time.

    Args:
        options: the keys of `LocalLauncherConf`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs; returns how each ended. The value of a failed job is NaN."""
        from dpg_cli.cli.launch import launch
        from dpg_cli.cli.sweep import current

        record = current()
        assert record is not None  # only dpg-train uses this launcher
        hydras = self._context, self._task, self._config
        return launch(job_overrides, initial_job_idx, self._options, *hydras, record)
