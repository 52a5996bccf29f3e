#!/usr/bin/env python
"""Time per update of several seeds in one process beside as many separate processes.

    python scripts/measure/seeds.py
    python scripts/measure/seeds.py algo=ddpg counts=1,2,4 repetitions=5 updates=300 out=seeds.json

An update of `counts` seeds (with sampling; HalfCheetah-v4, the algorithm's own networks and batch) is timed in one
process with `num_seeds`, threads=auto, and in so many processes of one seed and one thread each, all at work at once.
The two are measured in turns.
"""

import statistics
import subprocess
import sys
import time

from results import check_files, write
from updates import prepare, update_once

from dpg_cli.cli.arguments import parse, run_script, whole
from dpg_cli.cli.machine import affinity

WARM_UP = 20  # updates


def work(algo: str, num_seeds: int, threads: str, updates: int) -> None:
    """One process: get ready, wait for a line, update, print the seconds."""
    training = prepare([f"algo={algo}", "env=HalfCheetah-v4", f"num_seeds={num_seeds}", f"threads={threads}"])
    for _ in range(WARM_UP):
        update_once(training)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for _ in range(updates):
        update_once(training)
    print(time.perf_counter() - start, flush=True)


def measure(algo: str, processes: int, num_seeds: int, threads: str, updates: int) -> float:
    """Milliseconds that an update of every seed takes."""
    command = [sys.executable, __file__, "--work", algo, str(num_seeds), threads, str(updates)]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(processes)]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return 1_000 * max(float(process.communicate()[0]) for process in started) / updates


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
        return
    values = parse(sys.argv[1:], ("algo", "counts", "repetitions", "updates", "out"), required=())
    check_files(values, "out")
    counts = [int(count) for count in values.get("counts", "1,2,4,8,16").split(",")]
    repetitions, updates = whole(values, "repetitions", 5, minimum=1), whole(values, "updates", 100, minimum=1)
    algo = values.get("algo", "td3")

    times: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for repetition in range(repetitions):
        for count in counts:
            together = measure(algo, 1, count, "auto", updates)
            apart = measure(algo, count, 1, "1", updates)
            times[count].append((together, apart))
            print(f"{repetition + 1} of {repetitions}, {count} seeds: {together:.2f} ms together, {apart:.2f} ms apart")

    print(f"\n{algo}, {affinity()} cores, {updates} updates, {repetitions} repetitions, medians")
    print(f"{'seeds':>6}{'one process':>15}{'a seed':>12}{'processes':>13}{'ratio':>8}")
    for count, pairs in times.items():
        together, apart = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"{count:6}{together:12.2f} ms{together / count:9.2f} ms{apart:10.2f} ms{ratio:8.2f}")
    write(values, {"algo": algo, "ms": times})


if __name__ == "__main__":
    run_script("seeds", main)
