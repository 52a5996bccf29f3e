#!/usr/bin/env python
"""Every fault that a run must survive, many times, in processes of their own.

    python tests/faults/run.py                            # all of it
    python tests/faults/run.py only=kill,signals seed=7 jobs=2 out=faults.json
    python tests/faults/run.py only=kill case=17          # one case again

Every case draws its random moment from a generator of its own, keyed by (seed, row, case), and prints it. A case
passes if the run, once resumed, comes to the very numbers of a run that met no fault (`tests/oracle.py`). Most
trainings are forked from this process, which has everything imported, since a start would take longer than what it
trains; every tenth kill and all cases of `clock` are the installed command. What needs no process of its own (each
call to the disk that fails or is not synced, controls, hostile folders) is in the tests.
"""

import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
os.environ["OMP_NUM_THREADS"] = "1"

import clock  # noqa: E402
import damaged_checkpoints  # noqa: E402
import disk  # noqa: E402
import kills  # noqa: E402
import numpy as np  # noqa: E402
import races  # noqa: E402
import signals  # noqa: E402
import torch  # noqa: E402
import torn_curves  # noqa: E402
from case import Case  # noqa: E402
from references import train_references  # noqa: E402

from dpg_cli.cli.arguments import parse, run_script, whole  # noqa: E402
from dpg_cli.cli.machine import affinity  # noqa: E402
from dpg_cli.errors import UserError  # noqa: E402

ROWS: dict[str, tuple[Callable[[Case], None], int]] = {
    "kill": (kills.kill, 100),
    "calls": (disk.calls, len(disk.CALLS)),
    "full_disk": (disk.full_disk, 1),
    "signals": (signals.signals, len(signals.SIGNALS)),
    "starts": (races.starts, 15),
    "resumes": (races.resumes, 10),
    "clock": (clock.clock, 6),
    "torn": (torn_curves.torn, len(torn_curves.TORN)),
    "damaged": (damaged_checkpoints.damaged, len(damaged_checkpoints.DAMAGED)),
}


def run_case(row: str, number: int, seed: int, references: Path) -> dict[str, Any]:
    """One case: how it went."""
    torch.set_num_threads(1)
    folder = references.parent / row / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = Case(number, np.random.default_rng([seed, list(ROWS).index(row), number]), folder, references)
    start, error = time.monotonic(), None
    try:
        ROWS[row][0](case)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    else:
        shutil.rmtree(folder)
    seconds = round(time.monotonic() - start, 1)
    return {"row": row, "case": number, "drawn": case.drawn, "error": error, "seconds": seconds}


def run_rows(rows: Sequence[str], values: Mapping[str, str], seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    references = folder / "references"
    train_references(references)
    jobs = whole(dict(values), "jobs", affinity(), minimum=1)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        futures = []
        for row in rows:
            most = ROWS[row][1]
            numbers: Sequence[int] = range(min(whole(dict(values), "cases", most, minimum=1), most))
            if "case" in values:
                numbers = [whole(dict(values), "case", 0, minimum=0)]
            futures += [pool.submit(run_case, row, number, seed, references) for number in numbers]
        for future in futures:
            yield future.result()


def main() -> None:
    values = parse(sys.argv[1:], ("only", "seed", "cases", "case", "jobs", "out", "folder"), required=())
    rows = values.get("only", ",".join(ROWS)).split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        raise UserError(f"only={unknown[0]}: there are {', '.join(ROWS)}")
    if "clock" in rows and not clock.LIBFAKETIME:
        raise UserError("only=clock: needs libfaketime (apt install libfaketime)")
    torch.set_num_threads(1)
    seed, start, results = whole(values, "seed", 0, minimum=0), time.monotonic(), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(values.get("folder", temporary)).resolve()
        for result in run_rows(rows, values, seed, folder):
            results.append(result)
            verdict = "ok" if result["error"] is None else f"FAILED: {result['error']}"
            about = "; ".join(result["drawn"])
            print(f"{result['row']} {result['case']}: {about} [{result['seconds']} s] {verdict}", flush=True)
    print(f"\nseed {seed}, {time.monotonic() - start:.0f} s, {platform.platform()}, {os.cpu_count()} cores")
    for row in rows:
        own = [result for result in results if result["row"] == row]
        print(f"{row:10} {sum(result['error'] is None for result in own):4} of {len(own)} passed")
    if "out" in values:
        Path(values["out"]).write_text(json.dumps({"seed": seed, "results": results}, indent=2) + "\n")
    sys.exit(any(result["error"] is not None for result in results))


if __name__ == "__main__":
    run_script("faults", main)
