"""`dpg-report`: compare runs."""

import os
from collections.abc import Sequence

HELP = """\
dpg-report: compare runs: tables, learning curves, intervals.

Examples
  dpg-report outputs/sweeps/2026-11-27_10-15-02-114503       writes report/, prints the table
  dpg-report outputs out=paper by=algo,noise
  dpg-report outputs/a outputs/b x=hours threshold=3000

Keys
  runs        folders to search, separated by commas; or the folders alone, as in the examples
  out         the folder of the report (default report); an earlier report there is replaced
  by          keys of the config that make groups, such as algo,noise,algo.tau (default: all that change the training)
  x           axis of the curves: steps (default) or hours
  min_seeds   intervals of fewer seeds are marked and give no bold print (default 5)
  threshold   a return: when did each group reach it?

Flags
  --version   versions of dpg-cli, torch, gymnasium, mujoco and others

The folder holds report.html (one file, opens offline), summary.csv, .md and .tex (one row for each environment and
group), runs.csv (one row for each run), differences.csv, and figures/ as svg, pdf and png.
Runs are a group if they differ only in the seed, the length, the evaluations (eval.*), or in what changes at most the
last digits, such as threads. Nothing in the run folders is executed.
"""

KEYS = ("runs", "out", "by", "x", "min_seeds", "threshold")
MODULES = ("matplotlib", "jinja2")


def main() -> None:
    """The console script."""
    from dpg_cli.cli.arguments import run_command

    run_command("dpg-report", HELP, _report)


def _report(arguments: Sequence[str]) -> int:
    import importlib.util
    import logging
    import math
    import sys
    from pathlib import Path

    from dpg_cli.cli.arguments import parse, whole
    from dpg_cli.errors import UserError, to_install

    bare = [word for word in arguments if _is_folder(word)]
    values = parse([word for word in arguments if word not in bare], KEYS, required=())
    listed = values["runs"].split(",") if "runs" in values else []
    if not all(listed):
        raise UserError(f"runs={values['runs']}: has an empty item")
    if not (roots := [*map(Path, bare), *map(Path, listed)]):
        raise UserError("runs: missing; dpg-report DIR [DIR …]")
    by = values["by"].split(",") if "by" in values else []
    if not all(by):
        raise UserError(f"by={values['by']}: has an empty item")
    if (x := values.get("x", "steps")) not in ("steps", "hours"):
        raise UserError(f"x={x}: should be steps or hours")
    min_seeds = whole(values, "min_seeds", 5, minimum=2)
    threshold = None
    if "threshold" in values:
        try:
            threshold = float(values["threshold"])
        except ValueError:
            threshold = math.nan
        if not math.isfinite(threshold):
            raise UserError(f"threshold={values['threshold']}: should be a number")
    if missing := [module for module in MODULES if importlib.util.find_spec(module) is None]:
        raise UserError(f"needs {', '.join(missing)}; {to_install('report')}")
    out = Path(os.path.normpath(values.get("out") or "report"))

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells when it makes its cache

    from dpg_cli.report.write import check_out

    check_out(out)

    from dpg_cli.cli.report_run import report

    return report(roots, out, by, x, min_seeds, threshold, ["dpg-report", *sys.argv[1:]])


def _is_folder(word: str) -> bool:
    """A word without a key is a folder; so is one with a `=` in its name, if it exists."""
    return os.path.isdir(word) if "=" in word else not word.startswith("-")
