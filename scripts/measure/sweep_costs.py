#!/usr/bin/env python
"""What sweeps cost: jobs in parallel against one after another, and the bookkeeping of many jobs.

    python scripts/measure/sweep_costs.py parts=throughput,bookkeeping,record
    python scripts/measure/sweep_costs.py parts=throughput rounds=3 jobs=8 n_jobs=2 steps=4000 out=sweeps.json

- throughput: `jobs` trainings of TD3 on HalfCheetah-v4, as a plain sweep with threads=1 and with
  `hydra/launcher=local hydra.launcher.n_jobs=N`. The two take turns; steps per second of the whole command.
- bookkeeping: a plain sweep of `many` jobs of 20 steps without evaluations: the seconds of the whole command, those
  inside trainings, those of Hydra's own work for each job, and the rest, which is this project's.
- record: writing a `sweep.json` of 10,000 jobs.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl
from hydra.core import utils
from results import check_files, write

from dpg_cli.cli import handover, sweep
from dpg_cli.cli.arguments import parse, run_script, whole
from dpg_cli.cli.train import main as dpg_train
from dpg_cli.sweeps.record import Job, SweepFile

RECORDED = 10_000  # jobs in sweep.json


def throughput(jobs: int, n_jobs: int, steps: int, rounds: int) -> dict[str, Any]:
    """Steps per second of both sweeps, by round, and the ratio of the medians."""
    shared = ["-m", "env=HalfCheetah-v4", f"seed=range({jobs})", f"total_steps={steps}", "random_steps=1000"]
    shared += ["learning_starts=1000", f"eval.every={steps}", "eval.episodes=1", "device=cpu"]
    kinds = {
        "one after another": ["threads=1"],
        f"{n_jobs} at once": ["hydra/launcher=local", f"hydra.launcher.n_jobs={n_jobs}"],
    }
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, own in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                began = time.monotonic()
                command = ["dpg-train", *shared, *own, f"hydra.sweep.dir={folder}/sweep"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                speeds[kind].append(jobs * steps / (time.monotonic() - began))
    plain, parallel = (statistics.median(found) for found in speeds.values())
    return {"steps per second": speeds, "ratio": parallel / plain}


def bookkeeping(many: int) -> dict[str, float]:
    """Seconds of a sweep of `many` jobs."""
    seconds = {"trainings": 0.0, "composing (Hydra)": 0.0, "jobs (Hydra and all inside)": 0.0, "tasks": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            began = time.monotonic()
            try:
                return function(*arguments, **named)
            finally:
                seconds[name] += time.monotonic() - began

        return call

    sweep.run_job = timed("trainings", sweep.run_job)
    loader: Any = config_loader_impl.ConfigLoaderImpl
    loader.load_sweep_config = timed("composing (Hydra)", loader.load_sweep_config)
    hydra_utils: Any = utils  # Hydra's launcher, which it imports later, takes run_job from here
    hydra_utils.run_job = timed("jobs (Hydra and all inside)", hydra_utils.run_job)
    hand_over = handover.hand_over
    handover.hand_over = lambda task, arguments: hand_over(timed("tasks", task), arguments)
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["dpg-train", "-m", "env=Pendulum-v1", f"seed=range({many})", "total_steps=20", "random_steps=10"]
        sys.argv += ["eval.episodes=0", "algo.hidden_sizes=[8]", "threads=1", "device=cpu"]
        sys.argv += [f"hydra.sweep.dir={folder}/sweep"]
        began = time.monotonic()
        out, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        try:
            dpg_train()
        except SystemExit as ended:
            if ended.code:
                raise
        finally:
            os.dup2(out, 1)
        whole_command = time.monotonic() - began
    hydra = seconds["composing (Hydra)"] + seconds["jobs (Hydra and all inside)"] - seconds["tasks"]
    ours = whole_command - seconds["trainings"] - hydra
    return {"whole": whole_command, "trainings": seconds["trainings"], "Hydra": hydra, "bookkeeping": ours}


def record() -> dict[str, float]:
    """Seconds of one write, the median of 21."""
    jobs = [Job(n, ["env=HalfCheetah-v4", "algo=td3", f"seed={n}"], str(n), "done") for n in range(RECORDED)]
    with tempfile.TemporaryDirectory() as folder:
        file, times = SweepFile(Path(folder), ["dpg-train", "-m"], "local", jobs), []
        for _ in range(21):
            began = time.monotonic()
            file.flush()
            times.append(time.monotonic() - began)
        size = (Path(folder) / "sweep.json").stat().st_size
    return {"seconds": statistics.median(times), "bytes": size}


def main() -> None:
    keys = ("parts", "rounds", "jobs", "n_jobs", "steps", "many", "out")
    values = parse(sys.argv[1:], keys, ())
    check_files(values, "out")
    found: dict[str, Any] = {}
    for part in values.get("parts", "throughput,bookkeeping,record").split(","):
        if part == "throughput":
            defaults = {"jobs": 8, "n_jobs": 2, "steps": 4000, "rounds": 3}
            found[part] = throughput(**{key: whole(values, key, number, 1) for key, number in defaults.items()})
        elif part == "bookkeeping":
            found[part] = bookkeeping(whole(values, "many", 1000, 1))
        else:
            found[part] = record()
        print(part, found[part], flush=True)
    write(values, found)


if __name__ == "__main__":
    run_script("sweep_costs.py", main)
