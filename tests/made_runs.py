"""Run folders with chosen results, as a training would leave them."""

import json
from datetime import UTC, datetime, timedelta

import yaml

START = datetime(2026, 11, 27, 8, 0, tzinfo=UTC)
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "gymnasium": "1.4.0", "mujoco": "4.0.0", "dpg_cli": "0.1.0"}


def make_run(folder, returns, *, steps=None, seed=0, env="HalfCheetah-v4", algo="td3", status="done", **more):
    """Write a run folder.

    `returns`: of each evaluation, a number or the returns of its episodes; `steps`: of the evaluations, by default
    0, 1000, …; an evaluation takes six minutes. `more`: settings such as `algo__tau=0.01`; and `error`, `record`,
    `saturation`, `untrained`.
    """
    folder.mkdir(parents=True)
    error, record = more.pop("error", None), more.pop("record", {})
    saturation, untrained = more.pop("saturation", 0.3), more.pop("untrained", [-3.0, -2.0])
    config = {
        "seed": seed,
        "total_steps": 1000,
        "algo": {"name": algo},
        "env": {"id": env},
        "noise": {"name": "gaussian"},
    }
    for key, value in more.items():
        *parents, name = key.split("__")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    steps = [1000 * number for number in range(len(returns))] if steps is None else steps
    evaluations, metrics = [], []
    for number, (step, value) in enumerate(zip(steps, returns, strict=True)):
        episodes = value if isinstance(value, list) else [value - 1, value + 1]
        if step == 0 and untrained is not None:
            episodes = untrained
        evaluations.append({"step": step, "returns": episodes, "lengths": [1000] * len(episodes)})
        when = (START + timedelta(minutes=6 * number)).timestamp()
        metrics.append({"step": step, "time": when, "eval/return_mean": 0.0, "policy/saturation": saturation})
    write_lines(folder / "evaluations.jsonl", evaluations)
    write_lines(folder / "metrics.jsonl", metrics)
    described = {"status": status, "error": error, "started": START.isoformat(), "versions": VERSIONS}
    described |= {"command": ["dpg-train", f"env={env}"], "machine": {"host": "box", "platform": "Linux", "cpus": 2}}
    (folder / "run.json").write_text(json.dumps(described | record))
    return folder


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
