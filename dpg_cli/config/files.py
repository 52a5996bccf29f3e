"""Write the config of a run folder, `config.yaml` and `.hydra/`, and read it as untrusted data."""

from pathlib import Path
from typing import Any

from dpg_cli.config.schema import TrainConfig, check
from dpg_cli.errors import UserError
from dpg_cli.storage.untrusted import load_yaml, read_yaml


def dump(config: TrainConfig) -> str:
    """The resolved config as YAML, for `load()`."""
    return _dumped(config.model_dump())


def load(text: str | bytes) -> TrainConfig:
    """The config of a run from the content of its `config.yaml`. Nothing in it is resolved or run.

    Raises:
        UserError: it is not a valid config.
    """
    return check(load_yaml(text, "config.yaml"))


def load_from(run: Path) -> TrainConfig:
    """The config of a run folder, which may be untrusted.

    Raises:
        UserError: there is no `config.yaml`, or it is not a valid config.
    """
    return check(read_yaml(run / "config.yaml"))


def given(run: Path) -> list[str]:
    """The overrides on the command line of a run, which may be untrusted; empty if they cannot be read."""
    try:
        found = read_yaml(run / ".hydra" / "hydra.yaml")["hydra"]["overrides"]["task"]
    except (UserError, LookupError, TypeError):
        return []
    return list(map(str, found)) if isinstance(found, list) else []


def asks_for_trust(config: TrainConfig) -> str | None:
    """Why an untrusted config needs `trust=true`: it could run code or open files. None if it could not."""
    if ":" in config.env.id:
        return f"env.id={config.env.id}: this would import code that the run folder names"
    for key, value in config.env.kwargs.items():
        if not all(isinstance(item, int | float | None) for item in (value if isinstance(value, list) else [value])):
            return f"env.kwargs.{key}={value}: the environment could open this as a file or import it"
    return None


def store_hydra(source: Path, target: Path, **values: int) -> None:
    """Copy a run's `.hydra/` folder, with `values` set as if given on the command line of a run in the new place.

    Args:
        source: the `.hydra/` folder to copy.
        target: the new `.hydra/` folder, which does not exist yet.
        values: by key.

    Raises:
        UserError: `source` was not written by Hydra.
    """
    config, node = (read_yaml(source / f"{name}.yaml") for name in ("config", "hydra"))
    try:
        hydra = node["hydra"]
        given = [text for text in hydra["overrides"]["task"] if str(text).partition("=")[0] not in values]
        task = [*given, *(f"{key}={value}" for key, value in values.items())]
        hydra["overrides"]["task"] = task
        hydra["runtime"]["output_dir"] = str(target.parent.resolve())
    except (KeyError, TypeError) as error:
        raise UserError(f"{source}: not what Hydra writes") from error
    target.mkdir()
    for name, content in (("config", config | values), ("overrides", task), ("hydra", node)):
        (target / f"{name}.yaml").write_text(_dumped(content), encoding="utf-8")


def _dumped(tree: Any) -> str:
    import yaml

    return yaml.safe_dump(tree, default_flow_style=False, allow_unicode=True, sort_keys=False)
