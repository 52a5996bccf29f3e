"""The figures of a report: learning curves of each environment, and the performance profile. Needs matplotlib."""

import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dpg_cli.report.groups import Group
from dpg_cli.report.published import Published, published_for
from dpg_cli.report.scores import TAUS, Aggregate, is_standard, last10
from dpg_cli.report.statistics import interval
from dpg_cli.report.tables import short

# Okabe and Ito 2008, without black and yellow, which vanish on a dark or a white page; then the same dashed.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", (0, (5, 1)), (0, (1, 1)))
PUBLISHED = "#777777"
OTHERS = "#999999"  # of groups beyond the first eighteen
FOREGROUND = "#010203"  # stands for the text color of the page
SUFFIXES = ("svg", "pdf", "png")
MAX_POINTS = 1_000  # of a curve over steps
POINTS = 200  # of a curve over hours, whose points differ between seeds
PAPER_WIDTH = 5.5  # inches: the text width of NeurIPS and ICLR
RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # names come from the runs
    "svg.hashsalt": "dpg-report",  # the same figure is the same file
    "pdf.fonttype": 42,  # conferences reject Type 3 fonts
    "lines.linewidth": 1.4,
}


Looks = Mapping[str, tuple[str, Any]]  # color and line style of each group's label, the same in all figures
OTHER = (OTHERS, "-")


def looks(groups: Sequence[Group]) -> Looks:
    """Give the groups their looks; with many groups, those with the highest mean rank have colors."""
    ranks: dict[str, list[int]] = {}
    for env in {group.env_id for group in groups}:
        own = sorted((group for group in groups if group.env_id == env), key=lambda group: -last10(group).mean())
        for rank, group in enumerate(own):
            ranks.setdefault(group.label, []).append(rank)
    kinds = [(color, style) for style in STYLES for color in COLORS]
    names = list(dict.fromkeys(group.label for group in groups))
    if len(names) > len(kinds):
        names = sorted(names, key=lambda name: np.mean(ranks[name]))
    return dict(zip(names, kinds, strict=False))


def write_curves(
    folder: Path, by_env: Mapping[str, Sequence[Group]], looks: Looks, x: str, min_seeds: int, tick: Callable[[], None]
) -> dict[str, str]:
    """Write a figure for each environment, and one with all of them as `curves`; returns the SVGs for the page.

    Args:
        folder: of the files.
        by_env: the groups, by environment.
        looks: of the groups.
        x: `steps` or `hours`.
        min_seeds: a group with fewer shows its seeds instead of an interval.
        tick: called after each figure.
    """
    svgs, named = {}, stems(list(by_env))
    panels = {}
    for env, groups in by_env.items():
        curves = panels[env] = _curves(groups, looks, x, min_seeds)
        with _style():
            figure = Figure(figsize=(PAPER_WIDTH, 3.2), layout="constrained")
            _legend(figure, _draw(figure.add_subplot(title=env), curves, x), columns=3)
            _save(figure, folder / named[env])
        with _style(page=True):
            figure = Figure(figsize=(7.5, 3.6), layout="constrained")
            _legend(figure, _draw(figure.add_subplot(), curves, x), columns=4)
            svgs[env] = _for_page(figure, f"Learning curves on {env}")
        tick()
    if len(panels) > 1:
        columns = min(3, len(panels))
        rows = math.ceil(len(panels) / columns)
        with _style():
            figure = Figure(figsize=(PAPER_WIDTH, 1.9 * rows + 0.4), layout="constrained")
            legend: dict[str, Line2D] = {}
            for place, (env, curves) in enumerate(panels.items()):
                ax = figure.add_subplot(rows, columns, place + 1)
                legend |= _draw(ax, curves, x, alone=False)
                ax.set_title(env, fontsize=min(9, 190 / len(env)))
                if place % columns:
                    ax.set_ylabel("")
                ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
            lines = _legend(figure, legend, columns=3)
            figure.set_figheight(1.9 * rows + 0.2 + 0.17 * lines)
            _save(figure, folder / "curves")
        tick()
    return svgs


def write_profile(folder: Path, name: str, aggregate: Aggregate, looks: Looks) -> str:
    """Write the performance profile; returns the SVG for the page.

    Args:
        folder: of the files.
        name: of the files.
        aggregate: with the profiles.
        looks: of the groups.
    """

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        handles = {}
        for label, (profile, low, high) in aggregate.profiles.items():
            color, style = looks.get(label, OTHER)
            (handles[label],) = ax.plot(TAUS, profile, color=color, linestyle=style)
            ax.fill_between(TAUS, low, high, color=color, alpha=0.2, linewidth=0)
        ax.set(xlabel="normalised score τ", ylabel="share of seeds with a score > τ", ylim=(0, 1.02))
        _legend(figure, handles, columns=3)

    with _style():
        figure = Figure(figsize=(PAPER_WIDTH, 3.0), layout="constrained")
        draw(figure)
        _save(figure, folder / name)
    with _style(page=True):
        figure = Figure(figsize=(7.5, 3.4), layout="constrained")
        draw(figure)
        return _for_page(figure, "Performance profile")


def stems(env_ids: Sequence[str]) -> dict[str, str]:
    """The stem of each environment's figures, all different: no separators, no leading dot."""
    found: dict[str, str] = {}
    for env in env_ids:
        stem = re.sub(r"[^\w.+-]", "_", env).lstrip(".")[:100] or "_"
        while stem in found.values() or stem == "curves" or stem.startswith("profile"):
            stem += "_"
        found[env] = stem
    return found


@dataclass(frozen=True)
class Curve:
    """What is drawn of a group: its returns `(S, P)` over `at` `(P,)`, and the interval of their mean `(2, P)`."""

    group: Group
    at: np.ndarray
    returns: np.ndarray
    interval: np.ndarray | None
    color: str
    style: Any


def _curves(groups: Sequence[Group], looks: Looks, x: str, min_seeds: int) -> list[Curve]:
    """The curves of an environment; those without a color first, to lie below the others."""
    found = []
    for group in sorted(groups, key=lambda own: own.label in looks):
        at, returns = _thinned(group) if x == "steps" else _over_hours(group)
        color, style = looks.get(group.label, OTHER)
        band = interval(returns) if len(returns) >= min_seeds and color != OTHERS else None
        if len(at):
            found.append(Curve(group, at, returns, band, color, style))
    return found


def _thinned(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Steps `(P,)` and returns `(S, P)`, of as many evaluations as can be seen."""
    rows = np.unique(np.linspace(0, len(group.steps) - 1, MAX_POINTS).round().astype(int))
    return group.steps[rows], group.returns[:, rows]


def _over_hours(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Hours `(P,)` and returns `(S, P)`, linear between evaluations, until the fastest seed ends; empty if unknown."""
    if np.isnan(group.hours).any():
        return np.empty(0), np.empty((0, 0))
    at = np.linspace(group.hours[:, 0].max(), group.hours[:, -1].min(), POINTS)
    return at, np.array([np.interp(at, *own) for own in zip(group.hours, group.returns, strict=True)])


def _draw(ax: Axes, curves: Sequence[Curve], x: str, *, alone: bool = True) -> dict[str, Line2D]:
    """Draw the curves of an environment; returns the legend.

    Args:
        ax: to draw on.
        curves: of the environment.
        x: `steps` or `hours`.
        alone: whether the legend is for this panel alone, and not for several environments.
    """
    handles: dict[str, Line2D] = {}
    for curve in curves:
        number, colored = len(curve.returns), curve.color != OTHERS
        look = {"color": curve.color, "linestyle": curve.style, "zorder": 3 if colored else 2}
        (line,) = ax.plot(curve.at, curve.returns.mean(axis=0), **look)
        if curve.interval is not None:
            ax.fill_between(curve.at, *curve.interval, color=curve.color, alpha=0.2, linewidth=0)
        elif number > 1 and colored:
            ax.plot(curve.at, curve.returns.T, color=curve.color, linewidth=0.5, alpha=0.6)
        name = f"{curve.group.name} ({number} {'seed' if number == 1 else 'seeds'})" if alone else curve.group.label
        handles[name if colored else "other groups"] = line
    if x == "steps":
        handles |= _draw_published(ax, [curve.group for curve in curves])
        ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: short(value)))
    evaluated = all(curve.group.evaluated for curve in curves)
    ax.set_xlabel("hours" if x == "hours" else _counted([curve.group for curve in curves]))
    ax.set_ylabel("return" if evaluated else "return (also of training episodes)")
    ax.grid(alpha=0.18, linewidth=0.5)
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    ax.yaxis.set_major_formatter("{x:,.0f}" if max(map(abs, ax.get_ylim())) >= 10 else "{x:g}")
    return handles


def _counted(groups: Sequence[Group]) -> str:
    """The label of an axis of steps."""
    offline = {group.offline for group in groups}
    if offline == {True}:
        return "updates"
    return "environment steps; of offline groups, updates" if True in offline else "environment steps"


def _draw_published(ax: Axes, groups: Sequence[Group]) -> dict[str, Line2D]:
    """The published mean, dashed: at single steps if the source has those, else the best one over the whole width."""
    handles: dict[str, Line2D] = {}
    standard = [group for group in groups if group.evaluated and not group.offline and is_standard(group)]
    if not standard:
        return handles
    last = int(max(group.steps[-1] for group in standard))
    for algo, marker in zip(dict.fromkeys(group.algo for group in standard), itertools.cycle("os^Dv"), strict=False):
        known = [own for own in published_for(groups[0].env_id) if own.algorithm.lower() == algo]
        at = {own.steps: own for own in known if own.convention == "at_step" and own.steps and own.steps <= last}
        best = next((own for own in known if own.convention == "max_mean" and own.steps and own.steps <= last), None)
        look: dict[str, Any] = {
            "color": PUBLISHED,
            "linestyle": "--",
            "linewidth": 1,
            "marker": marker,
            "markersize": 3,
        }
        if at:
            steps = sorted(at)
            (handles[_label(at[steps[0]])],) = ax.plot(steps, [at[step].mean for step in steps], **look)
        elif best is not None:
            ends = [0, last]
            (handles[f"{_label(best)}, max_mean"],) = ax.plot(ends, [best.mean] * 2, **look)
    return handles


def _label(published: Published) -> str:
    return f"published: {published.algorithm} on {published.env_version}"


def _legend(figure: Figure, handles: Mapping[str, Line2D], columns: int) -> int:
    """Put the legend below the axes; returns the number of its lines."""
    if not handles:
        return 0
    widest = max(map(len, handles))
    columns = max(1, min(columns, len(handles), 110 // (widest + 8)))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False)
    return math.ceil(len(handles) / columns)


def _style(*, page: bool = False) -> AbstractContextManager[None]:
    own = RC
    if page:
        keys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
        own = RC | dict.fromkeys(keys, FOREGROUND) | {"svg.fonttype": "none", "font.size": 9}
    return matplotlib.rc_context(own)


def _save(figure: Figure, stem: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names in a script that the font lacks; odd numbers
        for suffix in SUFFIXES:
            dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
            figure.savefig(stem.with_name(f"{stem.name}.{suffix}"), dpi=200, metadata=dates)


def _for_page(figure: Figure, title: str) -> str:
    """An SVG to put into HTML: it takes the page's text color and width."""
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{_attribute(title)}"', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace(FOREGROUND, "currentColor")


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace("\\", "")
