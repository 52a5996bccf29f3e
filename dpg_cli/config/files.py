"""Write the config of a run folder, `config.yaml` and `.hydra/`, and read it as untrusted data."""

from pathlib import Path
from typing import Any

from dpg_cli.config.messages import first_line
from dpg_cli.config.schema import TrainConfig, check
from dpg_cli.errors import UserError
from dpg_cli.storage.untrusted import read

MAX_STORED = 100_000  # bytes of a config.yaml; a hostile file could take gigabytes


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


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain data from a YAML file, which may be untrusted.

    Raises:
        UserError: the file cannot be read, or `load_yaml` rejects it.
    """
    return load_yaml(read(path, MAX_STORED), str(path))


def load_yaml(text: str | bytes, where: str) -> dict[str, Any]:
    """A mapping of plain data from YAML: no tags, no aliases, at most `MAX_STORED` bytes.

    Args:
        text: the YAML.
        where: the name of its file, for messages.

    Raises:
        UserError: it is not such a mapping.
    """
    import yaml

    def whole(loader: Any, node: Any) -> int:
        value: int = loader.construct_yaml_int(node)
        if abs(value) >= 10**18:  # Python refuses to print thousands of digits
            raise yaml.YAMLError("a number that is too large")
        return value

    class Plain(yaml.SafeLoader):
        """No dates, no sets and no aliases: with aliases, a small file can expand to gigabytes."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not allowed")
            return super().compose_node(parent, index)

    Plain.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Plain.yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }
    Plain.add_constructor("tag:yaml.org,2002:int", whole)
    if len(text) > MAX_STORED:
        raise UserError(f"{where}: has {len(text):,} bytes, too many for a config")
    try:
        tree = yaml.load(text, Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an invalid number; lists nested too deeply
        raise UserError(f"{where}: {first_line(error)}") from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{where}: must be a mapping")
    return tree


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
