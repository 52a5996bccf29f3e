#!/usr/bin/env python
"""Draw learning curves of runs: the evaluations of every seed, one panel per environment.

    python scripts/plot.py runs=outputs out=curves.svg
    python scripts/plot.py runs=outputs/td3,outputs/ddpg labels=TD3,DDPG show=seeds out=curves.png

    runs       run folders, or folders above them; runs that differ only in the seed are one curve
    out        the picture: .svg, .png or .pdf
    labels     names of the curves, in the order in which `runs` holds them (default: the choice of algo)
    show       interval (default): the mean over seeds and its 95% interval (percentile bootstrap over seeds, 10,000
               resamples); seeds: the mean, and a thin line for each seed
    published  ENV_ID:RETURN,...: a dashed line in the panel of an environment

A table of every seed is printed; ± is the standard deviation over seeds, with ddof=0 as in the papers' code. Needs the
extra `plot`: pip install -e '.[plot]'
"""

import math
import sys
from collections import defaultdict
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dpg_cli import config
from dpg_cli.cli.arguments import PICTURES, output_file, parse, run_script
from dpg_cli.errors import UserError, one_line
from dpg_cli.report.statistics import interval
from dpg_cli.storage import untrusted


def curves(roots: list[Path]) -> dict[str, dict[str, list[Path]]]:
    """Run folders, each once, by environment and by everything in their configs except the seed."""
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    seen = set()
    for root in roots:
        paths = sorted(root.rglob("evaluations.jsonl"), key=in_order)
        if not paths:
            raise UserError(f"runs: no run folders in {root}")
        for run in (path.parent for path in paths):
            if (resolved := run.resolve()) not in seen:
                seen.add(resolved)
                settings = config.load_from(run)
                found[settings.env.id][config.dump(settings.model_copy(update={"seed": 0}))].append(run)
    return found


def in_order(path: Path) -> list[tuple[bool, int, str]]:
    """Job 2 before job 10."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.parts]


def returns(runs: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Steps `(T,)` at which all runs were evaluated, and mean returns of these evaluations `(runs, T)`."""
    evaluations = [dict(untrusted.evaluations(run)) for run in runs]
    fewest, shortest = min(zip(map(len, evaluations), runs, strict=True))
    if fewest == 0:
        raise UserError(f"{shortest}: has no evaluations")
    shared, every = set.intersection(*map(set, evaluations)), set.union(*map(set, evaluations))
    if not shared:
        raise UserError(f"{shortest}: shares no evaluation step with the other runs of its curve")
    if len(shared) < len(every):
        print(
            f"  {shortest} has only {counted(fewest, 'evaluation')}; "
            f"steps that not all runs have are left out: {len(every - shared)} of {len(every)}"
        )
    steps = sorted(shared)
    return np.array(steps), np.array([[np.mean(own[step]) for step in steps] for own in evaluations])


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def name_of(run: Path) -> str:
    """The choice of algo with which a run was started, such as td3/without_delay."""
    path = run / ".hydra" / "hydra.yaml"
    if not path.exists():
        return str(config.load_from(run).algo["name"])
    try:
        return one_line(config.read_yaml(path)["hydra"]["runtime"]["choices"]["algo"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not what Hydra writes") from error


def dashed_lines(text: str, env_ids: Iterable[str]) -> dict[str, float]:
    """Returns by environment, from `ENV_ID:RETURN,...`."""
    lines = {}
    for item in text.split(","):
        env_id, _, value = item.rpartition(":")
        if not env_id or item in env_ids:
            raise UserError(f"published={text}: {item or 'an empty item'} is not of the form ENV_ID:RETURN")
        if env_id not in env_ids:
            raise UserError(f"published={text}: {env_id} is not among {', '.join(map(one_line, env_ids))}")
        try:
            lines[env_id] = float(value)
        except ValueError:
            lines[env_id] = math.nan
        if not math.isfinite(lines[env_id]):
            raise UserError(f"published={text}: {value} is not a finite number")
    return lines


def main() -> None:
    values = parse(sys.argv[1:], ("runs", "out", "labels", "show", "published"), required=("runs", "out"))
    if (show := values.get("show", "interval")) not in ("interval", "seeds"):
        raise UserError(f"show={show}: must be interval or seeds")
    roots = values["runs"].split(",")
    if not all(roots):
        raise UserError(f"runs={values['runs']}: has an empty item")
    labels = values["labels"].split(",") if "labels" in values else None
    if labels is not None and not all(map(str.strip, labels)):
        raise UserError(f"labels={values['labels']}: has a blank name")
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is missing; pip install -e '.[plot]'")
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "plot"  # the same picture is the same file
    from matplotlib import pyplot

    out = output_file(values, "out", "", PICTURES)
    panels = curves([Path(root) for root in roots])
    published = dashed_lines(values["published"], panels) if "published" in values else {}
    count = sum(len(lines) for lines in panels.values())
    if labels is not None and len(labels) != count:
        raise UserError(f"labels={values['labels']}: {counted(len(labels), 'label')} for {counted(count, 'curve')}")
    names = iter(labels or [name_of(runs[0]) for lines in panels.values() for runs in lines.values()])
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 4), squeeze=False, layout="constrained")
    colors: dict[str, str] = {}  # a label has one colour in all panels
    legend = {}
    for ax, (env_id, lines) in zip(axes[0], panels.items(), strict=True):
        for runs in lines.values():
            label = next(names)
            color = colors.setdefault(label, f"C{len(colors)}")
            steps, means = returns(runs)
            low, high = interval(means)
            (line,) = ax.plot(steps, means.mean(axis=0), color=color, linewidth=2, zorder=3)
            legend[f"{label}, {counted(len(runs), 'seed')}".replace("$", r"\$")] = line
            if show == "seeds":
                ax.plot(steps, means.T, color=color, linewidth=0.7, alpha=0.45)
            else:
                ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            last = f"mean {means[:, -1].mean():.1f} ± {means[:, -1].std():.1f} [{low[-1]:.1f}, {high[-1]:.1f}]"
            print(f"{one_line(env_id)}, {label}, {steps[-1]:,} steps: {last}")
            for run, own in zip(runs, means, strict=True):
                best = own.argmax()
                print(f"  {run}: best {own[best]:.1f} at {steps[best]:,}, mean of the last three {own[-3:].mean():.1f}")
        if env_id in published:
            legend["published mean"] = ax.axhline(published[env_id], color="0.2", linewidth=1, linestyle="--")
        ax.set(title=one_line(env_id).replace("$", r"\$"), xlabel="environment steps", ylabel="return")
        ax.grid(alpha=0.3)
        ax.locator_params(axis="x", nbins=5)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.yaxis.set_major_formatter("{x:,.0f}")
    figure.set_figheight(3.4 + 0.25 * math.ceil(len(legend) / len(panels)))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(panels), frameon=False)
    figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)


if __name__ == "__main__":
    run_script("plot", main)
