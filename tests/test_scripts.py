"""The scripts that draw and write pages: their arguments, and what they do when something is wrong."""

import os
import select
import sys

import keys
import pytest
import terminal
import tutorial

from dpg_cli.cli.arguments import run_script

pytest.importorskip("matplotlib")
import overestimation
import random_scores
import speed_chart
import theorem

SCRIPTS = [keys, overestimation, random_scores, speed_chart, terminal, theorem, tutorial]


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """Run a script's main in an empty folder: its exit code, what it printed, what it complained."""
    monkeypatch.chdir(tmp_path)

    def run(module, *arguments):
        monkeypatch.setattr("sys.argv", [f"{module.__name__}.py", *arguments])
        code = 0
        try:
            run_script(module.__name__, module.main)
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.mark.parametrize("module", SCRIPTS, ids=lambda module: module.__name__)
def test_help_is_the_docstring(script, module):
    assert script(module, "--help") == (0, f"{module.__doc__.strip()}\n", "")


@pytest.mark.parametrize(
    ("module", "arguments", "complaint"),
    [
        (keys, "out=x", "out: unknown key; there are no keys"),
        (overestimation, "outputs", "outputs: not of the form key=value"),
        (overestimation, "out=x.png", "sweep: missing"),
        (overestimation, "sweep=none", "sweep=none: holds no <job>/seed_<k>/metrics.jsonl"),
        (random_scores, "x=1", "x: unknown key; there are no keys"),
        (speed_chart, "out=file/x.svg", "out=file/x.svg: File exists"),
        (speed_chart, "image=x.svg", "image: unknown key; the keys are out"),
        (terminal, "out=file/x.svg", "out=file/x.svg: File exists"),
        (terminal, "out=x.png", "out=x.png: must end in .svg"),
        (terminal, "at=30_001", "at=30_001: the training has 30,000 steps"),
        (theorem, "out=file", "out=file: File exists"),
        (theorem, "out=file/x", "out=file/x: Not a directory"),
        (tutorial, "write=yes", "write=yes: should be true or false"),
        (tutorial, "install=1", "install=1: should be true or false"),
    ],
)
def test_mistakes_are_rejected_before_anything_is_computed(script, tmp_path, module, arguments, complaint):
    (tmp_path / "file").touch()
    assert script(module, *arguments.split()) == (2, "", f"{module.__name__}: {complaint}\n")
    assert [path for path in tmp_path.rglob("*.*") if path.is_file()] == []


def test_the_chart_of_speed_is_written_to_outputs(script, tmp_path):
    assert script(speed_chart) == (0, "-> outputs/speed.svg\n", "")
    assert (tmp_path / "outputs" / "speed.svg").read_text(encoding="utf-8").startswith("<?xml")


# --- terminal.py ---

FRAME = b"training  \x1b[32m12,000\x1b[0m of 30,000 steps  379 steps/s\r\nlast evaluation  1,000.0\r\n"


def test_the_picture_shows_every_column_of_the_panel():
    drawn = terminal.picture(terminal.text(FRAME)).replace("&#160;", " ")
    assert "steps/s" in drawn
    assert "last evaluation" in drawn


def programs(monkeypatch, tmp_path, script):
    """A dpg-train of its own on the PATH, and nothing else there."""
    path = tmp_path / "bin" / "dpg-train"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n{script}", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))


def test_a_panel_is_taken_once_the_step_is_reached(monkeypatch, tmp_path):
    later = FRAME.replace(b"12,000", b"15,500")
    frames = [b"\r\x1b[2K\x1b[1A\x1b[2K" + frame.replace(b"\r\n", b"\n") for frame in (FRAME, later, FRAME)]
    write = f"import os, time\nfor frame in {frames}:\n    os.write(1, frame)\ntime.sleep(60)\n"
    programs(monkeypatch, tmp_path, write)
    assert terminal.panel(15_000).plain.startswith("training  15,500 of 30,000 steps  379 steps/s\nlast evaluation")


@pytest.mark.parametrize(("code", "printed"), [("print('broken')", "broken"), ("", "")])
def test_a_training_that_ends_too_early(script, monkeypatch, tmp_path, code, printed):
    programs(monkeypatch, tmp_path, code)
    complaint = f"terminal: the training ended before step 15,000: {printed}".rstrip()
    assert script(terminal) == (2, "", f"{complaint}\n")


def test_no_command_to_draw(script, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = script(terminal)
    assert (code, err) == (
        2,
        "terminal: dpg-train: not found; activate the environment that dpg-cli is installed in\n",
    )


# --- tutorial.py ---


def test_a_tutorial_that_is_terminated_leaves_nothing_running(monkeypatch, tmp_path):
    def terminated(*_):  # as the handler of a signal does, while output is read
        sys.exit(143)

    monkeypatch.setattr(tutorial, "filled", terminated)
    os.mkfifo(tmp_path / "held")
    reader = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    try:
        shown = ["started", tutorial.INTERRUPT]
        with pytest.raises(SystemExit):
            tutorial.execute("exec 9>held; echo started; sleep 300", shown, tmp_path, dict(os.environ))
        assert select.select([reader], [], [], 10)[0]  # all who could write are gone
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
