#!/usr/bin/env python
"""Draw `value/bias` and the return of a sweep with experiment=overestimation: see docs/theory.md.

    python scripts/overestimation.py sweep=outputs/sweeps/TIMESTAMP [out=outputs/overestimation.png]

Needs the extra `report`: pip install -e '.[report]'
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from dpg_cli import config
from dpg_cli.cli.arguments import PICTURES, output_file, parse, run_script
from dpg_cli.errors import UserError
from dpg_cli.storage import untrusted

try:
    import matplotlib.pyplot as plt
except ImportError:
    sys.exit('scripts/overestimation.py: matplotlib is missing; install it with: pip install -e ".[report]"')

NAMES = {1: "DDPG (one critic)", 2: "clipped double Q (two critics)"}
TAGS = {"value/bias": "Q(s, μ(s)) minus the discounted return", "eval/return_mean": "return of the evaluation"}
Curves = dict[int, list[dict[int, float]]]  # by number of critics, one curve a seed, by step


def main() -> None:
    values = parse(sys.argv[1:], ("sweep", "out"), required=("sweep",))
    sweep = Path(values["sweep"])
    image = output_file(values, "out", "outputs/overestimation.png", PICTURES)
    runs = sorted(sweep.glob("*/seed_*/metrics.jsonl"))
    if not runs:
        raise UserError(f"sweep={sweep}: holds no <job>/seed_<k>/metrics.jsonl")
    configs = [config.load_from(run.parent).model_dump() for run in runs]
    if {own["algo"].get("num_critics") for own in configs} != set(NAMES):
        raise UserError(f"sweep={sweep}: must hold runs with algo.num_critics=1 and with 2, and no others")
    plt.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True})
    figure, axes = plt.subplots(1, len(TAGS), figsize=(8, 3.4), layout="constrained")
    for axis, (tag, label) in zip(axes, TAGS.items(), strict=True):
        curves: Curves = defaultdict(list)
        for run, own in zip(runs, configs, strict=True):
            curves[own["algo"]["num_critics"]].append(read(run, tag))
        draw(axis, curves)
        axis.set(xlabel="environment steps", ylabel=label)
        print_last(tag, curves)
    axes[0].axhline(0, color="0.3", linewidth=1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(NAMES), frameon=False)
    figure.suptitle(configs[0]["env"]["id"])
    figure.savefig(image, dpi=150)
    print(f"-> {image}")


def read(run: Path, tag: str) -> dict[int, float]:
    """A scalar by step, where it was recorded."""
    return {record["step"]: record[tag] for record in untrusted.records(run) if tag in record}


def draw(axis: plt.Axes, curves: Curves) -> None:
    """Every seed thin, and their mean where all seeds have a value."""
    for color, (critics, seeds) in zip(("C3", "C0"), sorted(curves.items()), strict=True):
        for curve in seeds:
            axis.plot(curve.keys(), curve.values(), color=color, linewidth=0.8, alpha=0.35)
        steps = sorted(set.intersection(*(set(curve) for curve in seeds)))
        mean = [np.mean([curve[step] for curve in seeds]) for step in steps]
        axis.plot(steps, mean, color=color, linewidth=2, label=NAMES[critics])


def print_last(tag: str, curves: Curves) -> None:
    """The last third of the evaluations, by seed."""
    for critics, seeds in sorted(curves.items()):
        last = [float(np.mean(list(curve.values())[-(len(curve) // 3) :])) for curve in seeds]
        values = "  ".join(f"{value:8.1f}" for value in last)
        print(f"{tag:18} {NAMES[critics]:32} mean {np.mean(last):8.1f}   by seed {values}")


if __name__ == "__main__":
    run_script("overestimation", main)
