"""The tables of a report, as files: CSV at full precision, Markdown and LaTeX to paste."""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any

from dpg_cli.errors import printable
from dpg_cli.report.groups import Group
from dpg_cli.report.published import Published
from dpg_cli.report.scores import LAST, Pair, Row
from dpg_cli.report.statistics import first_step_at

MARK = "*"  # of an interval over too few seeds
PAIR_COLUMNS = (
    *("env", "a", "b", "steps", "evaluations", "seeds", "paired", "difference", "difference_low", "difference_high"),
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
    columns = [field.name for field in fields(Row) if field.name != "counted"]
    return _csv(columns, (astuple(row)[: len(columns)] for row in rows))


def pairs_csv(pairs: Sequence[Pair]) -> str:
    """One row a pair of groups."""
    return _csv(
        PAIR_COLUMNS,
        (
            (
                *(
                    pair.env,
                    pair.a,
                    pair.b,
                    pair.steps,
                    pair.evaluations,
                    pair.difference.seeds,
                    pair.difference.paired,
                ),
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
        "| environment | group | seeds | steps | last10 | its 95% interval | IQM | max_mean | at step | hours |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = cells_of(row, min_seeds)
        for name in ("environment", "group"):
            cells[name] = _markdown(cells[name])
        if best.get(row.env) == row.group:
            cells["last10"] = f"**{cells['last10']}**"
        cells["95% interval"] = cells["95% interval"].replace(MARK, f"\\{MARK}")
        lines.append("| " + " | ".join(cells.values()) + " |")
    few = f"\n\\{MARK} {_few(min_seeds)}.\n" if _any_few(rows, min_seeds) else ""
    return "\n".join(lines) + "\n" + few


def summary_tex(rows: Sequence[Row], best: Mapping[str, str | None], min_seeds: int) -> str:
    """The table in LaTeX, for the package booktabs; bold where `best` names the group of an environment."""
    columns = {"environment": "Environment", "group": "Group", "seeds": "Seeds", "steps": "Steps"}
    columns |= {"last10": "last10", "95% interval": r"95\% interval", "max_mean": r"max\_mean"}
    lines = [
        "% needs \\usepackage{booktabs}. last10: mean over seeds of each one's mean over its last ten evaluations.",
        "% Bold: the 95% interval of the difference from each other group of the environment is above 0.",
        r"{\small\setlength{\tabcolsep}{4pt}",
        r"\begin{tabular}{llrrrrr}",
        r"\toprule",
        " & ".join(columns.values()) + r" \\",
        r"\midrule",
    ]
    for number, row in enumerate(rows):
        first = not number or rows[number - 1].env != row.env
        if number and first:
            lines.append(r"\midrule")
        cells = cells_of(row, min_seeds) | {"steps": short(row.steps) + _unit(row)}
        found = {name: _latex(cells[name]) for name in columns}
        if best.get(row.env) == row.group:
            found["last10"] = rf"\textbf{{{found['last10']}}}"
        if not first:
            found["environment"] = ""
        lines.append(" & ".join(found.values()) + r" \\")
    lines.append(r"\bottomrule")
    if _any_few(rows, min_seeds):
        lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\footnotesize {MARK} {_few(min_seeds)}}} \\")
    lines += [r"\end{tabular}", "}"]
    return "\n".join(lines) + "\n"


def short(steps: float) -> str:
    """`300k`, `1.5M`."""
    size, unit = next(((size, unit) for size, unit in ((1e6, "M"), (1e3, "k")) if abs(steps) >= size), (1, ""))
    return f"{steps / size:g}{unit}"


def cells_of(row: Row, min_seeds: int) -> dict[str, str]:
    """A row as people read it, by column."""
    few = MARK if 1 < row.seeds < min_seeds else ""
    return {
        "environment": row.env,
        "group": row.group,
        "seeds": str(row.seeds),
        "steps": f"{row.steps:,}{_unit(row)}",
        "last10": with_deviation(row.last10_mean, row.last10_std, row.seeds),
        "95% interval": bounds(row.last10_low, row.last10_high) + few,
        "IQM": number(row.iqm),
        "max_mean": with_deviation(row.max_mean, row.max_mean_std, row.seeds),
        "at step": f"{row.max_mean_step:,}{_unit(row)}",
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
    if size >= 1e9:
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 1e5 else f"{value:.{digits}f}"


def with_deviation(mean: float, std: float, seeds: int) -> str:
    """`5215 ± 690`; of one seed, no deviation."""
    largest = max(abs(mean), std)
    return number(mean) if seeds == 1 else f"{number(mean, largest)} ± {number(std, largest)}"


def bounds(low: float, high: float) -> str:
    """`[4763, 5619]`, or a dash if there is no interval."""
    largest = max(abs(low), abs(high))
    return "–" if math.isnan(low) else f"[{number(low, largest)}, {number(high, largest)}]"


def as_published(published: Published) -> str:
    """Mean and deviation, with the digits of the source."""
    mean = f"{published.mean:,.10g}"
    return mean if published.std is None else f"{mean} ± {published.std:,.10g}"


def _unit(row: Row) -> str:
    return "" if row.counted == "steps" else f" {row.counted}"


def _few(min_seeds: int) -> str:
    return f"fewer than {min_seeds} seeds: the interval is too narrow"


def _any_few(rows: Sequence[Row], min_seeds: int) -> bool:
    return any(1 < row.seeds < min_seeds for row in rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(map(_cell, row))
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else value
    text = printable(str(value))
    return f"'{text}" if text.startswith(("=", "+", "@")) else value if text == str(value) else text  # no formulas


def _markdown(text: str) -> str:
    escaped = "".join(f"\\{character}" if character in "\\`*[]|" else character for character in text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _latex(text: str) -> str:
    """Other characters than ASCII would stop LaTeX, unless a package knows them."""
    known = LATEX | {"±": r"$\pm$", "–": "--", "…": r"\ldots{}"}
    escaped = "".join(known.get(character, character if character.isascii() else "?") for character in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)
