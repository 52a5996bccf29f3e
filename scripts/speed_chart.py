#!/usr/bin/env python
"""Draw docs/images/speed.svg: the speed of TD3 in stable-baselines3 and sbx, relative to dpg-cli.

    python scripts/speed_chart.py

The figures are those of the first table of docs/performance.md, which says how and where they were measured.
Needs the extra `plot`: pip install -e '.[plot]'
"""

import sys
from pathlib import Path

try:
    import matplotlib
except ImportError:
    sys.exit('scripts/speed_chart.py: matplotlib is missing; install it with: pip install -e ".[plot]"')

IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "speed.svg"
TIMES_AS_FAST = {"stable-baselines3": (1.72, 1.69, 1.77), "sbx": (1.31, 1.26, 1.36)}  # dpg-cli: median, 95% interval


def main() -> None:
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "speed"  # the same picture is the same file
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(7, 2.1), layout="constrained")
    for name, (median, low, high) in TIMES_AS_FAST.items():
        speed = 1 / median
        ax.barh(name, speed, color="0.7", xerr=[[speed - 1 / high], [1 / low - speed]], capsize=3)
        ax.text(1 / low + 0.02, name, f"dpg-cli is {median} times as fast [{low}, {high}]", va="center", fontsize=9)
    ax.barh("dpg-cli", 1.0, color="C0")
    ax.set(xlabel="environment steps a second while learning, relative to dpg-cli", xlim=(0, 1.5))
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_title("TD3 on HalfCheetah-v4, two cores of an AMD EPYC (Zen 4)", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGE, metadata={"Date": None})
    print(f"-> {IMAGE}")


if __name__ == "__main__":
    main()
