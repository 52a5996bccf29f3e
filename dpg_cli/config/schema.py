"""The typed schema of a config: keys, types and ranges. The YAML files hold the values."""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from dpg_cli.config.messages import describe
from dpg_cli.config.tree import NAMED
from dpg_cli.errors import UserError
from dpg_cli.ranges import Count, CountOrZero, Positive

MAX_STEPS = 999_999_999  # a checkpoint's folder has nine digits
MAX_NUM_ENVS = 2**16  # a stored transition has the number of its environment in 16 bits
MAX_ENVIRONMENTS = 100_000  # of all seeds, for training and evaluation


class Strict(BaseModel):
    """Rejects unknown keys, infinite numbers, and every conversion except from integers to floats."""

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
    episodes: CountOrZero


class CheckpointConfig(Strict):
    """Checkpoints."""

    every: Count
    keep: Count
    replay: bool = True  # older runs have no such key


class LogConfig(Strict):
    """Records of scalars."""

    every: Count


class TrainConfig(Strict):
    """`configs/train.yaml`, whose comments explain each key."""

    seed: CountOrZero
    num_seeds: Count
    num_envs: Annotated[Count, Field(le=MAX_NUM_ENVS)]
    total_steps: Annotated[Count, Field(le=MAX_STEPS)]
    random_steps: CountOrZero
    learning_starts: CountOrZero
    updates_per_step: Positive
    buffer_size: Count
    share_next_obs: bool = False  # older runs have no such key
    compile: bool = False
    truncation_bootstraps: bool
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    threads: Literal["auto"] | Annotated[Count, Field(le=1024)]
    env_processes: Literal["auto"] | Annotated[Count, Field(le=1024)] = "auto"  # older runs have no such key
    env_threads: Literal["auto"] | Annotated[Count, Field(le=1024)] = "auto"
    precision: Literal["float32", "bf16", "float64"]
    init: Annotated[str, Field(min_length=1)] | None = None  # older runs have no such key
    dataset: Annotated[str, Field(min_length=1)] | None = None
    eval: EvalConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    algo: dict[str, Any]
    env: EnvConfig
    noise: dict[str, Any]
    network: dict[str, Any] = {"name": "mlp"}  # older runs have no such groups
    replay: dict[str, Any] = {"name": "uniform"}

    @property
    def offline(self) -> bool:
        """Whether the run learns from a data set. Its steps are then updates."""
        return self.dataset is not None

    @property
    def step(self) -> str:
        """What `total_steps` and every stride count, for messages: `step`, or `update` offline."""
        return "update" if self.offline else "step"

    @property
    def resumable(self) -> bool:
        """Whether its checkpoints hold what it needs to resume. An offline run has no replay of its own."""
        return self.checkpoint.replay or self.offline


def check(tree: Mapping[str, Any]) -> TrainConfig:
    """Check every key, type and range of a whole config.

    Raises:
        UserError: names the first wrong key, its value and what is expected.
    """
    from dpg_cli.algorithms import ALGORITHMS  # here, since torch takes seconds to import
    from dpg_cli.networks import ARCHITECTURES
    from dpg_cli.noise import NOISES
    from dpg_cli.priorities import SAMPLINGS

    checked: TrainConfig = _check_model(TrainConfig, tree)
    registries: dict[str, Mapping[str, type]] = {
        "algo": ALGORITHMS,
        "network": ARCHITECTURES,
        "noise": NOISES,
        "replay": SAMPLINGS,
    }
    groups = {name: _check_choice(name, registries[name], getattr(checked, name)) for name in NAMED}
    algo = groups["algo"]
    if checked.buffer_size < algo["batch_size"]:
        raise UserError(f"buffer_size={checked.buffer_size}: must be at least algo.batch_size={algo['batch_size']}")
    if checked.offline and checked.eval.episodes == 0:
        raise UserError("eval.episodes=0: offline (dataset=) there are no training episodes, so only evaluations score")
    environments = checked.num_seeds * (checked.num_envs + checked.eval.episodes)
    if environments > MAX_ENVIRONMENTS:
        sizes = f"num_seeds={checked.num_seeds}, num_envs={checked.num_envs}, eval.episodes={checked.eval.episodes}"
        raise UserError(f"{sizes}: {environments:,} environments; the limit is {MAX_ENVIRONMENTS:,}")
    if checked.buffer_size < checked.num_envs:
        raise UserError(f"buffer_size={checked.buffer_size}: must be at least num_envs={checked.num_envs}")
    return checked.model_copy(update=groups)


def changed(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """A config with some keys changed; nested keys are written with dots, such as `eval.every`.

    Raises:
        UserError: a value is invalid.
    """
    tree = config.model_dump()
    for key, value in values.items():
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[name] = value
    return check(whole_numbers(tree))


def difference(config: TrainConfig, other: TrainConfig, without: Collection[str] = ()) -> str | None:
    """The first key in which two configs differ, with both values; None if they are equal.

    Args:
        config: compared with `other`.
        other: compared with `config`.
        without: keys that are not compared, such as `eval.every`.
    """

    def walk(one: Any, two: Any, key: str) -> str | None:
        if key.removeprefix(".") in without:
            return None
        if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
            found = (walk(one[name], two[name], f"{key}.{name}") for name in one)
            return next((text for text in found if text), None)
        return None if one == two else f"{key.removeprefix('.')}={one} instead of {two}"

    return walk(config.model_dump(), other.model_dump(), "")


def whole_numbers(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """Convert floats that are integers, such as 1e6, to integers, except in `env.kwargs`."""

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: child if key == "kwargs" else whole(child) for key, child in value.items()}
        if isinstance(value, list):
            return [whole(child) for child in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return {key: whole(value) for key, value in tree.items()}


def _check_model(model: type[Any], values: Mapping[str, Any], prefix: str = "") -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(describe(model, error, prefix)) from error


def _check_choice(group: str, registry: Mapping[str, type], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check a group whose keys are the fields of a registered class."""
    name = str(values.get("name"))
    if name not in registry:
        raise UserError(f"{group}.name={name}: must be one of {', '.join(registry)}")
    hints = get_type_hints(registry[name], include_extras=True)
    keys: dict[str, Any] = {
        f.name: (hints[f.name], ... if f.default is MISSING else f.default) for f in fields(registry[name])
    }
    model = create_model(name, __base__=Strict, name=(str, ...), **keys)
    checked: dict[str, Any] = _check_model(model, values, f"{group}.").model_dump()
    return checked
