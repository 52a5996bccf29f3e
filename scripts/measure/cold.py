#!/usr/bin/env python
"""What surrounds an update, at once after itself and after a few milliseconds of something else.

    python scripts/measure/cold.py
    python scripts/measure/cold.py threads=1 rounds=500 out=cold.json

Medians in microseconds, HalfCheetah-v4, one seed. In between there is nothing; or 4 ms of a loop that reads the clock
and touches no memory; or an update. Where the loop alone makes the parts slower, it is not, or not only, this program
that has put them out of the caches.
"""

import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise

from results import check_files, write
from updates import prepare, update_once

from dpg_cli.cli.arguments import parse, run_script, whole
from dpg_cli.cli.build import Training
from dpg_cli.environments.rollout import Transition

PARTS = ("acting", "exploration noise", "environment and checks", "storing", "sampling")
SECONDS = 0.004  # of the loop


def main() -> None:
    values = parse(sys.argv[1:], ("threads", "rounds", "out"), required=())
    check_files(values, "out")
    rounds = whole(values, "rounds", 300, minimum=1)
    overrides = ["env=HalfCheetah-v4", f"threads={whole(values, 'threads', 1, minimum=1)}"]
    training = prepare(overrides)
    training.environments.reset()
    between: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "4 ms of a loop": spin,
        "an update": lambda: update_once(training),
    }
    medians = {}
    for name, act in between.items():
        times = [round_of(training, act) for _ in range(rounds)][rounds // 10 :]
        medians[name] = [1e6 * statistics.median(part) for part in zip(*times, strict=True)]
    print(f"{'µs after':26}" + "".join(f"{name:>16}" for name in between))
    for i, part in enumerate(PARTS):
        print(f"{part:26}" + "".join(f"{medians[name][i]:16.0f}" for name in between))
    print(f"{'together':26}" + "".join(f"{sum(medians[name]):16.0f}" for name in between))
    write(values, {"overrides": overrides, "rounds": rounds, "microseconds": medians})


def spin() -> None:
    """Read the clock for a while."""
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        pass


def round_of(training: Training, between: Callable[[], object]) -> list[float]:
    """Seconds of each part of a step."""
    algorithm, environments, noise, replay = training.algorithm, training.environments, training.noise, training.replay
    between()
    clock = [time.perf_counter()]
    action = algorithm.act(environments.obs)
    clock.append(time.perf_counter())
    action = (action + noise.sample(0)).clip(-1.0, 1.0)
    clock.append(time.perf_counter())
    transition: Transition = environments.step(0, action)[0]
    clock.append(time.perf_counter())
    replay.add(*transition)
    clock.append(time.perf_counter())
    replay.sample(algorithm.batch_size)
    clock.append(time.perf_counter())
    return [after - before for before, after in pairwise(clock)]


if __name__ == "__main__":
    run_script("cold", main)
