#!/usr/bin/env python
"""Learning curves of finished runs: the evaluations of the seeds of each algorithm, a panel for each environment.

    python scripts/plot.py runs=outputs out=curves.png
    python scripts/plot.py runs=outputs/sweeps/2026-11-22_14-00-00-000000,outputs/Pendulum-v1 out=curves.png

`runs` are run folders or folders above them. Runs that differ in nothing but the seed are one curve: the mean of
their evaluations and the 95% interval of that mean (percentile bootstrap over seeds, 10,000 resamples). A table of
every seed is printed. `labels=a,b` names the curves in the order in which `runs` holds them. Needs the extra `plot`:
pip install -e '.[plot]'
"""

import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dpg_cli import config
from dpg_cli.cli.arguments import parse, run_script
from dpg_cli.errors import UserError, one_line
from dpg_cli.storage import untrusted as stored


def curves(roots: list[Path]) -> dict[str, dict[str, list[Path]]]:
    """Run folders by environment and by what else their configs say but for the seed."""
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for root in roots:
        for path in sorted(root.rglob("evaluations.jsonl"), key=in_order):
            settings = config.load_from(path.parent)
            found[settings.env.id][config.dump(settings.model_copy(update={"seed": 0}))].append(path.parent)
    if not found:
        raise UserError(f"runs={','.join(map(str, roots))}: no run folders there")
    return found


def in_order(path: Path) -> list[tuple[bool, int, str]]:
    """Job 2 before job 10."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.parts]


def returns(runs: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Steps `(T,)` and mean returns of the evaluations `(runs, T)`."""
    evaluations = [stored.evaluations(run) for run in runs]
    length = min(map(len, evaluations))
    if length == 0:
        raise UserError(f"{runs[[*map(len, evaluations)].index(0)]}: there is not an evaluation")
    if length < max(map(len, evaluations)):
        print(f"  cut to {length} evaluations, which is all that {runs[[*map(len, evaluations)].index(length)]} has")
    steps = np.array([step for step, _ in evaluations[0][:length]])
    return steps, np.array([[np.mean(returns) for _, returns in run[:length]] for run in evaluations])


def interval(means: np.ndarray) -> np.ndarray:
    """95% interval of the mean over seeds, percentile bootstrap: `(runs, T)` to `(2, T)`."""
    resamples = np.random.default_rng(0).integers(len(means), size=(10_000, len(means)))
    bounds: np.ndarray = np.percentile(means[resamples].mean(axis=1), (2.5, 97.5), axis=0)
    return bounds


def name_of(run: Path) -> str:
    """The choice of algo with which a run was started, such as td3/without_delay."""
    path = run / ".hydra" / "hydra.yaml"
    if not path.exists():
        return str(config.load_from(run).algo["name"])
    try:
        return one_line(config.read_yaml(path)["hydra"]["runtime"]["choices"]["algo"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not what Hydra writes") from error


def main() -> None:
    values = parse(sys.argv[1:], ("runs", "out", "labels"), required=("runs", "out"))
    labels = iter(values["labels"].split(",")) if "labels" in values else None
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is missing; pip install -e '.[plot]'")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = curves([Path(root) for root in values["runs"].split(",")])
    count = sum(len(lines) for lines in panels.values())
    if "labels" in values and len(values["labels"].split(",")) != count:
        raise UserError(f"labels={values['labels']}: there are {count} curves")
    size = (4.8 * len(panels), 3.6 + 0.2 * max(map(len, panels.values())))
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, squeeze=False)
    for ax, (env_id, lines) in zip(axes[0], panels.items(), strict=True):
        for runs in lines.values():
            label = name_of(runs[0]) if labels is None else next(labels)
            steps, means = returns(runs)
            low, high = interval(means)
            ax.plot(steps, means.mean(axis=0), label=f"{label}, {len(runs)} seeds".replace("$", r"\$"))
            ax.fill_between(steps, low, high, alpha=0.2)
            last = f"mean {means[:, -1].mean():.1f} [{low[-1]:.1f}, {high[-1]:.1f}]"
            print(f"{one_line(env_id)}, {label}, {steps[-1]:,} steps: {last}")
            for run, own in zip(runs, means, strict=True):
                best = own.argmax()
                print(f"  {run}: best {own[best]:.1f} at {steps[best]:,}, mean of the last three {own[-3:].mean():.1f}")
        ax.set(title=one_line(env_id).replace("$", r"\$"), xlabel="environment steps", ylabel="return")
        ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
        ax.grid(alpha=0.3)
        ax.locator_params(axis="x", nbins=5)
    figure.tight_layout()
    figure.savefig(values["out"], dpi=90)


if __name__ == "__main__":
    run_script("plot", main)
