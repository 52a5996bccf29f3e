"""The launcher. Hydra imports this module at every start, so what does the work is imported when it launches."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SlurmLauncher(Launcher):
    """Submits each job to SLURM, and waits.

    Args:
        options: the keys of `configs/hydra/launcher/slurm.yaml`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs; returns how each ended. The value of a failed job is NaN."""
        from dpg_cli.cli.slurm import launch
        from dpg_cli.cli.sweep import current

        running = current()
        assert running is not None  # only dpg-train uses this launcher
        hydras = self._context, self._task, self._config
        return launch(job_overrides, initial_job_idx, self._options, *hydras, running)
