"""Write a report's folder: all of it, or nothing."""

import contextlib
import csv
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
MAX_NAME = 200  # bytes; file systems take 255, and a temporary name is longer
HEAD = 2_000  # bytes of the page that hold GENERATOR


def check_out(out: Path) -> None:
    """Check that a report can be written to a folder: it is new, or an earlier report.

    Raises:
        UserError: it is something else; nothing has been changed.
    """
    if len(os.fsencode(out.name)) > MAX_NAME:
        raise UserError(f"out={out}: the name is too long")
    if not os.path.lexists(out):
        parent = next(parent for parent in out.absolute().parents if parent.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"out={out}: cannot be created in {parent}")
        return
    if out.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UserError(f"out={out}: is the working directory or above it; choose another folder")
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"out={out}: exists and is not a folder")
    if not _is_report(out / PAGE) or not (out / "summary.csv").is_file():
        raise UserError(f"out={out}: exists and is no earlier report; choose another folder")
    known = {*FILES, *(f"{FIGURES}/{stem}.{suffix}" for stem in _stems(out) for suffix in figures.SUFFIXES)}
    paths = [path for path in out.rglob("*") if path != out / FIGURES]
    own = [path for path in paths if path.name != ".DS_Store"]  # which macOS makes
    foreign = [path for path in own if path.relative_to(out).as_posix() not in known or not path.is_file()]
    if foreign:
        name = min(foreign).relative_to(out)
        raise UserError(f"out={out}: also holds {name}, which is no part of a report; choose another folder")


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
        profiles = {
            name: figures.write_profile(new / FIGURES, f"profile{name and '_'}{name}", aggregate, looks)
            for name, aggregate in contents.aggregates.items()
        }
        pairs = [pair for own in contents.pairs.values() for pair in own]
        texts = {
            PAGE: page(contents, svgs, profiles, command, when),
            "summary.csv": tables.summary_csv(contents.rows),
            "summary.md": tables.summary_md(contents.rows, contents.best, contents.min_seeds),
            "summary.tex": tables.summary_tex(contents.rows, contents.best, contents.min_seeds),
            "runs.csv": tables.runs_csv(contents.groups, contents.threshold),
            "differences.csv": tables.pairs_csv(pairs),
        }
        for name, content in texts.items():
            (new / name).write_text(content, encoding="utf-8")
        old = scratch / "old"
        try:
            if out.exists():
                out.rename(old)
            new.rename(out)
        except BaseException:  # a signal too
            if old.exists() and not out.exists():
                old.rename(out)
            raise


def _stems(out: Path) -> set[str]:
    """The stems of the figures of a report.

    Raises:
        UserError: it is damaged.
    """
    try:
        rows = csv.DictReader((out / "summary.csv").read_text(encoding="utf-8").splitlines())
        envs = list(dict.fromkeys(row["env"] for row in rows))
    except (KeyError, ValueError, csv.Error) as error:
        raise UserError(f"out={out}: its summary.csv is damaged; remove the folder or choose another") from error
    versions = {env.rpartition("-")[2] for env in envs}
    return {*figures.stems(envs).values(), "curves", "profile", *(f"profile_{version}" for version in versions)}


def _is_report(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return GENERATOR.encode() in file.read(HEAD)
    return False
