"""SIGKILL at any moment."""

import signal
import time

from case import Case, records
from trainings import RUNS


def kill(case: Case) -> None:
    """SIGKILL at a random moment, then resume."""
    name = list(RUNS)[case.number % 10]
    kills = 3 if case.number // 10 % 3 == 2 else 1
    installed = case.number // 10 == case.number % 10
    case.note(f"{name}{', the installed command' if installed else ''}")
    total, reached = records(case.reference(name)), 0.0
    for _ in range(kills):
        delay = case.random.exponential(0.02)
        with case.command(*case.again(name), installed=installed) as command:
            if case.random.random() < 0.2:
                delay = case.random.uniform(0, 6.0 if installed else 1.5)
                moment = f"after {delay:.3f} s"
            else:
                reached = case.random.uniform(reached, 1)
                moment = f"{delay:.4f} s after record {int(reached * total)} of {total}"
                while records(case.run) < int(reached * total) and command.running():
                    time.sleep(0.001)
            time.sleep(delay)
            command.send(signal.SIGKILL)
            code = command.wait()
        assert code in (0, 137), command.err()
        case.note(moment + ("" if code else " (it had ended)"))
    case.resumed(name)
