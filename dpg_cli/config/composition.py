"""Compose a config with Hydra, and run a task as Hydra does."""

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.core.utils import configure_log, run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dpg_cli.config.messages import Known, explain
from dpg_cli.config.overrides import is_group, parse, search_folders
from dpg_cli.config.schema import TrainConfig, check, whole_numbers
from dpg_cli.config.tree import GROUPS, NAMED, config_dir
from dpg_cli.errors import UserError, first_line


def compose(overrides: Sequence[str]) -> DictConfig:
    """Compose the tree with overrides in Hydra's grammar, including the `hydra` node.

    Raises:
        UserError: an unknown key or choice, or a syntax error.
    """
    parse(overrides)
    try:
        return _compose(overrides)
    except Exception as error:  # of many types: Hydra's, OmegaConf's, and what odd values raise on the way
        raise user_error(error, overrides) from error


def validate(config: DictConfig, here: Path | None = None) -> TrainConfig:
    """Resolve a composed config and check every key, type and range.

    `init`, the run folders of `dataset`, and strings in `env.kwargs` that begin with `./`, `../` or `~/`, become
    absolute paths, since a run may be resumed from another directory. Other strings may be names, such as those of
    Gymnasium's own model files.

    Args:
        config: composed.
        here: the directory that relative paths are relative to; None for the working directory.

    Raises:
        UserError: names the first wrong key, its value and what is expected.
    """
    try:
        tree = OmegaConf.to_container(_without_hydra(config), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from error
    assert isinstance(tree, dict)
    if isinstance(given := tree.get("dataset"), list) and all(isinstance(item, str) for item in given):
        tree["dataset"] = ",".join(given)
    checked = check(whole_numbers(tree))

    def absolute(path: str) -> str:
        return os.path.abspath((here or Path.cwd()) / Path(path).expanduser())

    def with_paths(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: with_paths(value) for key, value in node.items()}
        if isinstance(node, list):
            return [with_paths(value) for value in node]
        return absolute(node) if isinstance(node, str) and node.startswith(("./", "../", "~/")) else node

    env = checked.env.model_copy(update={"kwargs": with_paths(checked.env.kwargs)})
    init = None if checked.init is None else absolute(checked.init)
    dataset = checked.dataset
    if dataset is not None:
        sources = dataset.split(",")
        dataset = ",".join(name if name.startswith("minari:") else absolute(name) for name in sources)
    return checked.model_copy(update={"env": env, "init": init, "dataset": dataset})


def checked_jobs(jobs: Sequence[Sequence[str]], here: Path) -> Iterator[tuple[TrainConfig, str | None]]:
    """Config and folder of each job of a sweep, in order; the folder is relative to the sweep's.

    Composing takes a tenth of a second. So jobs that differ only in plain values, such as seeds, share the composed
    tree: their values are set in copies of it, which is what Hydra does last. If that gives another config than
    composing for the second such job, all of them are composed.

    Args:
        jobs: the overrides of each job.
        here: the directory that relative paths are relative to.

    Raises:
        UserError: a job's config is wrong; raised when it is that job's turn.
    """
    trees: dict[tuple[str, ...], DictConfig | None] = {}
    equal: set[tuple[str, ...]] = set()
    for number, overrides in enumerate(jobs):
        parsed = parse(overrides)
        values = {text: own for text, own in zip(overrides, parsed, strict=True) if _is_plain(own)}
        key = tuple(text for text in overrides if text not in values)
        tree = trees.get(key)
        config = None if tree is None else _with_values(tree, list(values.values()), here)
        if config is None or key not in equal:
            composed = compose(overrides)
            full = validate(composed, here)
            if config is None and key not in trees:
                sweep: Any = OmegaConf.to_container(composed.hydra.sweep, resolve=False)
                trees[key] = _without_hydra(composed) if sweep["subdir"] == "${hydra.job.num}" else None
            elif config == full:
                equal.add(key)
            else:
                trees[key] = None
            yield full, job_folder(composed, number)
        else:
            yield config, str(number)


def _is_plain(override: Override) -> bool:
    """Whether it only sets a value of the tree."""
    key = override.key_or_group
    return not (is_group(override) or override.is_add() or override.is_delete() or key.startswith("hydra."))


def _with_values(tree: DictConfig, values: Sequence[Override], here: Path) -> TrainConfig | None:
    """The config with values set in a copy of the tree; None if that is an error, which composing explains better."""
    own = copy.deepcopy(tree)
    try:
        for override in values:
            OmegaConf.update(own, override.key_or_group, override.value(), merge=True)
        return validate(own, here)
    except Exception:  # of many types
        return None


def run(composed: DictConfig, folder: Path, task: Callable[[DictConfig], Any]) -> None:
    """Run one task in a folder as `hydra.main` does, with its log, `.hydra` and callbacks.

    `hydra.main` would compose the config twice more, which takes longer than everything else before the first step.

    Args:
        composed: from `compose()`.
        folder: of the run; replaces the one in the config.
        task: given the config without the `hydra` node.
    """
    with initialize_config_dir(str(config_dir()), version_base="1.3", job_name="train"):
        with read_write(composed.hydra):
            composed.hydra.mode = RunMode.RUN
            composed.hydra.run.dir = str(folder)
        configure_log(composed.hydra.hydra_logging, composed.hydra.verbose)
        callbacks = Callbacks(composed)
        callbacks.on_run_start(config=composed, config_name="train")
        context = HydraContext(GlobalHydra.instance().config_loader(), callbacks)
        done = run_job(task, composed, "hydra.run.dir", None, context)
        callbacks.on_run_end(config=composed, config_name="train", job_return=done)
        done.return_value  # noqa: B018, it raises the task's exception


def write_hydra(overrides: Sequence[str], folder: Path, number: int, config: TrainConfig) -> None:
    """Write `.hydra/` of a sweep's job as Hydra does, where Hydra itself does not.

    Args:
        overrides: of the job.
        folder: of the job. Its `.hydra/` is replaced if it exists: a kill may have left a part of it.
        number: of the job.
        config: of the job; today's YAML files may differ from those that it was composed of.

    Raises:
        UserError: today's YAML files do not fit the overrides.
    """
    composed = compose(overrides)
    with read_write(composed.hydra):
        composed.hydra.mode = RunMode.MULTIRUN
        composed.hydra.runtime.output_dir = str(folder)
        composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        task = list(composed.hydra.overrides.task)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    node = OmegaConf.masked_copy(composed, "hydra")
    own = OmegaConf.create(config.model_dump())
    for name, content in (("config", own), ("hydra", node), ("overrides", OmegaConf.create(task))):
        OmegaConf.save(content, folder / ".hydra" / f"{name}.yaml")


def has_basic_sweeper(composed: DictConfig) -> bool:
    """Whether Hydra's own sweeper is used. It knows all jobs before the first starts."""
    return str(select(composed, "hydra.sweeper._target_")).endswith(".BasicSweeper")


def has_basic_launcher(composed: DictConfig) -> bool:
    """Whether Hydra's own launcher is used. It runs jobs in this process, one after another."""
    return str(select(composed, "hydra.launcher._target_")).endswith(".BasicLauncher")


def has_local_launcher(composed: DictConfig) -> bool:
    """Whether our own launcher is used. It runs each job in a process of its own, several at a time."""
    return str(select(composed, "hydra.launcher._target_")).endswith(".LocalLauncher")


def has_slurm_launcher(composed: DictConfig) -> bool:
    """Whether jobs are submitted to SLURM by our launcher."""
    return str(select(composed, "hydra.launcher._target_")).endswith(".dpg_slurm_launcher.launcher.SlurmLauncher")


def has_ray_launcher(composed: DictConfig) -> bool:
    """Whether jobs are run by Ray, through our launcher."""
    return str(select(composed, "hydra.launcher._target_")).endswith(".dpg_ray_launcher.launcher.RayLauncher")


def select(composed: DictConfig, key: str) -> Any:
    """The resolved value of a key of the `hydra` node; None if there is no such key.

    Raises:
        UserError: it cannot be resolved.
    """
    try:
        return OmegaConf.select(composed, key, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {first_line(error)}") from error


def folder(composed: DictConfig, key: str) -> Path:
    """The folder that a key of the `hydra` node names.

    Raises:
        UserError: it cannot be resolved, or is not a path.
    """
    path = select(composed, key)
    if not isinstance(path, str):
        raise UserError(f"{key}={path}: must be a path")
    return Path(path)


def job_folder(composed: DictConfig, number: int) -> str | None:
    """The folder of a job, relative to its sweep's; None if Hydra only knows it when the job starts.

    Raises:
        UserError: it cannot be resolved.
    """
    OmegaConf.update(composed, "hydra.job.num", number, force_add=True)
    OmegaConf.update(composed, "hydra.job.id", str(number), force_add=True)
    try:
        return str(OmegaConf.select(composed, "hydra.sweep.subdir", throw_on_missing=True))
    except MissingMandatoryValue:
        return None
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.sweep.subdir: {first_line(error)}") from error


def user_error(error: Exception, overrides: Sequence[str]) -> UserError:
    """An error of Hydra or OmegaConf as one line that names the key."""
    return UserError(explain(error, lambda: _known(overrides), search_folders(overrides)))


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3", job_name="train"):
        return hydra_compose("train", list(overrides), return_hydra_config=True)


def _without_hydra(config: DictConfig) -> DictConfig:
    if "hydra" not in config:
        return config
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _known(overrides: Sequence[str]) -> Known:
    """All valid keys, given the groups that these overrides choose."""
    chosen = [text for text in overrides if text.partition("=")[0] in (*GROUPS, "hydra.searchpath")]
    try:
        config = _compose(chosen)
    except Exception:  # one of the choices is wrong too
        config = _compose([])

    def walk(node: Mapping[Any, Any], prefix: str) -> list[str]:
        keys = []
        for key, value in node.items():
            keys.append(f"{prefix}{key}")
            if isinstance(value, dict):
                keys += walk(value, f"{prefix}{key}.")
        return keys

    tree = OmegaConf.to_container(config)
    assert isinstance(tree, dict)
    return Known([*walk(tree, ""), "experiment"], {group: tree[group]["name"] for group in NAMED})
