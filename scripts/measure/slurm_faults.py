"""Sweeps on SLURM that are preempted, lose a node, are cancelled or reach their time limit must end with equal numbers.

    python scripts/measure/slurm_faults.py out=FOLDER [faults=preempt,node,cancel,limit] [steps=6000]
        [partition=low] [high=high] [kill_node=COMMAND] [start_node=COMMAND]

It needs a SLURM of two nodes with two CPUs each, and a partition whose jobs preempt those of another one by requeuing
them. `kill_node` is a shell command that kills a node with all processes of its jobs.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

JOBS = ("env=Pendulum-v1", "algo=td3,ddpg", "seed=range(6)", "random_steps=500", "learning_starts=500")
EVALUATED = ("eval.every=1000", "eval.episodes=2", "checkpoint.every=1000")


def train(*arguments: str) -> subprocess.Popen[bytes]:
    """Start dpg-train; its output goes to the caller's."""
    return subprocess.Popen(["dpg-train", *arguments])


def numbers(sweep: Path) -> dict[str, str]:
    """The evaluations of each job."""
    return {path.parent.name: path.read_text() for path in sorted(sweep.glob("*/evaluations.jsonl"))}


def resumptions(sweep: Path) -> int:
    """How often jobs resumed."""
    return sum(len(json.loads(path.read_text()).get("resumed", [])) for path in sweep.glob("*/run.json"))


def preempt(high: str, until: subprocess.Popen[bytes]) -> None:
    """Every 20 seconds, a job of the other partition takes one node for three seconds."""
    while until.poll() is None:
        time.sleep(20)
        command = ["srun", "--partition", high, "--nodes=1", "--cpus-per-task=2", "--job-name=high", "sleep", "3"]
        subprocess.run(command, check=False)


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    out, steps = Path(options["out"]), options.get("steps", "6000")
    shared = [*JOBS, *EVALUATED, f"total_steps={steps}"]
    if not (out / "reference").exists():
        assert train("-m", *shared, "threads=1", f"hydra.sweep.dir={out / 'reference'}").wait() == 0
    expected = numbers(out / "reference")
    results = {}
    for fault in options.get("faults", "preempt,node,cancel,limit").split(","):
        sweep, began = out / fault, time.monotonic()
        slurm = ["hydra/launcher=slurm", f"hydra.launcher.partition={options.get('partition', 'low')}"]
        if fault == "limit":
            slurm += ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=20"]
        running = train("-m", *slurm, *shared, f"hydra.sweep.dir={sweep}")
        if fault == "preempt":
            preempt(options.get("high", "high"), running)
        if fault == "node":
            time.sleep(30)
            subprocess.run(options["kill_node"], shell=True, check=False)
        if fault == "cancel":
            time.sleep(30)
            name = json.loads((sweep / "slurm.json").read_text())["jobs"]["1"]["name"]
            subprocess.run(["scancel", name], check=True)
        codes = [running.wait()]
        if fault == "node" and "start_node" in options:
            subprocess.run(options["start_node"], shell=True, check=True)
        while codes[-1] != 0 and len(codes) < 4:
            codes.append(train(f"resume={sweep}").wait())
        states = [job["state"] for job in json.loads((sweep / "sweep.json").read_text())["jobs"]]
        results[fault] = {
            "equal": numbers(sweep) == expected and states == ["done"] * len(expected),
            "exit codes": codes,
            "jobs": len(expected),
            "resumed": resumptions(sweep),
            "seconds": round(time.monotonic() - began),
        }
        print(json.dumps({fault: results[fault]}), flush=True)
        (out / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
