"""The jobs of a sweep: their names, configs and folders."""

import contextlib
import json
import os
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dpg_cli import config as configs
from dpg_cli.cli.here import here
from dpg_cli.cli.init import folders_of
from dpg_cli.cli.names import Label, member_names, members, settings_that_differ
from dpg_cli.errors import UserError

CURVES = "tensorboard"  # the folder of links in that of a sweep
MAX_NAME = 200  # bytes of a link's name, of the 255 that file systems allow


class Planned(NamedTuple):
    """A job before it starts; the folder is relative to the sweep's, None if Hydra only knows it later."""

    config: configs.TrainConfig
    folder: str | None


@dataclass(frozen=True)
class Naming:
    """What the jobs of a sweep are called. It is small, since a job in another process gets a copy.

    Attributes:
        folder: of the sweep.
        count: of all jobs; None where the sweeper decides on jobs as it goes.
        common: overrides that all jobs have.
    """

    folder: Path
    count: int | None
    common: Set[str]

    def label(self, number: int, overrides: Sequence[str]) -> Label:
        """The label of a job: its position and the settings that differ. Numbers start at 0, like the folders."""
        position = f"{number + 1}" if self.count is None else f"{number + 1}/{self.count}"
        return Label(f"[{position}] job {number}", self.differs(overrides))

    def differs(self, overrides: Sequence[str]) -> str:
        """The settings of a job that differ between jobs, such as `algo=td3 seed=0`."""
        return settings_that_differ(overrides, self.common)

    def link_curves(self, number: int, label: Label, config: configs.TrainConfig, folder: Path) -> None:
        """Link the run folders of a job in `tensorboard/`, named by the settings that differ.

        TensorBoard names a run by its path. The links are relative, so that the sweep can be moved. No training needs
        them, so errors of the disk are ignored here.

        Args:
            number: of the job.
            label: of the job.
            config: of the job.
            folder: of the job.
        """
        links = self.folder / CURVES
        seeds, runs = members(config, folder)
        names = member_names(label.differs or f"job {number}", seeds)
        with contextlib.suppress(OSError):
            links.mkdir(exist_ok=True)
            for name, run in zip(names, runs, strict=True):
                link, target = links / _file_name(name), os.path.relpath(run, links)
                if link.is_symlink() and os.readlink(link) == target:  # a job that is tried again, or resumed
                    continue
                if link.is_symlink():  # names that differ in a slash, or far behind
                    link = links / f"{_file_name(name)} job {number}"
                link.symlink_to(target, target_is_directory=True)


class Plan:
    """The jobs of a sweep.

    Args:
        folder: of the sweep.
        jobs: the overrides of each job; where the sweeper decides on jobs as it goes, those that all will have.
        planned: whether `jobs` are all.

    Raises:
        UserError: `jobs` is empty.
    """

    def __init__(self, folder: Path, jobs: Sequence[Sequence[str]], *, planned: bool):
        if not jobs:
            raise UserError("-m: the sweep has no jobs, because a key has no values")
        self.folder = folder
        self.jobs = jobs
        self.planned = planned
        common = set.intersection(*(set(job) for job in jobs))
        self.naming = Naming(folder, len(jobs) if planned else None, common)

    def check(self) -> list[Planned]:
        """Compose and check the config of every job.

        Raises:
            UserError: a job's config is wrong, or two jobs would be the same run or share a folder.
        """
        from dpg_cli.cli.dataset import check_dataset  # here, since torch takes seconds to import
        from dpg_cli.cli.learners import check_networks

        found: list[Planned] = []
        runs: dict[str, int] = {}
        folders: dict[str, int] = {}
        checked = configs.checked_jobs(self.jobs, here())
        for number, overrides in enumerate(self.jobs):
            try:
                config, name = next(checked)
                check_networks(config)
                check_dataset(config)
                if config.init is not None:
                    folders_of(config)
            except UserError as error:
                differs = self.naming.differs(overrides)
                raise UserError(f"{error} (with {differs})" if differs else str(error)) from error
            if (same := runs.setdefault(json.dumps(config.model_dump()), number)) != number:
                raise UserError(f"-m: jobs {same} and {number} would be the same run ({' '.join(overrides)})")
            if name is not None and (same := folders.setdefault(name, number)) != number:
                raise UserError(f"hydra.sweep.subdir: jobs {same} and {number} would share the folder {name}")
            found.append(Planned(config, name))
        return found


def _file_name(text: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[/\x00-\x1f]", "_", text).encode()[:MAX_NAME].decode(errors="ignore").strip()
