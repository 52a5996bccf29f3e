#!/usr/bin/env python
"""Speed of compiled updates beside the default ones, and what compiling costs at the start.

    python scripts/measure/compiled.py
    python scripts/measure/compiled.py threads=1 turns=5 out=compiled.json

TD3 on HalfCheetah-v4 with the networks `mlp` and `simba`, in float32 and bf16. A complete update (sampling too) is
timed in turns of a second: by default (hand-written gradients for `mlp`), with torch's automatic differentiation, and
compiled. Ratios are medians over pairs of turns. The start is timed in new processes, with an empty cache of torch and
with the cache of the one before.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from results import check_files, write
from updates import ROWS, fill, prepare
from variants import Timed

from dpg_cli.cli.arguments import parse, run_script, whole
from dpg_cli.learner import Learner

NETWORKS = {"mlp": ["algo=td3"], "simba": ["experiment=simba_td3"]}


def training(network: str, precision: str, threads: int, *, compiled: bool) -> list[str]:
    flag = f"compile={str(compiled).lower()}"
    return ["env=HalfCheetah-v4", *NETWORKS[network], f"precision={precision}", f"threads={threads}", flag]


def seconds_to_compile(network: str, precision: str, threads: int) -> tuple[float, float]:
    """With an empty cache, and with a full one."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--start", network, precision, str(threads)]
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
        runs = [subprocess.run(command, env=env, check=True, capture_output=True, text=True) for _ in range(2)]
    cold, cached = (float(run.stdout.split()[-1]) for run in runs)
    return cold, cached


def main() -> None:
    if sys.argv[1:2] == ["--start"]:
        learner = prepare(training(*sys.argv[2:4], int(sys.argv[4]), compiled=True), prepared=False).learner
        start = time.perf_counter()
        learner.prepare()
        print(time.perf_counter() - start)
        return
    values = parse(sys.argv[1:], ("threads", "turns", "out"), required=())
    check_files(values, "out")
    turns, threads = whole(values, "turns", 10, minimum=1), whole(values, "threads", 1, minimum=1)
    found = []
    print(f"{threads} threads, {turns} turns, medians")
    for network in NETWORKS:
        for precision in ("float32", "bf16"):
            timed = cases(network, precision, threads)
            times: dict[str, list[float]] = {name: [] for name in timed}
            for _ in range(turns):
                for name, one in timed.items():
                    times[name].append(one.milliseconds())
            cold, cached = seconds_to_compile(network, precision, threads)
            gains = {
                name: statistics.median(a / b for a, b in zip(own, times["compiled"], strict=True))
                for name, own in times.items()
            }
            line = ", ".join(
                f"{name} {statistics.median(own):.2f} ms ({gains[name]:.2f})" for name, own in times.items()
            )
            print(f"{network}, {precision}: {line}; start {cold:.1f} s, cached {cached:.1f} s", flush=True)
            found.append({"network": network, "precision": precision, "ms": times, "cold": cold, "cached": cached})
    write(values, {"threads": threads, "cases": found})


def cases(network: str, precision: str, threads: int) -> dict[str, Timed]:
    """The forms of an update by name; the number in brackets of a line is their time divided by that of `compiled`."""
    found = {"default": Timed(prepare(training(network, precision, threads, compiled=False)))}
    plain, compiled = (prepare(training(network, precision, threads, compiled=True), prepared=False) for _ in range(2))
    if network == "mlp":  # whose default is not torch's automatic differentiation
        fill(plain, ROWS)
        found["autograd"] = Timed(plain._replace(learner=Learner(plain.algorithm, plain.replay)))
    compiled.learner.prepare()
    fill(compiled, ROWS)
    return found | {"compiled": Timed(compiled)}


if __name__ == "__main__":
    run_script("compiled", main)
