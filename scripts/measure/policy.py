#!/usr/bin/env python
"""Time of one call of a trained policy, `policy(obs)`, on one thread, and of importing and loading it.

    python scripts/measure/policy.py run=RUN_DIR
    python scripts/measure/policy.py run=RUN_DIR repetitions=50 calls=1_000

The time of a call is the mean of `calls` calls with one observation; the best and the median repetition are printed.
"""

import os
import statistics
import sys
import time

from dpg_cli.cli.arguments import parse, run_script, whole


def main() -> None:
    values = parse(sys.argv[1:], ("run", "repetitions", "calls"), required=("run",), bare="run")
    repetitions, calls = whole(values, "repetitions", 50, minimum=1), whole(values, "calls", 1_000, minimum=1)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy is imported
    start = time.perf_counter()
    from dpg_cli import load_policy

    imported = time.perf_counter()
    policy = load_policy(values["run"])
    loaded = time.perf_counter()
    print(f"import {imported - start:.2f} s, load {1_000 * (loaded - imported):.0f} ms")
    policy.observation_space.seed(0)
    obs = policy.observation_space.sample()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        for _ in range(calls):
            policy(obs)
        times.append(1e6 * (time.perf_counter() - start) / calls)
    print(f"{policy.env_id}: a call takes {min(times):.1f} µs at best, {statistics.median(times):.1f} µs in the median")


if __name__ == "__main__":
    run_script("policy", main)
