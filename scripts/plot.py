#!/usr/bin/env python
"""Learning curves of finished runs: the evaluations of the seeds of each algorithm, a panel for each environment.

    python scripts/plot.py runs=outputs out=curves.png
    python scripts/plot.py runs=outputs/sweeps/2026-11-22_14-00-00-000000,outputs/Pendulum-v1 out=curves.png

`runs` are run folders or folders above them. Runs that differ in nothing but the seed are one curve: the mean of
their evaluations and the range from the lowest to the highest; a table of every seed is printed. Needs the extra
`plot`: pip install -e '.[plot]'
"""

import json
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dpg_cli import config
from dpg_cli.cli.arguments import parse
from dpg_cli.errors import UserError


def curves(roots: list[Path]) -> dict[str, dict[str, list[Path]]]:
    """Run folders by environment and by what else their configs say but for the seed."""
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for root in roots:
        for path in sorted(root.rglob("evaluations.jsonl")):
            settings = config.load((path.parent / "config.yaml").read_text())
            found[settings.env.id][config.dump(settings.model_copy(update={"seed": 0}))].append(path.parent)
    if not found:
        raise UserError(f"runs={','.join(map(str, roots))}: no run folders there")
    return found


def returns(runs: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Steps `(T,)` and mean returns of the evaluations `(runs, T)`."""
    evaluations = [[json.loads(line) for line in (run / "evaluations.jsonl").open()] for run in runs]
    length = min(map(len, evaluations))
    steps = np.array([record["step"] for record in evaluations[0][:length]])
    return steps, np.array([[np.mean(record["returns"]) for record in run[:length]] for run in evaluations])


def main() -> None:
    values = parse(sys.argv[1:], ("runs", "out"), required=("runs", "out"))
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is missing; pip install -e '.[plot]'")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = curves([Path(root) for root in values["runs"].split(",")])
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.8 * len(panels), 3.2), squeeze=False)
    for ax, (env_id, lines) in zip(axes[0], sorted(panels.items()), strict=True):
        for text, runs in lines.items():
            algo = config.load(text).algo["name"]
            steps, means = returns(runs)
            ax.plot(steps, means.mean(axis=0), label=f"{algo}, {len(runs)} seeds")
            ax.fill_between(steps, means.min(axis=0), means.max(axis=0), alpha=0.2)
            print(f"{env_id}, {algo}, {steps[-1]:,} steps")
            for run, own in zip(runs, means, strict=True):
                best = own.argmax()
                print(f"  {run}: best {own[best]:.1f} at {steps[best]:,}, mean of the last three {own[-3:].mean():.1f}")
        ax.set(title=env_id, xlabel="environment steps", ylabel="return")
        ax.legend(fontsize="small")
        ax.grid(alpha=0.3)
        ax.locator_params(axis="x", nbins=5)
    figure.tight_layout()
    figure.savefig(values["out"], dpi=90)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"plot: {error}", file=sys.stderr)
        sys.exit(2)
