"""A few dozen of the random command lines of `tests/fuzz.py`, in this process."""

import signal

import pytest
from fuzz import SECONDS, draw, prepare, problem, train_nothing

from dpg_cli.cli import job


@pytest.mark.parametrize("number", range(40))
def test_a_random_command_line_is_answered(train, evaluate, tmp_path, monkeypatch, number):
    def hang(*_):
        pytest.fail(f"no answer in {SECONDS} s")

    prepare(tmp_path)
    monkeypatch.setattr(job, "run", train_nothing)
    monkeypatch.setenv("COMP_LINE", "")  # which completion sets
    case = draw(0, number)
    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        code, _, err = (train if case.program == "train" else evaluate)(*case.arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert problem(code, err) is None, f"dpg-{case.program} {case.arguments!a}\n{err}"
