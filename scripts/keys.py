#!/usr/bin/env python
"""Write docs/keys.md: every key with type, range, default and explanation.

    python scripts/keys.py

Types and ranges come from the schema and from the fields of algorithms and noises, defaults and explanations from the
YAML files: the explanation of a key is the comment on its line. A test fails when the page is out of date.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import yaml
from pydantic import TypeAdapter

from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.cli.arguments import parse, run_script
from dpg_cli.cli.resume import CHANGEABLE
from dpg_cli.config import TrainConfig
from dpg_cli.config.names_elsewhere import TABLE
from dpg_cli.config.schema import MAX_ENVIRONMENTS
from dpg_cli.config.tree import NAMED
from dpg_cli.networks import ARCHITECTURES
from dpg_cli.noise import NOISES
from dpg_cli.priorities import SAMPLINGS
from dpg_cli.ranges import Count

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
PAGE = ROOT / "docs" / "keys.md"
LARGEST = TypeAdapter(Count).json_schema()["maximum"]  # of every integer without a closer bound
STEPS = ("total_steps", "random_steps", "paper_random_steps")

HEAD = f"""\
# Keys

Every key of `dpg-train`, with its type, its range and its default.

<!-- Written by scripts/keys.py from the YAML comments, the schema and the code. Change those, not this page. -->

    dpg-train algo=td3 env=Hopper-v4 algo.tau=0.01 eval.every=2_000

- `key=value` sets a key, `group=choice` selects a [YAML file](#groups-and-presets) with the defaults of a group.
- Integers may be written as `1000000`, `1_000_000` or `1e6`. The largest is 10^{len(str(LARGEST)) - 1}.
- `${{key}}` means that the default is the value of that key.
- **R** marks the keys that can be changed when a run is resumed: `dpg-train resume=RUN_DIR total_steps=2e6`.
- `dpg-train --cfg job --resolve key=value ...` prints every key as a run with these arguments would use it.

Some limits involve several keys. `buffer_size` is at least `algo.batch_size` and at least `num_envs`.
`num_seeds * (num_envs + eval.episodes)` is at most {MAX_ENVIRONMENTS:,}. `algo.critic_action_layer` is at most the
number of hidden layers plus 1.
"""

GROUPS = """
## Groups and presets

`dpg-train` without arguments is `dpg-train {defaults}`.
A preset (`experiment=`) changes keys in any group; keys on the command line win over it. `env=` takes any Gymnasium
id: the files in `configs/env` only hold [defaults](#defaults-by-environment). `--config-dir DIR` adds your own
choices: `DIR/algo/mine.yaml` is `algo=mine`.
"""


ELSEWHERE = """
## Names in other programs

CleanRL, stable-baselines3, its RL Zoo, Spinning Up, TD3.py and others use other names for these keys. `dpg-train`
rejects those names, and its message names the key. In CleanRL and stable-baselines3, `learning_starts` also sets how
long actions are random: `random_steps` sets both here.

"""


class Key(NamedTuple):
    """A key in a YAML file."""

    name: str  # with dots
    default: str  # as it is written
    comment: str


def keys(path: Path) -> Iterator[Key]:
    """Every key of a YAML file that holds no further keys, except the defaults list."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()

    def walk(node: yaml.MappingNode, prefix: str) -> Iterator[Key]:
        for name, value in node.value:
            if isinstance(value, yaml.MappingNode) and value.value:
                yield from walk(value, f"{prefix}{name.value}.")
            elif prefix + name.value != "defaults":
                end = value.end_mark
                _, _, comment = lines[end.line][end.column :].partition("# ")
                yield Key(prefix + name.value, text[value.start_mark.index : end.index], comment)

    yield from walk(yaml.compose(text), "")


def header(path: Path) -> str:
    """The comment at the start of a YAML file, in one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("# ") for line in lines[: next(n for n, own in enumerate(lines) if own[:1] != "#")]]
    return " ".join(line for line in comments if not line.startswith("@package"))


def describe(schema: Mapping[str, Any]) -> str:
    """Type and range, from a JSON schema."""
    if "anyOf" in schema:
        return " or ".join(map(describe, schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "pattern" in schema:  # such as ^(auto|cpu|cuda(:\d+)?)$
        choices = re.sub(r"\(:\\d\+\)\?", "[:N]", schema["pattern"]).strip("^$()").split("|")
        assert all(re.fullmatch(r"[\w:\[\]]+", choice) for choice in choices), schema
        return " or ".join(f"`{choice}`" for choice in choices)
    if schema["type"] == "array":
        return f"list of {describe(schema['items']).replace('integer', 'integers')}"
    if schema["type"] == "null":
        return "`null`"
    names = {"boolean": "`true` or `false`", "object": "mapping"}
    return f"{names.get(schema['type'], schema['type'])} {interval(schema)}".rstrip()


def interval(schema: Mapping[str, Any]) -> str:
    """The range of a number."""
    low, high, above = (schema.get(name) for name in ("minimum", "maximum", "exclusiveMinimum"))
    if high == LARGEST:
        high = None
    if low is not None and high is not None:
        return f"{low} to {high:,}"
    bounds = [(">", above), ("≥", low), ("≤", high)]
    return ", ".join(f"{sign} {bound:,}" for sign, bound in bounds if bound is not None)


def types(cls: type) -> dict[str, str]:
    """Type and range of each hyperparameter of an algorithm, a network, a noise or a replay."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: describe(TypeAdapter(hints[field.name]).json_schema()) for field in fields(cls)}


def train_types() -> dict[str, str]:
    """Type and range of every other key."""
    schema = TrainConfig.model_json_schema()

    def walk(properties: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
        for name, about in properties.items():
            if "$ref" in about:
                yield from walk(schema["$defs"][about["$ref"].rpartition("/")[2]]["properties"], f"{name}.")
            elif prefix + name not in NAMED:  # whose keys are their classes' fields
                yield prefix + name, describe(about)

    return dict(walk(schema["properties"], ""))


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def environments() -> dict[str, dict[str, Any]]:
    """What each file in configs/env gives, by id."""
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(CONFIGS.glob("env/*.yaml"))}


def default(key: Key, others: Mapping[str, str]) -> str:
    """The cell of a default, with a link if it depends on the environment."""
    if key.default == "???":
        return "–"
    reference = key.name
    while match := re.fullmatch(r"\$\{(.+)\}", others[reference]):
        reference = match[1]
    depends = any(reference == f"env.{name}" for given in environments().values() for name in given)
    return f"[`{key.default}`](#defaults-by-environment)" if depends else f"`{key.default}`"


def main_tables() -> str:
    """The tables of run, eval, checkpoint, log and env."""
    found = [key for name in ("train", "schema") for key in keys(CONFIGS / f"{name}.yaml")]
    own, known = {key.name: key.default for key in found}, train_types()
    tables: dict[str, list[list[str]]] = {}
    for key in found:
        group = key.name.rpartition(".")[0] or "run"
        if not group.startswith("hydra"):
            mark = "R" if key.name in CHANGEABLE else ""
            row = [f"`{key.name}`", known[key.name], default(key, own), mark, key.comment]
            tables.setdefault(group, []).append(row)
    head = ["key", "type and range", "default", "R", "explanation"]
    return "".join(f"\n## {group}\n\n{table(head, rows)}" for group, rows in tables.items())


def algorithm_table() -> str:
    """The hyperparameters of all algorithms side by side."""
    rows: dict[str, dict[str, Key]] = {}
    for algorithm in ALGORITHMS:
        for key in keys(CONFIGS / "algo" / f"{algorithm}.yaml"):
            rows.setdefault(key.name, {})[algorithm] = key
    known = {name: own for cls in ALGORITHMS.values() for name, own in types(cls).items()}
    known["name"] = " or ".join(f"`{name}`" for name in ALGORITHMS)
    lines = []
    for name, by_algorithm in rows.items():
        comments = {key.comment for key in by_algorithm.values()}
        assert len(comments) == 1, f"algo.{name} has several explanations: {comments}"
        defaults = [f"`{by_algorithm[a].default}`" if a in by_algorithm else "–" for a in ALGORITHMS]
        lines.append([f"`algo.{name}`", known[name], *defaults, *comments])
    titles = "".join(f"- `algo={name}`: {summary(cls)}\n" for name, cls in ALGORITHMS.items())
    head = ["key", "type and range", *(f"`algo={name}`" for name in ALGORITHMS), "explanation"]
    return f"\n## algo\n\n{titles}\n{table(head, lines)}"


def choice_tables(group: str, registry: Mapping[str, type]) -> str:
    """A table for each choice of a group."""
    text = f"\n## {group}\n"
    for name, cls in registry.items():
        known = types(cls) | {"name": f"`{name}`"}
        rows = [
            [f"`{group}.{key.name}`", known[key.name], f"`{key.default}`", key.comment]
            for key in keys(CONFIGS / group / f"{name}.yaml")
        ]
        text += f"\n`{group}={name}`: {summary(cls)}\n\n" + table(
            ["key", "type and range", "default", "explanation"], rows
        )
    return text


def other_tables() -> str:
    """The keys of networks, noises and replays."""
    registries: dict[str, Mapping[str, type]] = {"network": ARCHITECTURES, "noise": NOISES, "replay": SAMPLINGS}
    return "".join(choice_tables(group, registry) for group, registry in registries.items())


def summary(cls: type) -> str:
    """The first line of a docstring."""
    return (cls.__doc__ or "").partition("\n")[0]


def environment_table() -> str:
    """The defaults that depend on the environment."""
    every = yaml.safe_load((CONFIGS / "schema.yaml").read_text(encoding="utf-8"))["env"]
    ids: dict[tuple[int, ...], list[str]] = {}
    for env_id, given in environments().items():
        assert given.keys() <= {"id", *STEPS}, f"configs/env/{env_id}.yaml has a key that this table lacks"
        ids.setdefault(tuple((every | given)[name] for name in STEPS), []).append(f"`{env_id}`")
    rows = [[", ".join(names), *(f"{steps:,}" for steps in values)] for values, names in ids.items()]
    rows.append(["any other", *(f"{every[name]:,}" for name in STEPS)])
    head = ["`env.id`", *(f"`env.{name}`" for name in STEPS)]
    return f"\n## Defaults by environment\n\n{table(head, rows)}"


def group_tables() -> str:
    """The choices of each group."""
    chosen = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = [pair for own in chosen if isinstance(own, dict) for pair in own.items()]
    text = GROUPS.format(defaults=" ".join(f"{group}={choice}" for group, choice in pairs if choice))
    titles = {"algo": "algorithm", "experiment": "preset"}
    for group in (*NAMED, "experiment"):
        folder = CONFIGS / group
        names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        rows = [[f"[`{group}={n}`](../configs/{group}/{n}.yaml)", header(folder / f"{n}.yaml")] for n in names]
        text += "\n" + table([titles.get(group, group), "what it is"], rows)
    return text


def folder_table() -> str:
    """Where runs and sweeps are written."""
    rows = [
        [f"`{key.name}`", f"`{key.default}`", key.comment]
        for key in keys(CONFIGS / "train.yaml")
        if key.name.startswith(("hydra.run.", "hydra.sweep."))
    ]
    return "\n## Output folders\n\n" + table(["key", "default", "explanation"], rows)


def elsewhere_table() -> str:
    """The names that other programs have for the keys."""
    found: dict[str, list[str]] = {}
    for names, own, remark in TABLE:
        key = ", ".join(f"`{name}`" for name in own.split()) + (f", {remark}" if remark else "")
        found.setdefault(key, []).extend(f"`{name}`" for name in names.split())
    return ELSEWHERE + table(["key here", "names elsewhere"], [[key, ", ".join(found[key])] for key in found])


def page() -> str:
    """The whole page."""
    parts = (main_tables, algorithm_table, other_tables, environment_table, group_tables, folder_table, elsewhere_table)
    return HEAD + "".join(part() for part in parts)


def main() -> None:
    parse(sys.argv[1:], (), ())
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    run_script("keys", main)
