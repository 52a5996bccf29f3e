#!/usr/bin/env python
"""Kill one of two nodes of a Ray cluster during a sweep: its jobs must resume on the other, with the same results.

    python scripts/measure/ray_faults.py out=ray.json
    python scripts/measure/ray_faults.py seed=1 times=1

Both nodes run on this machine, with one CPU each. At a random moment, all processes of the second one get SIGKILL. The
evaluations of all jobs must be equal, byte for byte, to those of the same sweep without Ray; otherwise the exit code
is 1.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from results import check_files, write

from dpg_cli.cli.arguments import parse, run_script, whole

JOBS = 8
SWEEP = (
    *("-m", f"seed=range({JOBS})", "algo=td3", "env=Pendulum-v1", "device=cpu", "threads=1", "total_steps=1000"),
    *("random_steps=300", "eval.every=500", "eval.episodes=2", "checkpoint.every=50"),
)
TRAIN = (sys.executable, "-c", "from dpg_cli.cli.train import main; main()")
RAY = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats")
ENVIRON = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
MOMENT = (0.0, 10.0)  # seconds after a job on each node has learned for a while


def main() -> None:
    values = parse(sys.argv[1:], ("seed", "times", "out"), required=())
    check_files(values, "out")
    seed = whole(values, "seed", 0, minimum=0)
    found = []
    with tempfile.TemporaryDirectory(prefix="ray") as name:
        folder = Path(name)
        subprocess.run([*TRAIN, *SWEEP, "hydra.sweep.dir=plain"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for case in range(whole(values, "times", 3, minimum=1)):
            found.append(kill_one_node(folder, case, random.Random(f"{seed} {case}")))
            print(json.dumps(found[-1]), flush=True)
    write(values, {"seed": seed, "sweep": SWEEP, "cases": found})
    if not all(own["equal"] and own["exit_code"] == 0 for own in found):
        sys.exit(1)


def kill_one_node(folder: Path, case: int, chance: random.Random) -> Mapping[str, Any]:
    """Run the sweep on two nodes and kill the second; returns what happened."""
    with cluster(folder / f"ray_{case}") as (address, second):
        arguments = [*SWEEP, "hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}"]
        arguments += ["hydra.launcher.ray.remote.scheduling_strategy=SPREAD", f"hydra.sweep.dir=case_{case}"]
        began = time.monotonic()
        with (folder / f"case_{case}.log").open("w") as log:
            sweep = subprocess.Popen([*TRAIN, *arguments], cwd=folder, env=ENVIRON, stdout=log, stderr=log)
            while len({path.parts[-3] for path in folder.glob(f"case_{case}/*/checkpoints/step_*[1-9]?0")}) < 2:
                time.sleep(0.1)
            time.sleep(chance.uniform(*MOMENT))
            killed = time.monotonic() - began
            victims = tree(second)
            jobs = sum(process.name().startswith("ray::_run_job") for process in victims)
            kill(victims)
            code = sweep.wait()
        seconds = time.monotonic() - began
    own = folder / f"case_{case}"
    runs = {path.parent.name: json.loads(path.read_text()) for path in sorted(own.glob("*/run.json"))}
    resumed = {name: [entry["step"] for entry in run["resumed"]] for name, run in runs.items() if "resumed" in run}
    states = [entry["state"] for entry in json.loads((own / "sweep.json").read_text())["jobs"]]
    return {
        "case": case,
        "killed_after_seconds": round(killed, 1),
        "jobs_killed": jobs,
        "resumed_at_step": resumed,
        "exit_code": code,
        "done": states.count("done"),
        "seconds": round(seconds, 1),
        "equal": evaluations(own) == evaluations(folder / "plain"),
    }


@contextlib.contextmanager
def cluster(temporary: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Two nodes: the address, and the second node's process. Nothing of them is left afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={temporary}")
    nodes: list[psutil.Process] = []
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": ENVIRON}
    try:
        for place in (head, (f"--address={address}",)):
            nodes.append(psutil.Popen([*RAY, *place], **quiet))
            while not any(process.name() == "raylet" for process in tree(nodes[-1])):
                time.sleep(0.1)
        yield address, nodes[1]
    finally:
        kill([process for node in nodes for process in tree(node)])


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all below it; none if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)


def evaluations(sweep: Path) -> Mapping[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(sweep.glob("*/evaluations.jsonl"))}


if __name__ == "__main__":
    run_script("ray_faults", main)
