"""What the terminal shows of jobs that run at the same time."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from screen import Screen

from dpg_cli.sweeps.table import SweepDisplay

PROGRESS = {
    "kind": "progress",
    "step": 999_999_999,
    "total": 999_999_999,
    "speed": 12_345.6,
    "left": 359_999.0,
    "last_return": -12345.67,
    "best": [10, -1234.56],
}
LOG = Path("sweep/0/output.log")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class TerminalFile(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def display(clock, jobs=3, width=80, height=24, terminal=True):
    file = TerminalFile() if terminal else io.StringIO()
    console = Console(
        file=file, width=width, height=height, force_terminal=terminal, markup=False, highlight=False, color_system=None
    )
    shown = SweepDisplay(console, jobs, lambda line: file.write(f"say {line}\n"), clock)
    shown.workers = 2
    return shown, file


def on_screen(file, width):
    screen = Screen(width)
    screen.write(file.getvalue().replace("\n", "\r\n"))  # as a terminal does
    return screen.lines()


@pytest.mark.parametrize("width", [60, 80, 90, 120])
@pytest.mark.parametrize("jobs", [1, 3, 64])
def test_the_table_stays_inside_the_terminal(clock, width, jobs):
    shown, file = display(clock, jobs=100, width=width)
    with shown:
        for number in range(jobs):
            shown.started(number, f"[{number + 1}/100] job {number}", "algo=td3 env=HalfCheetah-v4 seed=0 " * 4, LOG)
            shown.said(number, PROGRESS)
        shown.notify("dpg-train: stopping with a checkpoint; a second signal stops at once " + "and more " * 10)
        clock.now += 1
        shown.passed()
        lines = on_screen(file, width)
    assert len(lines) < 24
    assert max(map(len, lines)) <= width
    assert " 999,999,999 " in lines[1]
    assert "99:59:59" in lines[1]
    assert ("time left" in lines[0]) == (width >= 90)
    if jobs == 64:
        assert lines[-3] == "and 45 more running"
    assert lines[-2].startswith("0 of 100 done  0 failed")
    assert lines[-1].startswith("dpg-train: stopping with a checkpoint")


def test_the_table_is_erased_at_its_end_and_failures_stay_above(clock):
    shown, file = display(clock)
    with shown:
        for number in range(2):
            shown.started(
                number, f"[{number + 1}/3] job {number}", f"seed={number}", Path(f"sweep/{number}/output.log")
            )
        shown.ended(0, "failed", "broken", float("nan"))
        clock.now += 1
        shown.passed()
        lines = on_screen(file, 80)
        assert lines[0] == "[1/3] job 0 failed: broken (log: sweep/0/output.log)"
        assert lines[2].split() == ["1", "seed=1", "starting", "–", "–", "–", "–"]
        assert lines[3] == "0 of 3 done  1 failed  1 running  – left"
        shown.again(1, "killed by SIGKILL")
        shown.ended(1, "done", None, 5.0)
    assert on_screen(file, 80) == [
        "[1/3] job 0 failed: broken (log: sweep/0/output.log)",
        "[2/3] job 1 was started again: killed by SIGKILL",
    ]


def test_without_a_terminal_a_line_says_when_a_job_starts_and_ends_and_one_a_minute_how_far_the_sweep_is(clock):
    shown, file = display(clock, terminal=False)
    with shown:
        shown.started(0, "[1/3] job 0", "seed=0", LOG)
        shown.started(1, "[2/3] job 1", "", LOG)
        shown.said(0, {**PROGRESS, "left": 100.0})
        shown.said(1, {**PROGRESS, "left": 40.0})
        shown.said(0, {"kind": "note", "text": "note: it is slow"})
        shown.said(1, {"kind": "note", "text": "note: it is slow"})
        for _ in range(130):
            clock.now += 1
            shown.passed()
        shown.ended(0, "done", None, -1.23)
        shown.ended(1, "pending", None, float("nan"))
        shown.failed_to_start("job 2", "no such value")
        shown.notify("now")
    lines = [line[10:] if line[2:3] == ":" else line for line in file.getvalue().splitlines()]
    assert lines == [
        "[1/3] job 0 started: seed=0",
        "[2/3] job 1 started",
        "[1/3] job 0 note: it is slow",
        "0 of 3 done  0 failed  2 running  0:02:15 left",
        "0 of 3 done  0 failed  2 running  0:02:45 left",
        "[1/3] job 0 done after 0:02:10, score -1.2",
        "[2/3] job 1 stopped",
        "job 2 failed: no such value",
        "say now",
    ]


def test_the_time_left_counts_the_jobs_that_wait(clock):
    shown, _ = display(clock, jobs=6)
    for number in range(2):
        shown.started(number, f"job {number}", "", LOG)
    assert shown._left() is None
    clock.now += 50
    for number in range(2):
        shown.said(number, {**PROGRESS, "left": 50.0})
    assert shown._left() == (2 * 50 + 4 * 100) / 2
    shown.ended(0, "done", None, 0.0)
    shown.ended(1, "done", None, 0.0)
    assert shown._left() == 4 * 50 / 2


def test_the_last_job_is_what_the_sweep_waits_for(clock):
    shown, _ = display(clock, jobs=1)
    shown.started(0, "job 0", "", LOG)
    shown.said(0, {**PROGRESS, "left": 50.0})
    assert shown._left() == 50.0
