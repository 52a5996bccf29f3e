#!/usr/bin/env python
"""Training speed at several revisions of this repository, in turns.

    python scripts/revisions.py v0.1.0 HEAD .
    python scripts/revisions.py HEAD . algo=ddpg threads=1 repetitions=20 out=revisions.json

Each revision is what git can name; `.` is the working tree. The last column is the median of the paired ratios to the
first one. What is trained, and the keys, are as for scripts/benchmark.py, and the same cautions apply.
"""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmark import KEYS, ROOT, in_turns, paired, row, stopped, work_of
from measure import check_files, write

from dpg_cli.cli.arguments import parse, run_script
from dpg_cli.errors import UserError


def main() -> None:
    revisions = [argument for argument in sys.argv[1:] if "=" not in argument]
    values = parse([argument for argument in sys.argv[1:] if "=" in argument], KEYS, required=())
    check_files(values, "out")
    if len(set(revisions)) < max(2, len(revisions)):
        raise UserError("name at least two revisions, each once; . is the working tree")
    work, turns = work_of(values)
    with contextlib.ExitStack() as started:
        folder = Path(started.enter_context(tempfile.TemporaryDirectory()))
        trees = {revision: started.enter_context(tree(revision, folder)) for revision in revisions}
        candidates = {}
        for revision, checkout in trees.items():
            (runs := folder / f"runs of {checkout.name}").mkdir()
            candidates[revision] = started.enter_context(stopped("dpg-cli", work, turns, runs, checkout))
        rates = in_turns(candidates, turns)
    first = rates[revisions[0]]
    ratios = {revision: paired(rates[revision], first) for revision in revisions}
    title = f"{work.algo} in {work.precision}, {work.threads} threads"
    print(f"\n{title}, {len(first)} turns of {turns.seconds} s; a second")
    print(f"{'':20}{'median':>9}{'lowest':>9}{'highest':>9}   median of the paired ratios to {revisions[0]}")
    for revision, ratio in ratios.items():
        print(row(revision, rates[revision]) + f"   {ratio:.2f}")
    write(values, {"work": work._asdict(), "per_second": rates, "ratios": ratios})


@contextlib.contextmanager
def tree(revision: str, folder: Path) -> Iterator[Path]:
    """A checkout of a revision, removed afterwards.

    Raises:
        UserError: git does not know it.
    """
    if revision == ".":
        yield ROOT
        return
    git, path = ["git", "-C", str(ROOT), "worktree"], folder / f"tree of {revision.replace('/', '-')}"
    added = subprocess.run([*git, "add", "--detach", path, revision], capture_output=True, text=True, check=False)
    if added.returncode:
        raise UserError(f"{revision}: {added.stderr.strip().splitlines()[-1]}")
    try:
        yield path
    finally:
        subprocess.run([*git, "remove", "--force", path], check=True)


if __name__ == "__main__":
    run_script("revisions", main)
