"""The config of a run folder: `config.yaml` and `.hydra/`, written, and read as untrusted data."""

from pathlib import Path
from typing import Any

from dpg_cli.config.messages import first_line
from dpg_cli.config.schema import TrainConfig, check
from dpg_cli.errors import UserError
from dpg_cli.storage.untrusted import read

MAX_STORED = 100_000  # bytes of a config.yaml; a hostile one may unfold to gigabytes


def dump(config: TrainConfig) -> str:
    """The resolved config as YAML, for `load()`."""
    return _dumped(config.model_dump())


def load(text: str | bytes) -> TrainConfig:
    """The config of a run from its `config.yaml`. Nothing in it is resolved or run.

    Raises:
        UserError: it is not such a file.
    """
    return check(load_yaml(text, "config.yaml"))


def load_from(run: Path) -> TrainConfig:
    """The config of a run folder, whoever made it.

    Raises:
        UserError: it has none, or a file that is no config.
    """
    return check(read_yaml(run / "config.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain data from a YAML file, whoever made it.

    Raises:
        UserError: the file holds something else.
    """
    return load_yaml(read(path, MAX_STORED), str(path))


def load_yaml(text: str | bytes, where: str) -> dict[str, Any]:
    """A mapping of plain data from YAML: no tags, no references, no more than `MAX_STORED` bytes.

    Raises:
        UserError: it is something else.
    """
    import yaml

    def whole(loader: Any, node: Any) -> int:
        value: int = loader.construct_yaml_int(node)
        if abs(value) >= 10**18:  # some thousands of digits cannot even be printed
            raise yaml.YAMLError("a number that is too large")
        return value

    class Plain(yaml.SafeLoader):
        """Neither dates nor sets, and no aliases: a file that refers to itself can be small and unfold to gigabytes."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("refers to itself")
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number that is none; a list in a list in a ...
        raise UserError(f"{where}: {first_line(error)}") from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{where}: must be a mapping")
    return tree


def asks_for_trust(config: TrainConfig) -> str | None:
    """What in a stranger's config could run code or name a file; nothing if there is nothing of the kind."""
    if ":" in config.env.id:
        return f"env.id={config.env.id}: this would import code that the run folder names"
    for key, value in config.env.kwargs.items():
        if not all(isinstance(item, int | float | None) for item in (value if isinstance(value, list) else [value])):
            return f"env.kwargs.{key}={value}: the environment could take this for a file or for what to import"
    return None


def store_hydra(source: Path, target: Path, **values: int) -> None:
    """Copy what Hydra wrote of a run, with keys set as if they had been given on the command line of a run there.

    Raises:
        UserError: it is nothing that Hydra writes.
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
