"""Write a report's folder: all of it, or nothing."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from dpg_cli.errors import UserError
from dpg_cli.report import figures, tables
from dpg_cli.report.contents import Contents
from dpg_cli.report.page import GENERATOR, page
from dpg_cli.storage.atomic import explaining

PAGE = "report.html"
FILES = (PAGE, "summary.csv", "summary.md", "summary.tex", "runs.csv", "differences.csv")
FIGURES = "figures"
HEAD = 2_000  # bytes of the page that hold GENERATOR


def check_out(out: Path) -> None:
    """Check that a report can be written to a folder: it is new, or an earlier report.

    Raises:
        UserError: it is something else; nothing has been changed.
    """
    if not os.path.lexists(out):
        parent = next(parent for parent in out.absolute().parents if parent.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"out={out}: cannot be created in {parent}")
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"out={out}: exists and is not a folder")
    names = set(os.listdir(out))
    if not _is_report(out / PAGE):
        raise UserError(f"out={out}: exists and is no earlier report; choose another folder")
    pictures = set(os.listdir(out / FIGURES)) if (out / FIGURES).is_dir() else set()
    own = {name for name in pictures if name.rpartition(".")[2] in figures.SUFFIXES}
    if foreign := sorted(names - {*FILES, FIGURES}) + sorted(pictures - own):
        raise UserError(f"out={out}: also holds {foreign[0]}, which is no part of a report; choose another folder")


def write(contents: Contents, out: Path, x: str, command: Sequence[str], when: str, tick: Callable[[], None]) -> None:
    """Write the report, in place of an earlier one.

    Args:
        contents: of the report.
        out: the folder, checked by `check_out`.
        x: the figures' axis, `steps` or `hours`.
        command: that made the report.
        when: it was made.
        tick: called after each figure.

    Raises:
        DiskError: it cannot be written; an earlier report is still there.
    """
    with explaining(out), contextlib.ExitStack() as leftovers:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, so that renaming replaces it; a killed report leaves no half of one under its name.
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        leftovers.callback(shutil.rmtree, scratch, ignore_errors=True)
        new = scratch / "new"
        (new / FIGURES).mkdir(parents=True)
        looks = figures.looks(contents.groups)
        svgs = figures.write_curves(new / FIGURES, contents.by_env, looks, x, contents.min_seeds, tick)
        profile = figures.write_profile(new / FIGURES, contents.aggregate, looks) if contents.aggregate else None
        pairs = [pair for own in contents.pairs.values() for pair in own]
        texts = {
            PAGE: page(contents, svgs, profile, command, when),
            "summary.csv": tables.summary_csv(contents.rows),
            "summary.md": tables.summary_md(contents.rows, contents.best, contents.min_seeds),
            "summary.tex": tables.summary_tex(contents.rows, contents.best, contents.min_seeds),
            "runs.csv": tables.runs_csv(contents.groups, contents.threshold),
            "differences.csv": tables.pairs_csv(pairs),
        }
        for name, content in texts.items():
            (new / name).write_text(content, encoding="utf-8")
        if out.exists():
            out.rename(scratch / "old")
        new.rename(out)


def _is_report(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return GENERATOR.encode() in file.read(HEAD)
    return False
