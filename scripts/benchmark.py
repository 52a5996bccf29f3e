#!/usr/bin/env python
"""Training speed of dpg-train beside stable-baselines3, in one run, interleaved.

    python scripts/benchmark.py
    python scripts/benchmark.py algo=ddpg threads=1 steps=3000 repetitions=7 out=speed.json

Both train on HalfCheetah-v4 with 256-256 networks, batches of 256 and one update a step, each repetition in a process
of its own. Timed are environment steps with learning, after a warm-up, with everything that the real programs do
between them (logging too); start-up and evaluations are not. Needs the extra `bench`: pip install -e '.[bench]'
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from dpg_cli.cli.arguments import parse, whole
from dpg_cli.errors import UserError

ENV = "HalfCheetah-v4"
WARM_UP = 1_000  # steps: half of them uniform actions without updates, half with


def dpg_cli(algo: str, steps: int, threads: int) -> float:
    """Environment steps a second of `dpg-train`."""
    start, end = WARM_UP, WARM_UP + steps
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            "dpg-train",
            f"algo={algo}",
            f"env={ENV}",
            "algo.batch_size=256",
            f"total_steps={end}",
            "random_steps=500",
            f"eval.every={end}",
            "eval.episodes=1",
            "log.every=500",
            f"threads={threads}",
            "device=cpu",
            f"hydra.run.dir={run}",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment(threads))
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        times = {record["step"]: record["time"] for record in records if "perf/steps_per_second" in record}
    return steps / (times[end] - times[start])


def stable_baselines3(algo: str, steps: int, threads: int) -> float:
    """Environment steps a second of stable-baselines3, its own process being this script."""
    command = [sys.executable, __file__, "--stable-baselines3", algo, str(steps), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(threads))
    return float(done.stdout)


def run_stable_baselines3(algo: str, steps: int, threads: int) -> float:
    """Train with stable-baselines3 in this process; environment steps a second after the warm-up."""
    import stable_baselines3
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps in (WARM_UP, WARM_UP + steps):
                times.append(time.perf_counter())
            return True

    times: list[float] = []
    torch.set_num_threads(threads)
    learner = {"td3": stable_baselines3.TD3, "ddpg": stable_baselines3.DDPG}[algo]
    model = learner(
        "MlpPolicy",
        ENV,
        learning_starts=500,
        batch_size=256,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": [256, 256]},
        device="cpu",
        seed=0,
    )
    model.learn(WARM_UP + steps + 1, callback=Clock())
    return steps / (times[1] - times[0])


def environment(threads: int) -> dict[str, str]:
    """The environment of a measured process."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}


def main() -> None:
    if sys.argv[1:2] == ["--stable-baselines3"]:
        print(run_stable_baselines3(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        return
    values = parse(sys.argv[1:], ("algo", "steps", "threads", "repetitions", "out"), required=())
    algo = values.get("algo", "td3")
    if algo not in ("td3", "ddpg"):
        raise UserError(f"algo={algo}: should be td3 or ddpg")
    steps, repetitions = whole(values, "steps", 2_000, minimum=500), whole(values, "repetitions", 5, minimum=1)
    threads = whole(values, "threads", min(len(os.sched_getaffinity(0)), 2), minimum=1)
    if steps % 500:
        raise UserError(f"steps={steps}: should be a multiple of 500, the logging stride")
    if find_spec("stable_baselines3") is None:
        raise UserError("stable-baselines3 is missing; pip install -e '.[bench]'")

    candidates = {"dpg-cli": dpg_cli, "stable-baselines3": stable_baselines3}
    speeds: dict[str, list[float]] = {name: [] for name in candidates}
    for repetition in range(repetitions):
        for name, measure in candidates.items():
            speeds[name].append(measure(algo, steps, threads))
        print(f"{repetition + 1} of {repetitions}: " + ", ".join(f"{n} {s[-1]:.1f}" for n, s in speeds.items()))

    result = {
        "algo": algo,
        "env": ENV,
        "steps": steps,
        "threads": threads,
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "load": os.getloadavg()},
        "steps_per_second": speeds,
    }
    print(f"\n{algo} on {ENV}, {threads} threads, {steps} steps, {repetitions} repetitions")
    print(f"{'':20}{'median':>9}{'lowest':>9}{'highest':>9}   median of paired ratios")
    for name, own in speeds.items():
        ratios = [a / b for a, b in zip(own, speeds["stable-baselines3"], strict=True)]
        median, ratio = statistics.median(own), statistics.median(ratios)
        print(f"{name:20}{median:9.1f}{min(own):9.1f}{max(own):9.1f}   {ratio:.2f}")
        result[f"ratio {name}"] = ratio
    if "out" in values:
        Path(values["out"]).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        sys.exit(2)
