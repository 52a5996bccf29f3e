"""The config: where its tree lies, how it is composed, and what it may hold.

Only this module and `cli/` know Hydra. The YAML files hold the values; this schema and the fields of algorithms
and noises hold types and ranges, and `validate()` checks the one against the other.
"""

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log, run_job
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from dpg_cli.errors import UserError
from dpg_cli.ranges import Count, CountOrZero, Positive
from dpg_cli.storage.untrusted import read

MAX_STORED = 100_000  # bytes of a config.yaml; a hostile one may unfold to gigabytes
MAX_STEPS = 999_999_999  # a checkpoint's folder has nine digits
MAX_ENVIRONMENTS = 100_000  # of all seeds, evaluation's too
GROUPS = ("algo", "env", "noise", "experiment")


class Strict(BaseModel):
    """No unknown key, no conversion but from whole to floating numbers, nothing infinite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class EnvConfig(Strict):
    """`configs/schema.yaml` and `configs/env/<id>.yaml`."""

    id: Annotated[str, Field(min_length=1)]
    kwargs: dict[str, Any]
    max_episode_steps: Count | None
    total_steps: Count
    random_steps: CountOrZero
    paper_random_steps: CountOrZero


class EvalConfig(Strict):
    """Evaluations."""

    every: Count
    episodes: Count


class CheckpointConfig(Strict):
    """Checkpoints."""

    every: Count
    keep: Count


class LogConfig(Strict):
    """Records of scalars."""

    every: Count


class TrainConfig(Strict):
    """`configs/train.yaml`, which says what each key is."""

    seed: CountOrZero
    num_seeds: Count
    num_envs: Count
    total_steps: Annotated[Count, Field(le=MAX_STEPS)]
    random_steps: CountOrZero
    learning_starts: CountOrZero
    updates_per_step: Positive
    buffer_size: Count
    share_next_obs: bool = False  # as in runs that were stored before there was a choice
    compile: bool = False
    truncation_bootstraps: bool
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    threads: Literal["auto"] | Annotated[Count, Field(le=1024)]
    env_processes: Literal["auto"] | Annotated[Count, Field(le=1024)] = "auto"  # older runs have no such key
    env_threads: Literal["auto"] | Annotated[Count, Field(le=1024)] = "auto"
    precision: Literal["float32", "bf16", "float64"]
    eval: EvalConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    algo: dict[str, Any]
    env: EnvConfig
    noise: dict[str, Any]


def config_dir() -> Path:
    """The config tree: in the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())


def choices(group: str) -> list[str]:
    """What a group can be set to: the names of its files, `td3/without_delay` for one in a folder."""
    folder = config_dir() / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


class EnvironmentIds(ConfigSource):
    """Lets `env=<id>` name any environment, with or without a file of its own; a real file wins."""

    @staticmethod
    def scheme() -> str:
        """`gymnasium://`."""
        return "gymnasium"

    def available(self) -> bool:
        """Always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """The groups, and the folders that an id with slashes makes."""
        return config_path.strip("/") in ("", *GROUPS) or self._below_env(config_path + "/")

    def is_config(self, config_path: str) -> bool:
        """Everything below `env` is some environment's id; whether it exists is asked when it is made."""
        return self._below_env(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        """`{id: <id>}`."""
        env_id = config_path.removesuffix(".yaml").removeprefix("env/")
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{self.path}",
            config=OmegaConf.create({"id": env_id}),
            header={"package": None},
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Whole names, for tab completion, where Hydra would stop at a slash: ids, and choices in folders."""
        path = config_path.strip("/")
        if path == "":
            return ["env"] if results_filter in (None, ObjectType.GROUP) else []
        if results_filter is ObjectType.GROUP:
            return []
        if path != "env":
            return [name for name in choices(path) if "/" in name] if path in GROUPS else []
        import gymnasium  # here, since only completion needs it

        # An id whose entry point is a function only says where the environment has gone.
        return sorted(name for name, spec in gymnasium.registry.items() if not callable(spec.entry_point))

    @staticmethod
    def _below_env(path: str) -> bool:
        return path.startswith("env/") and len(path.removesuffix(".yaml")) > len("env/")


def register() -> None:
    """Tell Hydra of the environment ids, and OmegaConf of `${path_name:...}`."""
    Plugins.instance().register(EnvironmentIds)
    OmegaConf.register_new_resolver("path_name", lambda name: re.sub(r"[/:]", "_", name), replace=True)


def compose(overrides: Sequence[str]) -> DictConfig:
    """Compose the tree with overrides in Hydra's grammar, the `hydra` node included.

    Raises:
        UserError: an unknown key or choice, or a syntax error.
    """
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3", job_name="train"):
            return hydra_compose("train", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises ValueError too
        raise UserError(explain(error, overrides)) from error


def run(composed: DictConfig, folder: Path, task: Callable[[DictConfig], Any]) -> None:
    """Run one task in a folder as `hydra.main` does, with its log, `.hydra` and callbacks.

    That would compose the config twice again, which takes longer than all else before the first step.

    Args:
        composed: from `compose()`.
        folder: of the run, in place of the config's own.
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
        done.return_value  # noqa: B018, it raises what the task has raised


def without_sweeps(overrides: Sequence[str]) -> list[str]:
    """The overrides that have one value.

    Raises:
        UserError: a syntax error.
    """
    return [text for text, parsed in zip(overrides, _parse(overrides), strict=True) if not parsed.is_sweep_override()]


def combinations(overrides: Sequence[str], composed: DictConfig) -> Iterator[list[str]]:
    """The overrides of each job of a sweep by Hydra's own sweeper; those with one value, by any other.

    Raises:
        UserError: a syntax error.
    """
    if not has_basic_sweeper(composed):
        yield without_sweeps(overrides)
        return
    params = [f"{key}={value}" for key, value in (composed.hydra.sweeper.params or {}).items()]
    axes: dict[str, list[str]] = {}
    texts = [*params, *overrides]
    for parsed in _parse(texts):
        key = parsed.get_key_element()
        if parsed.is_discrete_sweep():
            axes[key] = [f"{key}={value}" for value in parsed.sweep_string_iterator()]
        else:
            axes[key] = [f"{key}={parsed.get_value_element_as_str()}"]
    yield from (list(combination) for combination in itertools.product(*axes.values()))


def has_basic_sweeper(composed: DictConfig) -> bool:
    """Whether Hydra's own sweeper runs, which knows all jobs before the first."""
    return str(OmegaConf.select(composed, "hydra.sweeper._target_")).endswith(".BasicSweeper")


def has_basic_launcher(composed: DictConfig) -> bool:
    """Whether Hydra's own launcher runs, in this process, one job after the other."""
    return str(OmegaConf.select(composed, "hydra.launcher._target_")).endswith(".BasicLauncher")


def job_folder(composed: DictConfig, number: int) -> str | None:
    """The folder of a job in that of its sweep; nothing where only Hydra will know it.

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
        raise UserError(f"hydra.sweep.subdir: {_first_line(error)}") from error


def folder(composed: DictConfig, key: str) -> Path:
    """The folder under a key of the `hydra` node.

    Raises:
        UserError: it cannot be resolved.
    """
    try:
        return Path(OmegaConf.select(composed, key, throw_on_missing=True))
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError(f"{key}: {_first_line(error)}") from error


def validate(config: DictConfig) -> TrainConfig:
    """Resolve a composed config and check every key, type and range.

    Raises:
        UserError: names the first key that is wrong, its value and what would be right.
    """
    try:
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        tree = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {_first_line(error)}") from error
    assert isinstance(tree, dict)
    return _checked(_whole_numbers(tree))


def _checked(tree: Mapping[str, Any]) -> TrainConfig:
    """Check every key, type and range of a whole config."""
    from dpg_cli.algorithms import ALGORITHMS  # here, since torch takes seconds to import
    from dpg_cli.noise import NOISES

    checked: TrainConfig = _check(TrainConfig, tree)
    algo = _check_choice("algo", ALGORITHMS, checked.algo)
    noise = _check_choice("noise", NOISES, checked.noise)
    if checked.buffer_size < algo["batch_size"]:
        raise UserError(f"buffer_size={checked.buffer_size}: must be at least algo.batch_size={algo['batch_size']}")
    environments = checked.num_seeds * (checked.num_envs + checked.eval.episodes)
    if environments > MAX_ENVIRONMENTS:
        sizes = f"num_seeds={checked.num_seeds}, num_envs={checked.num_envs}, eval.episodes={checked.eval.episodes}"
        raise UserError(f"{sizes}: {environments:,} environments; there may be {MAX_ENVIRONMENTS:,}")
    if checked.buffer_size < checked.num_envs:
        raise UserError(f"buffer_size={checked.buffer_size}: must be at least num_envs={checked.num_envs}")
    return checked.model_copy(update={"algo": algo, "noise": noise})


def load(text: str | bytes) -> TrainConfig:
    """The config of a run from its `config.yaml`. Nothing in it is resolved or run.

    Raises:
        UserError: it is not such a file.
    """
    return _checked(load_yaml(text, "config.yaml"))


def load_from(run: Path) -> TrainConfig:
    """The config of a run folder, whoever made it.

    Raises:
        UserError: it has none, or a file that is no config.
    """
    path = run / "config.yaml"
    return _checked(load_yaml(read(path, MAX_STORED), str(path)))


def load_yaml(text: str | bytes, where: str) -> dict[str, Any]:
    """A mapping of plain data from YAML: no tags, no references, no more than `MAX_STORED` bytes.

    Raises:
        UserError: it is something else.
    """
    import yaml

    def whole(loader: Any, node: Any) -> int:
        value: int = loader.construct_yaml_int(node)
        if abs(value) >= 10**18:  # some thousands of digits cannot even be printed
            raise yaml.YAMLError("a number too large for anything")
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
        raise UserError(f"{where}: has {len(text):,} bytes, more than any config")
    try:
        tree = yaml.load(text, Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number that is none; a list in a list in a ...
        raise UserError(f"{where}: {_first_line(error)}") from error
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


def changed(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """A config with some keys changed, `eval.every` and the like too.

    Raises:
        UserError: a value is not what its key takes.
    """
    tree = config.model_dump()
    for key, value in values.items():
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[name] = value
    return _checked(_whole_numbers(tree))


def dump(config: TrainConfig) -> str:
    """The resolved config as YAML, for `load()`."""
    return _dumped(config.model_dump())


def difference(config: TrainConfig, other: TrainConfig) -> str | None:
    """The first key in which two configs differ, with both values; nothing if they are equal."""

    def walk(one: Any, two: Any, key: str) -> str | None:
        if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
            found = (walk(one[name], two[name], f"{key}.{name}") for name in one)
            return next((text for text in found if text), None)
        return None if one == two else f"{key.removeprefix('.')}={one} instead of {two}"

    return walk(config.model_dump(), other.model_dump(), "")


def store_hydra(source: Path, target: Path, **values: int) -> None:
    """Copy what Hydra wrote of a run, with keys set as if they had been given on the command line of a run there.

    Raises:
        UserError: it is nothing that Hydra writes.
    """
    config, node = (load_yaml(read(source / f"{name}.yaml", MAX_STORED), name) for name in ("config", "hydra"))
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


def parse_value(key: str, text: str) -> Any:
    """A value as Hydra's grammar reads it, so that `resume=` takes what a new run takes.

    Raises:
        UserError: a syntax error, or several values.
    """
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        raise UserError(f"{key}={text}: {_first_line(error)}") from error
    if parsed.is_sweep_override():
        raise UserError(f"{key}={text}: one value, not several")
    return parsed.value()


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()  # for glob(...), which asks for a group's choices
            return OverridesParser.create(loader).parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(explain(error, overrides)) from error


def _check(model: type[Any], values: Mapping[str, Any], prefix: str = "") -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_validation_message(model, error, prefix)) from error


def _check_choice(group: str, registry: Mapping[str, type], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check a group whose keys are the fields of a registered class."""
    name = str(values.get("name"))
    if name not in registry:
        raise UserError(f"{group}.name={name}: must be one of {', '.join(registry)}")
    hints = get_type_hints(registry[name], include_extras=True)
    keys: dict[str, Any] = {f.name: (hints[f.name], ...) for f in fields(registry[name])}
    model = create_model(name, __base__=Strict, name=(str, ...), **keys)
    checked: dict[str, Any] = _check(model, values, f"{group}.").model_dump()
    return checked


def _whole_numbers(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """1e6 is written as a count and read as a float: make it one again, but for what an environment is given."""

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: child if key == "kwargs" else whole(child) for key, child in value.items()}
        if isinstance(value, list):
            return [whole(child) for child in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return {key: whole(value) for key, value in tree.items()}


def _validation_message(model: type[BaseModel], error: ValidationError, prefix: str) -> str:
    first, *others = error.errors()
    if first["type"] == "extra_forbidden":
        *parents, name = (str(part) for part in first["loc"])
        for parent in parents:
            annotation = model.model_fields[parent].annotation
            assert isinstance(annotation, type)
            model = annotation
        prefix += "".join(f"{parent}." for parent in parents)
        return _unknown_key(prefix + name, [prefix + field for field in model.model_fields])
    key, expected = _key(first["loc"]), _expectation(first)
    for other in others:  # the other branches of a union
        if _key(other["loc"]) == key:
            expected += f" or {_expectation(other).removeprefix('should be ')}"
    if first["type"] == "missing":
        return f"{prefix}{key}: missing"
    return f"{prefix}{key}={first['input']}: {expected}"


def _key(location: Iterable[int | str]) -> str:
    # A union's branch stands in the location as a part that is no identifier.
    return ".".join(str(part) for part in location if isinstance(part, int) or str(part).isidentifier())


def _expectation(error: Mapping[str, Any]) -> str:
    if error["type"] == "string_pattern_mismatch":
        return "should be auto, cpu, cuda or cuda:N"
    return str(error["msg"]).replace("Input should be", "should be")


def _unknown_key(key: str, known: Iterable[str]) -> str:
    return f"{key}: unknown key{_closest(key, known)}"


def _closest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:  # perhaps only the group before the dot is missing or wrong
        last = word.rpartition(".")[2]
        close = [k for k in known if k.rpartition(".")[2] == last][:1]
    return f"; did you mean {close[0]}?" if close else ""


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """What Hydra or OmegaConf complain of, in one line that names the key."""
    text = _first_line(error)
    if match := re.search(r"Could not find '(\w+)/([^']+)'", str(error)):
        group, name = match.groups()
        known = choices(group)
        return f"{group}={name}: must be one of {', '.join(known)}{_closest(name, known)}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1].partition("@")[0], _known_keys(overrides))
    if match := re.search(r"Ambiguous value for argument '(.+)'", text):
        return f"{match[1]}: several values; add -m to sweep over them, or write a list as key=[a,b]"
    if match := re.search(r"Error parsing override '(.+)'", text):
        return f"{match[1]}: not of the form key=value ({str(error).splitlines()[1].strip()})"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value ({text})"
    return text


def _known_keys(overrides: Sequence[str]) -> list[str]:
    """The keys that there are with these overrides' choices of groups."""
    groups = [o for o in overrides if o.partition("=")[0] in GROUPS]
    try:
        config = compose(groups)
    except UserError:
        return list(GROUPS)

    def walk(node: Mapping[Any, Any], prefix: str) -> list[str]:
        keys = []
        for key, value in node.items():
            keys.append(f"{prefix}{key}")
            if isinstance(value, dict):
                keys += walk(value, f"{prefix}{key}.")
        return keys

    tree = OmegaConf.to_container(config)
    assert isinstance(tree, dict)
    return [*walk(tree, ""), "experiment"]


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
