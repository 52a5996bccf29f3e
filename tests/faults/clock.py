"""Clocks that are wrong, and folders with odd names or moved."""

import contextlib
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from case import Case, records
from oracle import differences
from trainings import HERE, RUNS, TINY

LIBFAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


def clock(case: Case) -> None:
    """The clock is set back or frozen, paths are odd, the folder is moved: the installed command."""
    back = {"LD_PRELOAD": str(LIBFAKETIME[0]), "FAKETIME": "-400d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    frozen = {**back, "FAKETIME": "2026-01-01 00:00:00"}
    name = "Pendulum-v1" if case.number != 5 else "HalfCheetah-v4, OU, 3 seeds"
    what = ["set back before the resume", "frozen", "frozen, and two starts", "odd path", "moved", "moved and set back"]
    case.note(what[case.number])
    stop = int(case.random.integers(4, records(case.reference(name)) - 2))
    case.note(f"killed after record {stop}")

    def killed(*arguments: str, run: Path, environment: Mapping[str, str] = {}) -> None:
        with case.command(*arguments, installed=True, environment=environment) as command:
            while records(run) < stop and command.running():
                time.sleep(0.001)
            command.send(signal.SIGKILL)
            assert command.wait() in (0, 137), command.err()

    odd = "my runs/Läufe ☃, a=1"
    run, environment = case.run, {}
    if case.number == 2:
        with contextlib.ExitStack() as stack:
            arguments = [*TINY, "hydra.run.dir='run-${now:%Y-%m-%d_%H-%M-%S-%f}'"]
            both = [stack.enter_context(case.command(*arguments, installed=True, environment=frozen)) for _ in range(2)]
            assert sorted(command.wait() for command in both) == [0, 2], both[0].err()
        assert "already exists" in both[0].err()
        (run,) = case.folder.glob("run-2026-01-01_00-00-00-*")
        assert not differences(run, case.reference("tiny"))
        return
    if case.number in (0, 1):
        environment = back if case.number == 0 else frozen
        killed(*RUNS[name], HERE, run=run, environment=frozen if case.number == 1 else {})
    elif case.number == 3:
        run = case.folder / odd
        killed(*RUNS[name], f"hydra.run.dir='{odd}'", run=run)
    else:
        killed(*RUNS[name], HERE, run=run)
        run = case.folder / "elsewhere" / odd
        run.parent.mkdir(parents=True)
        case.run.rename(run)
        environment = back if case.number == 5 else {}
    case.expect(0, f"resume={run}", installed=True, environment=environment)
    found = differences(run, case.reference(name))
    assert not found, f"differs: {found}"
