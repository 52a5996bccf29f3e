"""What a run shows while it trains: the panel on a terminal, lines otherwise, and the same lines in `train.log`."""

import io
import os
import re
import sys

import pytest
from commands import SMALL, TOY
from rich.console import Console
from screen import Screen, Terminal

from dpg_cli.cli import progress
from dpg_cli.cli.pace import WINDOW, Pace
from dpg_cli.cli.progress import LINE_EVERY, EvaluationProgress, ProgressDisplay
from dpg_cli.environments.evaluation import Evaluation
from dpg_cli.environments.rollout import Episode

LINE = r"\d\d:\d\d:\d\d  [\d,]+ of [\d,]+ steps  [\d,–]+ steps/s  [\d:–]+ left  last return (–|-?[\d.]+)"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def display(clock, total=1000, job="", **console):
    return ProgressDisplay(
        "td3 on Toy, seed 0", total, Console(file=io.StringIO(), width=80, **console), job=job, clock=clock
    )


def printed(shown):
    return shown._console.file.getvalue().splitlines()


def evaluation(*returns):
    return Evaluation(list(returns), [1] * len(returns), None)


def panel(shown, width=80):
    return ["".join(part.text for part in line) for line in Console(width=width).render_lines(shown)]


# --- speed and time left ---


def test_speed_is_that_of_the_last_seconds(clock):
    pace = Pace(100_000, clock=clock)
    for second in range(1, 21):
        clock.now += 1
        pace.stepped(min(second, 10) * 1000 + max(0, second - 10) * 10)
    assert pace.speed == 10
    assert pace.left == (100_000 - 10_100) / 10


def test_evaluations_do_not_slow_the_speed_and_are_in_the_time_left(clock):
    pace = Pace(1000, clock=clock)
    pace.evaluated(0)
    for step in range(1, 101):
        clock.now += 0.1
        pace.stepped(step)
    clock.now += 20.0
    pace.evaluated(100)
    clock.now += WINDOW
    pace.stepped(100 + round(WINDOW * 10))
    assert pace.speed == pytest.approx(10)
    assert pace.left == pytest.approx((1000 - 150) * (0.1 + 20 / 100))


def test_a_resumed_run_is_as_fast_as_it_is_now(clock):
    pace = Pace(10_000, clock=clock)
    clock.now += 30  # of reading the checkpoint
    pace.started(9_000, 8_000)
    assert pace.speed == 0
    assert pace.left is None
    clock.now += 1
    pace.stepped(9_010)
    assert pace.speed == 10
    assert pace.left == 99


# --- lines without a terminal ---


def test_there_is_a_line_every_minute_and_at_every_evaluation(clock, caplog):
    caplog.set_level("INFO")
    shown = display(clock, total=100_000)
    with shown:
        shown.started(0, [[]])
        shown.evaluated(0, [evaluation(1.0, 3.0)])
        for step in range(1, 301):  # five minutes
            clock.now += 1
            shown.stepped(step * 10, [Episode(0, -7.25, 10)] if step == 40 else [])
        shown.evaluated(3000, [evaluation(1.5, 2.5)])
    lines = printed(shown)
    assert lines[0] == "td3 on Toy, seed 0"
    assert all(re.match(LINE, line) for line in lines[1:])
    assert len([line for line in lines if "evaluation" not in line]) - 1 in (5, 6)
    assert lines[-1].endswith(
        "3,000 of 100,000 steps  10 steps/s  2:41:40 left  last return -7.2  evaluation 2.0 ± 0.5  best 2.0 at 0"
    )
    assert [line[10:] for line in lines[1:]] == [record.message for record in caplog.records[1:]]


def test_a_long_evaluation_is_not_silent(clock, caplog):
    caplog.set_level("INFO")
    shown = display(clock)
    shown.started(0, [[]])
    for steps in range(1, 20_001):
        clock.now += 0.006
        shown.evaluating(steps)
    lines = printed(shown)
    assert len(lines) == len(caplog.records) == 2
    assert re.fullmatch(LINE + r"  evaluating: 16,6\d\d steps", lines[-1])
    shown.evaluated(0, [evaluation(1.0)])
    assert "evaluating" not in printed(shown)[-1]


def test_a_long_evaluation_by_dpg_eval_is_not_silent(clock, monkeypatch):
    said = []
    monkeypatch.setattr(progress, "say", said.append)
    shown = EvaluationProgress("dpg-eval", clock)
    for steps in range(1, 2501):
        clock.now += 0.01
        shown(steps)
    assert len(said) == 2
    assert re.fullmatch(r"dpg-eval: evaluating: 2,00\d steps", said[1])


def test_slow_steps_still_have_a_line_every_minute(clock):
    shown = display(clock)
    for step in range(1, 11):
        clock.now += 60 - LINE_EVERY + 5
        shown.stepped(step, [])
    assert len(printed(shown)) >= 2


def test_several_seeds_are_their_mean_and_spread_and_the_log_has_each(clock, caplog):
    caplog.set_level("INFO")
    shown = display(clock)
    shown.evaluated(0, [evaluation(1.0, 3.0), evaluation(4.0, 4.0)])
    assert "evaluation 3.0 ± 1.0  best 3.0 at 0" in printed(shown)[-1]
    assert caplog.records[-1].message == "evaluation of each seed: 2.0, 4.0"


def test_a_resumed_run_knows_its_evaluations(clock):
    shown = display(clock)
    shown.started(60, [[(0, 1.0), (20, 9.0), (40, 5.0)]])
    assert "evaluation 5.0 " in panel(shown)[3]
    assert "best 9.0 at 20" in panel(shown)[3]
    shown.started(60, [[(0, 1.0), (20, 9.0), (40, 5.0)], [(0, 1.0), (40, 7.0)]])  # one seed was resumed alone
    assert "evaluation 6.0 ± 1.0" in panel(shown)[3]


def test_the_lines_of_a_resumed_run(train, signalled, tmp_path):
    arguments = [TOY, *SMALL, "total_steps=2000", "eval.every=100", "hydra.run.dir=run"]
    assert signalled("step", 1950, [15], *arguments)[0] == 143
    code, out, err = train("resume=run", "trust=true")
    assert (code, err) == (0, "")
    first = next(line for line in out.splitlines() if "of 2,000 steps" in line)
    assert re.match(LINE, first)
    best = re.findall(r"best (\S+) at (\S+)", (tmp_path / "run/train.log").read_text())
    assert len(set(best)) > 1
    assert f"best {best[-1][0]} at {best[-1][1]}" in out


def test_the_log_has_every_evaluation_the_duration_and_the_end(train, signalled, tmp_path):
    arguments = [TOY, *SMALL, "hydra.run.dir=run"]
    assert signalled("step", 50, [15], *arguments)[0] == 143
    log = (tmp_path / "run/train.log").read_text()
    assert re.findall(r"(\d+) of 60 steps .* evaluation ", log) == ["0", "20", "40"]
    assert re.search(r"stopped at step 51 after 0:00:\d\d$", log, re.MULTILINE)
    assert train("resume=run", "trust=true")[0] == 0
    log = (tmp_path / "run/train.log").read_text()
    assert re.findall(r"(\d+) of 60 steps .* evaluation ", log) == ["0", "20", "40", "60"]
    assert re.search(r"done at step 60 after 0:00:\d\d$", log, re.MULTILINE)
    assert train(TOY, *SMALL, "env.kwargs.bad_step=41", "hydra.run.dir=bad")[0] == 1
    assert re.search(r"failed at step \d+ after 0:00:\d\d$", (tmp_path / "bad/train.log").read_text(), re.MULTILINE)


def test_every_line_of_a_job_names_it(clock):
    shown = display(clock, job="[3/4] job 2")
    shown.evaluated(0, [evaluation(1.0)])
    shown.tell("note: something")
    assert [line[:13] for line in printed(shown)] == ["[3/4] job 2  "] * 2


# --- the panel ---


def test_the_panel_shows_steps_speed_and_time_left(clock):
    shown = display(clock)
    clock.now += 5
    shown.stepped(250, [Episode(0, -3.0, 10)])
    lines = panel(shown)
    assert "250 of 1,000 steps  50 steps/s" in lines[2]
    assert "0:00:15 left" in lines[2]
    assert "last return -3.0" in lines[3]
    shown.evaluating(20_000)
    assert "evaluating: 20,000 steps" in panel(shown)[3]


def test_colours_on_a_pipe_are_no_terminal(monkeypatch, clock):
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = display(clock, force_terminal=True)
    with shown:
        shown.evaluated(0, [evaluation(1.0)])
    assert "\x1b[2K" not in "".join(printed(shown))
    assert len(printed(shown)) == 2


WHOLE = re.compile(r"[\d,]+ of 1,000,000 steps +[\d,]+ steps/s +[\d:]+ left\s+last return -.* best -")
COMMAND = [sys.executable, "-c", "from dpg_cli.cli.train import main; main()"]


def test_a_stopped_run_leaves_nothing_of_the_panel_on_the_screen(tmp_path):
    """Ctrl-C in a real terminal, which shows "^C", before and after a resume in a wider one."""
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    environment["TERM"] = "xterm"
    new = ["env=Pendulum-v1", *SMALL[:2], "total_steps=1e6", "buffer_size=1000", "eval.every=500", "eval.episodes=1"]
    for columns, arguments in ((80, [*new, "hydra.run.dir=run"]), (120, ["resume=run"])):
        with Terminal([*COMMAND, *arguments], columns, cwd=tmp_path, env=environment) as terminal:
            terminal.read_until(lambda shown=terminal.lines: WHOLE.search("\n".join(shown())))
            terminal.type(b"\x03")
            assert terminal.wait() == 130
            shown = terminal.lines()
        assert "^C" in terminal.written.decode()
        resuming = [] if arguments[0] != "resume=run" else [line for line in shown if line.startswith("resuming at")]
        text = "".join(shown[len(resuming) :]).replace(" ", "")  # a line may wrap at one
        assert re.fullmatch(r"dpg-train:stoppedatstep[\d,]+after[\d:]+;resumewithdpg-trainresume=run", text)


@pytest.mark.parametrize("more", [[], ["num_envs=2", "env_processes=2"]])
def test_what_a_simulator_prints_stays_above_the_panel(tmp_path, more):
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    given = ["env=custom_envs:Prints-v0", *SMALL, "total_steps=400", "eval.every=400", *more]
    with Terminal([*COMMAND, *given, "hydra.run.dir=run"], 80, cwd=tmp_path, env=environment) as terminal:
        assert terminal.wait() == 0
        shown = terminal.lines()
    printed = ["printed by Python", "written to the descriptor", "printed by C"]
    end = next(i for i, line in enumerate(shown) if line.startswith("done at step 400"))
    above = "\n".join(shown[:end])  # lines of two processes may run into each other
    assert [above.count(text) for text in printed] == [2 if more else 1] * 3
    assert re.sub("|".join(printed), "", above).strip() == ""


def test_the_panel_says_that_it_is_stopping(clock, monkeypatch):
    """The signal handler writes nothing itself, which would move the cursor."""
    said = []
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    console.file.isatty = lambda: True
    shown = ProgressDisplay("td3 on Toy", 1000, console, clock=clock)
    with shown:
        shown.notify("dpg-train: stopping with a checkpoint")
        assert "stopping with a checkpoint" in panel(shown)[4]
    assert said == []
    screen = Screen(80)
    screen.write(console.file.getvalue().replace("\n", "\r\n"))  # as a terminal's driver does
    assert screen.lines() == []
    shown.notify("dpg-train: stopping with a checkpoint")
    assert len(said) == 1
