#!/usr/bin/env python
"""Time per update against batch, width and seeds, and per environment step against environments: table and picture.

    python scripts/measure/scaling.py                              # the picture is outputs/scaling.png
    python scripts/measure/scaling.py algo=ddpg threads=1 repetitions=3 updates=20 out=scaling.json image=scaling.png

TD3 on HalfCheetah-v4 with its own 256-256 and batch of 256, except the one size that is varied. An update is timed
with sampling; `width` is that of both hidden layers, an update of `num_seeds` seeds is one update of all of them.
Against `num_envs` stands the time of one environment step while acting, without updates. Every size is measured once a
repetition, in turns; the table has the medians. Needs the extra `report`: pip install -e '.[report]'
"""

import itertools
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from results import check_files, write
from updates import prepare, update_once

from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.cli.arguments import parse, run_script, whole
from dpg_cli.cli.build import Training
from dpg_cli.cli.machine import affinity
from dpg_cli.environments.rollout import collect
from dpg_cli.errors import UserError

IMAGE = Path("outputs", "scaling.png")
OVERRIDES = {
    "batch": "algo.batch_size={0}",
    "width": "algo.hidden_sizes=[{0},{0}]",
    "num_seeds": "num_seeds={0}",
    "num_envs": "num_envs={0}",
}
SIZES = {
    "batch": [64, 128, 256, 512, 1024, 2048, 4096],
    "width": [32, 64, 128, 256, 512, 1024],
    "num_seeds": [1, 2, 4, 8, 16],
    "num_envs": [1, 2, 4, 8, 16, 32],
}
Times = dict[str, dict[int, dict[int, float]]]  # milliseconds by what is varied, threads and size


def main() -> None:
    values = parse(sys.argv[1:], ("algo", "threads", "repetitions", "updates", "out", "image"), required=())
    check_files(values, "out", "image")
    algo = values.get("algo", "td3")
    if algo not in ALGORITHMS:
        raise UserError(f"algo={algo}: there are {', '.join(ALGORITHMS)}")
    repetitions, updates = whole(values, "repetitions", 5, minimum=1), whole(values, "updates", 50, minimum=1)
    most = whole(values, "threads", min(affinity(), 2), minimum=1)
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is missing; pip install -e '.[report]'")

    cases = [
        (varied, threads, size)
        for varied, sizes in SIZES.items()
        for threads, size in itertools.product(range(1, most + 1), sizes)
    ]
    measured: dict[tuple[str, int, int], list[float]] = {case: [] for case in cases}
    for _ in range(repetitions):
        for case in cases:
            measured[case].append(milliseconds(algo, *case, updates))
    times: Times = {varied: {threads: {} for threads in range(1, most + 1)} for varied in SIZES}
    for (varied, threads, size), own in measured.items():
        times[varied][threads][size] = statistics.median(own)

    for varied, lines in times.items():
        unit = "an environment step" if varied == "num_envs" else "an update"
        print(f"\n{varied:>9}" + "".join(f"{f'{threads} threads':>13}" for threads in lines) + f"   ms {unit}")
        for size in SIZES[varied]:
            print(f"{size:9}" + "".join(f"{line[size]:13.3f}" for line in lines.values()))
    write(values, {"algo": algo, "ms": times})
    draw(algo, times, Path(values.get("image", IMAGE)))


def milliseconds(algo: str, varied: str, threads: int, size: int, updates: int) -> float:
    """Of an update, or of an environment step where `num_envs` is varied."""
    training = prepare([f"algo={algo}", f"threads={threads}", OVERRIDES[varied].format(size)])
    try:
        if varied == "num_envs":
            return 1_000 * seconds_acting(training, 10 * updates)
        for _ in range(1 + updates // 10):
            update_once(training)
        start = time.perf_counter()
        for _ in range(updates):
            update_once(training)
        return 1_000 * (time.perf_counter() - start) / updates
    finally:
        training.close()


def seconds_acting(training: Training, steps: int) -> float:
    """Of one environment step with the policy and its noise."""
    environments = training.environments
    environments.reset()
    enough = 2 * (steps + environments.num_envs)
    loop = collect(training.algorithm, environments, training.noise, step=0, total_steps=enough, random_steps=0)
    warm = next(step for step, _, _ in loop if step >= steps // 4)
    start = time.perf_counter()
    end = next(step for step, _, _ in loop if step >= warm + steps)
    return (time.perf_counter() - start) / (end - warm)


def draw(algo: str, times: Times, image: Path) -> None:
    """A panel for each size that is varied."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(times), figsize=(10, 3.1), layout="constrained")
    for ax, (varied, lines) in zip(axes, times.items(), strict=True):
        for threads, line in lines.items():
            label = f"{threads} threads" if threads > 1 else "1 thread"
            ax.loglog(list(line), list(line.values()), "o-", markersize=3, label=label)
        ax.set_xticks(SIZES[varied], [str(size) for size in SIZES[varied]], fontsize=7)
        ax.minorticks_off()
        ax.set(xlabel=varied, title="ms an environment step" if varied == "num_envs" else "ms an update")
        ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"{algo} on HalfCheetah-v4")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=150)
    print(f"\n-> {image}")


if __name__ == "__main__":
    run_script("scaling", main)
