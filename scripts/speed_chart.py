#!/usr/bin/env python
"""Draw the speed of TD3 in stable-baselines3 and sbx, relative to dpg-cli.

    python scripts/speed_chart.py                               # the picture is outputs/speed.svg
    python scripts/speed_chart.py out=docs/images/speed.svg     # that of the documentation

The figures are those of the first table of docs/performance.md, which says how and where they were measured.
Needs the extra `report`: pip install -e '.[report]'
"""

import sys
from importlib.util import find_spec

from dpg_cli.cli.arguments import PICTURES, output_file, parse, run_script
from dpg_cli.errors import UserError

TIMES_AS_FAST = {"stable-baselines3": (1.72, 1.69, 1.77), "sbx": (1.31, 1.26, 1.36)}  # dpg-cli: median, 95% interval


def main() -> None:
    image = output_file(parse(sys.argv[1:], ("out",), required=()), "out", "outputs/speed.svg", PICTURES)
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is missing; pip install -e '.[report]'")
    import matplotlib

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
    figure.savefig(image, dpi=150, metadata={"Date": None} if image.suffix == ".svg" else None)
    print(f"-> {image}")


if __name__ == "__main__":
    run_script("speed_chart", main)
