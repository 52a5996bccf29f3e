#!/usr/bin/env python
"""Time of a complete update with some keys changed, beside an update without.

    python scripts/measure/variants.py replay=lap
    python scripts/measure/variants.py replay=lap algo.n_steps=3 experiment=simba_td3 stored=1e6 threads=1 out=lap.json
    python scripts/measure/variants.py compile=true base=experiment=simba_td3,precision=bf16

Each bare word is a variant: keys of dpg-train, with commas between. The keys of `base=` hold for all. A complete
update (storing one transition, sampling, the update, new priorities) is timed in turns, for all of them in one process.
Each pair of turns gives a ratio; medians are printed. `stored=` is the number of stored transitions.
"""

import statistics
import sys
import time

import numpy as np
from results import check_files, write
from updates import prepare

from dpg_cli.cli.arguments import parse, run_script, whole
from dpg_cli.cli.build import Training
from dpg_cli.replay import Step

SECONDS = 1.0  # of a turn
KEYS = ("base", "stored", "threads", "turns", "out")


def main() -> None:
    own = [word for word in sys.argv[1:] if word.partition("=")[0] in KEYS]
    variants = [word for word in sys.argv[1:] if word not in own]
    values = parse(own, KEYS, required=())
    check_files(values, "out")
    stored, threads = whole(values, "stored", 10_000, minimum=1_000), whole(values, "threads", 1, minimum=1)
    turns = whole(values, "turns", 10, minimum=1)
    base = ["env=HalfCheetah-v4", "algo=td3", f"threads={threads}", *filter(None, values.get("base", "").split(","))]
    names = ["base", *variants]
    timed = [Timed(prepare([*base, *name.split(",")] if name != "base" else base, stored)) for name in names]
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns):
        for name, one in zip(names, timed, strict=True):
            times[name].append(one.milliseconds())
    print(f"{' '.join(base)}, {stored:,} stored, {turns} turns of {SECONDS:g} s, medians")
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["base"], strict=True))
        print(f"{statistics.median(times[name]):8.3f} ms  {ratio:6.3f} times  {name}")
    write(values, {"base": base, "stored": stored, "threads": threads, "ms": times})


class Timed:
    """A training whose complete updates are timed."""

    def __init__(self, training: Training):
        self._learner = training.learner
        shapes = training.replay.step_shapes
        self._step = Step(*(np.zeros(shape) for shape in shapes))
        self.milliseconds(20)

    def milliseconds(self, least: int = 1) -> float:
        """Of an update, over a turn."""
        count, start = 0, time.perf_counter()
        while count < least or time.perf_counter() - start < SECONDS:
            self._learner.learn(self._step, observed=self._step.obs, updates=1, acts_next=False)
            count += 1
        return 1_000 * (time.perf_counter() - start) / count


if __name__ == "__main__":
    run_script("variants", main)
