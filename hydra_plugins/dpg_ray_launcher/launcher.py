"""The launcher. Hydra imports this module at every start, so what does the work is imported when it launches."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class RayLauncher(Launcher):
    """Runs each job as a task of Ray, and waits.

    Args:
        ray: the keys of `configs/hydra/launcher/ray.yaml`.
    """

    def __init__(self, ray: DictConfig) -> None:
        super().__init__()
        self._options = ray

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs; returns how each ended."""
        from dpg_cli.cli.ray_jobs import launch
        from dpg_cli.cli.sweep import current

        record = current()
        assert record is not None  # only dpg-train uses this launcher
        hydras = self._context, self._task, self._config
        return launch(job_overrides, initial_job_idx, self._options, *hydras, record)
