#!/usr/bin/env python
"""Training speed at several revisions of this repository, in turns.

    python scripts/measure/revisions.py HEAD~3 HEAD .
    python scripts/measure/revisions.py 0722704 . algo=ddpg threads=1 repetitions=20 out=revisions.json

Each revision is what git can name, as far back as counted_training.py runs; `.` is the working tree. The last columns
are the medians of the paired ratios to the one before and to the first. What is trained, and the keys, are as for
benchmark.py, and so are the cautions.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmark import ENV, KEYS, OURS, ROOT, in_turns, paired, print_title, row, stopped, work_of
from results import check_files, write

from dpg_cli.cli.arguments import parse, run_script
from dpg_cli.errors import UserError


def main() -> None:
    revisions = [argument for argument in sys.argv[1:] if "=" not in argument]
    values = parse([argument for argument in sys.argv[1:] if "=" in argument], KEYS, required=())
    check_files(values, "out")
    if len(set(revisions)) < max(2, len(revisions)):
        raise UserError("name at least two revisions, each once; . is the working tree")
    commits = {revision: commit_of(revision) for revision in revisions}
    work, turns = work_of(values)
    with contextlib.ExitStack() as started:
        folder = Path(started.enter_context(tempfile.TemporaryDirectory()))
        candidates = {}
        for number, (revision, commit) in enumerate(commits.items()):
            checkout = started.enter_context(tree(commit, folder / f"tree{number}"))
            (runs := folder / f"runs{number}").mkdir()
            candidates[revision] = started.enter_context(stopped(OURS, work, turns, runs, checkout))
        rates = in_turns(candidates, turns)
    first = rates[revisions[0]]
    ratios = {revision: paired(rates[revision], first) for revision in revisions}
    print_title(work, turns)
    print(f"{'':20}{'median':>9}{'lowest':>9}{'highest':>9}   paired ratios: to the one before, to the first")
    for before, revision in zip([revisions[0], *revisions], revisions, strict=False):
        to_before = paired(rates[revision], rates[before])
        print(row(revision, rates[revision]) + f"   {to_before:.2f}  {ratios[revision]:.2f}")
    result = {"work": work._asdict(), "env": ENV, "turns": turns._asdict(), "commits": commits}
    write(values, {**result, "per_second": rates, "ratios": ratios})


def commit_of(revision: str) -> str:
    """The commit that git knows by this name; `.` as it is.

    Raises:
        UserError: there is none.
    """
    if revision == ".":
        return revision
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise UserError(f"{revision}: git knows no such revision")
    return found.stdout.strip()


@contextlib.contextmanager
def tree(commit: str, path: Path) -> Iterator[Path]:
    """A checkout of a commit, removed afterwards; the working tree for `.`."""
    if commit == ".":
        yield ROOT
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    try:
        subprocess.run([*git, "add", "--quiet", "--detach", path, commit], check=True)
        yield path
    finally:
        subprocess.run([*git, "remove", "--force", path], check=False)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    run_script("revisions", main)
