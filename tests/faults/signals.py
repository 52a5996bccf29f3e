"""Signals at any moment, once and twice."""

import itertools
import os
import signal
import time

from case import Case
from moments import at
from oracle import differences, members
from trainings import HERE, RUNS

from dpg_cli.cli.signals import GRACE, HANDLED
from dpg_cli.storage import checkpoint, run_dir

SIGNAL_MOMENTS = ("random steps", "learning", "evaluation", "checkpoint", "reset", "start-up", "sweep")
SIGNALS = list(itertools.product(SIGNAL_MOMENTS, HANDLED, (1, 2)))


def signals(case: Case) -> None:
    """A signal at a random call of a kind, once or twice, then resume."""
    moment, number, times = SIGNALS[case.number]
    start_up = ["compose", "check", "probe", "claim", "begin", "build", "recorder"]
    name = str(case.random.choice(["Pendulum-v1", "HalfCheetah-v4", "HalfCheetah-v4, 2 environments, wrapped"]))
    envs = 2 if "num_envs=2" in RUNS[name] else 1
    highest = {"random steps": 30 // envs, "learning": 125, "evaluation": 124, "checkpoint": 150, "reset": 30}
    where, first, arguments = moment, 0, [*RUNS[name], HERE]
    if moment == "sweep":
        where, name = "learning", "Pendulum-v1"
        arguments = ["-m", "env_threads=1,auto", *RUNS[name], "hydra.sweep.dir=sweep"]  # the same numbers twice
        highest["learning"] = 250
    elif moment == "start-up":
        where = str(case.random.choice(start_up))
    elif moment == "reset":
        first = 20  # before it are those of the probe
    call = int(case.random.integers(first, highest.get(where, 1)))
    case.note(f"{name}: {signal.Signals(number).name} x {times} at {moment}, call {call} of {where}")

    def send() -> None:
        os.kill(os.getpid(), number)
        if times == 2:
            time.sleep(GRACE + 0.1)
            os.kill(os.getpid(), number)

    command = case.expect(128 + number, *arguments, prepare=lambda: at(where, call, send, setattr))
    handled = where not in start_up[:4]
    assert ("resume with dpg-train resume=" in command.err()) == handled, command.err()
    if moment == "sweep":
        stopped = "1" if call >= 130 else "0"
        if stopped == "1":
            assert not differences(case.folder / "sweep/0", case.reference(name)), "the job before it"
        assert (case.folder / "sweep/1").exists() == (stopped == "1"), "another job began"
        (case.folder / "sweep" / stopped).rename(case.run)
    elif handled:
        status = run_dir.status(members(case.run)[0])
        assert status in ("interrupted", None), status  # none where the second came before run.json was written
        assert not checkpoint.valid_steps(case.run)[1]
    case.resumed(name)
