"""The tables of a report, as files: CSV at full precision, Markdown and LaTeX to paste."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any

from dpg_cli.report.groups import Group
from dpg_cli.report.scores import LAST, Pair, Row
from dpg_cli.report.statistics import first_step_at

MARK = "*"  # of an interval over too few seeds
PAIR_COLUMNS = (
    *("env", "a", "b", "steps", "seeds", "paired", "difference", "difference_low", "difference_high"),
    *("better", "better_low", "better_high"),
)
RUN_COLUMNS = (
    *("env", "group", "seed", "status", "steps", "last10", "max", "max_step", "final", "untrained"),
    *("saturation", "hours", "in_numbers", "folder"),
)
LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "[": "{[}",  # at the start of a row it would be an argument of the row before
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def summary_csv(rows: Sequence[Row]) -> str:
    """One row an environment and group."""
    return _csv([field.name for field in fields(Row)], map(astuple, rows))


def pairs_csv(pairs: Sequence[Pair]) -> str:
    """One row a pair of groups."""
    return _csv(
        PAIR_COLUMNS,
        (
            (
                *(pair.env, pair.a, pair.b, pair.steps, pair.difference.seeds, pair.difference.paired),
                *(pair.difference.value, pair.difference.low, pair.difference.high),
                *(pair.better.value, pair.better.low, pair.better.high),
            )
            for pair in pairs
        ),
    )


def runs_csv(groups: Sequence[Group], threshold: float | None) -> str:
    """One row a run, over its whole length; with the first step at or above `threshold`, if there is one."""
    more = () if threshold is None else ("threshold_step", "threshold_hours")
    rows = []
    for group in groups:
        for run in (*group.runs, *(left.run for left in group.left_out)):
            best = int(run.returns.argmax())
            untrained = float(run.untrained.mean()) if len(run.untrained) else math.nan
            score = float(run.returns[-LAST:].mean() if run.evaluated else run.returns[-1])
            row = [group.env_id, group.name, run.seed, run.status, int(run.steps[-1]), score, float(run.returns[best])]
            row += [int(run.steps[best]), float(run.returns[-1]), untrained, run.saturation, float(run.hours[-1])]
            row += [run in group.runs, run.folder]
            if threshold is not None:
                step = first_step_at(run.steps, run.returns, threshold)
                hours = math.nan if step is None else float(run.hours[run.steps == step][0])
                row += [math.nan if step is None else step, hours]
            rows.append(row)
    return _csv((*RUN_COLUMNS, *more), rows)


def summary_md(rows: Sequence[Row], best: Mapping[str, str | None], min_seeds: int) -> str:
    """The table in Markdown; bold where `best` names the group of an environment."""
    lines = [
        "| environment | group | seeds | steps | last10 | 95% interval | IQM | max_mean | at step | hours |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = cells_of(row, min_seeds)
        if best.get(row.env) == row.group:
            cells["last10"] = f"**{cells['last10']}**"
        lines.append("| " + " | ".join(_markdown(cell) for cell in cells.values()) + " |")
    few = f"\n{MARK} fewer than {min_seeds} seeds: the interval is too narrow.\n" if _any_few(rows, min_seeds) else ""
    return "\n".join(lines) + "\n" + few


def summary_tex(rows: Sequence[Row], best: Mapping[str, str | None], min_seeds: int) -> str:
    """The table in LaTeX, for the package booktabs; bold where `best` names the group of an environment."""
    lines = [
        "% needs \\usepackage{booktabs}. last10: mean over seeds of each one's mean over its last ten evaluations.",
        "% Bold: the 95% interval of the difference from each other group of the environment is above 0.",
        r"\begin{tabular}{llrrrrrr}",
        r"\toprule",
        r"Environment & Group & Seeds & Steps & last10 & 95\% interval & IQM & max\_mean \\",
        r"\midrule",
    ]
    for number, row in enumerate(rows):
        if number and rows[number - 1].env != row.env:
            lines.append(r"\midrule")
        cells = {name: _latex(cell) for name, cell in cells_of(row, min_seeds).items()}
        if best.get(row.env) == row.group:
            cells["last10"] = rf"\textbf{{{cells['last10']}}}"
        if number and rows[number - 1].env == row.env:
            cells["environment"] = ""
        lines.append(" & ".join(list(cells.values())[:8]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if _any_few(rows, min_seeds):
        lines.append(f"% {MARK} fewer than {min_seeds} seeds: the interval is too narrow.")
    return "\n".join(lines) + "\n"


def cells_of(row: Row, min_seeds: int) -> dict[str, str]:
    """A row as people read it, by column."""
    few = MARK if 1 < row.seeds < min_seeds else ""
    return {
        "environment": row.env,
        "group": row.group,
        "seeds": str(row.seeds),
        "steps": f"{row.steps:,}",
        "last10": with_deviation(row.last10_mean, row.last10_std, row.seeds),
        "95% interval": bounds(row.last10_low, row.last10_high) + few,
        "IQM": number(row.iqm),
        "max_mean": with_deviation(row.max_mean, row.max_mean_std, row.seeds),
        "at step": f"{row.max_mean_step:,}",
        "hours": "–" if math.isnan(row.hours) else f"{row.hours:.2f}",
    }


def number(value: float, like: float | None = None) -> str:
    """A return or a difference, with as many digits as tell something: `5215`, `-21.3`, `0.213`.

    Args:
        value: to show.
        like: the number whose digits it takes, where several belong together.
    """
    if not math.isfinite(value):
        return "–"
    size = abs(value if like is None else like)
    digits = next(digits for digits, least in enumerate((1000, 10, 1, 0)) if size >= least)
    return f"{value:,.0f}" if size >= 1e5 else f"{value:.{digits}f}"


def with_deviation(mean: float, std: float, seeds: int) -> str:
    """`5215 ± 690`; of one seed, no deviation."""
    largest = max(abs(mean), std)
    return number(mean) if seeds == 1 else f"{number(mean, largest)} ± {number(std, largest)}"


def bounds(low: float, high: float) -> str:
    """`[4763, 5619]`, or a dash if there is no interval."""
    largest = max(abs(low), abs(high))
    return "–" if math.isnan(low) else f"[{number(low, largest)}, {number(high, largest)}]"


def _any_few(rows: Sequence[Row], min_seeds: int) -> bool:
    return any(1 < row.seeds < min_seeds for row in rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row])
    return file.getvalue()


def _markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text).replace("±", r"$\pm$").replace("–", "--")
