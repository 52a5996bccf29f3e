"""dpg-report as a command: what it writes, prints and rejects."""

import csv
import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_runs import make_run

pytest.importorskip("matplotlib")

from dpg_cli.cli import report

LEARNED = [0, *range(100, 1300, 100)]


@pytest.fixture
def dpg_report(command, tmp_path, monkeypatch):
    """Run the command in an empty folder beside the runs: exit code, what it printed, what it complained."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return lambda *arguments: command(report.main, *map(str, arguments))


@pytest.fixture
def runs(tmp_path):
    """Two environments, two algorithms, five seeds each."""
    folder = tmp_path / "runs"
    for env in ("HalfCheetah-v4", "Hopper-v4"):
        for seed in range(5):
            make_run(folder / env / f"td3_{seed}", [value + seed for value in LEARNED], env=env, seed=seed)
            worse = [value / 2 + seed for value in LEARNED]
            make_run(folder / env / f"ddpg_{seed}", worse, env=env, seed=seed, algo="ddpg")
    return folder


class Balanced(HTMLParser):
    """Every element that begins also ends, and nothing is loaded from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links = [], set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert "src" not in attributes
        if "href" in attributes and tag == "a":
            self.links.append(attributes["href"])
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_writes_the_report_and_prints_the_table(dpg_report, runs, tmp_path):
    code, out, err = dpg_report(runs)
    assert (code, err) == (0, "")
    assert "HalfCheetah-v4  ddpg" in out
    assert out.endswith("report: report/report.html\n")
    folder = tmp_path / "here" / "report"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["report.html", "summary.csv", "summary.md", "summary.tex", "runs.csv", "differences.csv", "figures"]
    )
    names = ("HalfCheetah-v4", "Hopper-v4", "curves", "profile")
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("svg", "pdf", "png")
    )
    rows = list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))
    assert [(row["env"], row["group"], row["seeds"]) for row in rows] == [
        (env, algo, "5") for env in ("HalfCheetah-v4", "Hopper-v4") for algo in ("ddpg", "td3")
    ]
    assert len(list(csv.DictReader((folder / "runs.csv").read_text().splitlines()))) == 20
    assert list(tmp_path.glob("here/.*")) == []


def test_the_page_is_whole_and_loads_nothing(dpg_report, runs, tmp_path):
    assert dpg_report(runs, "threshold=900", "x=hours")[0] == 0
    text = (tmp_path / "here" / "report" / "report.html").read_text()
    page = Balanced(text)
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    assert not re.search(r"https?://(?!www\.w3\.org|arxiv)", text)
    for part in ("Differences", "First evaluation at 900.0 or above", "Probability of improvement", "Definitions"):
        assert part in text
    assert text.count("currentColor") > 10
    assert "td3" in text
    assert f"dpg-report {runs} threshold=900 x=hours" in text


@pytest.mark.parametrize(
    ("online", "label"), [(True, "environment steps; of offline groups, updates"), (False, "updates")]
)
def test_offline_runs_are_labelled_everywhere(dpg_report, tmp_path, online, label):
    data = {"sources": ["/data at step 9"], "transitions": 9000, "episodes": 9, "return_mean": 1.5, "return_std": 0.25}
    make_run(tmp_path / "runs" / "offline", [0, 1, 2], dataset="/data", record={"dataset": data})
    if online:
        make_run(tmp_path / "runs" / "online", [0, 1, 2])
    code, out, _ = dpg_report(tmp_path / "runs")
    assert code == 0
    assert "td3 (offline)" in out
    assert "2,000 updates" in out
    text = (tmp_path / "here" / "report" / "report.html").read_text()
    assert label in text
    assert "Data sets of offline runs" in text
    assert "9,000 transitions, 9 complete episodes with return 1.5 ± 0.2, from /data at step 9" in text


def test_the_same_runs_give_the_same_tables_and_figures(dpg_report, runs, tmp_path):
    for out in ("a", "b"):
        assert dpg_report(runs, f"out={out}")[0] == 0
    first, second = (tmp_path / "here" / name for name in ("a", "b"))
    for path in first.rglob("*.*"):
        if path.name != "report.html":  # has the time and the command
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path


def test_folders_in_every_form(dpg_report, runs, tmp_path):
    odd = runs.with_name("a=b")
    shutil.copytree(runs / "Hopper-v4", odd)
    for number, arguments in enumerate(([odd], [f"runs={odd}"], [odd, f"runs={runs},{odd}"])):
        assert dpg_report(*arguments, f"out={number}")[0] == 0
    counts = [len((tmp_path / "here" / str(number) / "runs.csv").read_text().splitlines()) - 1 for number in range(3)]
    assert counts == [10, 10, 30]


def test_an_earlier_report_is_replaced_and_nothing_else(dpg_report, runs, tmp_path):
    here = tmp_path / "here"
    assert dpg_report(runs)[0] == 0
    assert dpg_report(runs / "Hopper-v4")[0] == 0
    assert not (here / "report" / "figures" / "HalfCheetah-v4.svg").exists()
    (here / "report" / "notes.txt").write_text("mine")
    code, _, err = dpg_report(runs)
    assert code == 2
    assert err == "dpg-report: out=report: also holds notes.txt, which is no part of a report; choose another folder\n"
    (here / "report" / "notes.txt").unlink()
    for name in ("photo.png", "curves.svg.png"):
        (here / "report" / "figures" / name).write_text("mine")
        code, _, err = dpg_report(runs)
        assert (code, "also holds figures/" in err) == (2, True)
        (here / "report" / "figures" / name).unlink()
    assert dpg_report(runs)[0] == 0
    (here / "other").mkdir()
    (here / "file").touch()
    (here / "link").symlink_to("other")
    for name, complaint in (
        ("other", "no earlier report"),
        ("file", "not a folder"),
        ("link", "not a folder"),
        (".", "is the working directory"),
    ):
        code, _, err = dpg_report(runs, f"out={name}")
        assert code == 2
        assert complaint in err
    assert list((here / "other").iterdir()) == []
    assert "is the working directory or above it" in dpg_report(runs, "out=.")[2]


def test_a_report_that_cannot_be_finished_leaves_the_earlier_one(dpg_report, runs, tmp_path, monkeypatch):
    assert dpg_report(runs)[0] == 0
    page = tmp_path / "here" / "report" / "report.html"
    before = page.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    def rename(path, target):
        return full() if path.name == "new" else rename_it(path, target)

    rename_it = Path.rename
    for name, broken in (("dpg_cli.report.tables.summary_tex", full), ("pathlib.Path.rename", rename)):
        with monkeypatch.context() as patched:
            patched.setattr(name, broken)
            code, _, err = dpg_report(runs)
        assert code == 1
        assert "No space left on device" in err
        assert page.read_bytes() == before
        assert list(tmp_path.glob("here/.*")) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("out=x", "runs: missing; dpg-report DIR [DIR …]"),
        ("nowhere", "nowhere: no such folder"),
        ("RUNS runs=RUNS,", "has an empty item"),
        ("RUNS by=", "by=: has an empty item"),
        ("RUNS by=algo.name,algo", "by=algo.name,algo: has an item twice"),
        ("RUNS by=algo.nam", "by=algo.nam: no run has this setting; did you mean algo.name?"),
        ("RUNS x=days", "x=days: should be steps or hours"),
        ("RUNS min_seeds=1", "min_seeds=1: should be a whole number, at least 2"),
        ("RUNS threshold=high", "threshold=high: should be a number"),
        ("RUNS threshold=nan", "threshold=nan: should be a number"),
        ("RUNS ou=x", "ou: unknown key; did you mean out?"),
        ("RUNS out=x out=y", "out: given twice"),
        ("RUNS -q", "-q: not of the form key=value"),
        (".", ".: no runs; a run folder has config.yaml and evaluations.jsonl"),
    ],
)
def test_mistakes(dpg_report, runs, tmp_path, arguments, complaint):
    code, out, err = dpg_report(*arguments.replace("RUNS", str(runs)).split())
    assert (code, out) == (2, "")
    assert err.startswith("dpg-report: ")
    assert complaint in err
    assert len(err.splitlines()) == 1
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_begins_with_examples(dpg_report, flag):
    code, out, err = dpg_report(flag)
    assert (code, err) == (0, "")
    assert out.splitlines()[2] == "Examples"


def test_a_missing_extra_is_named(dpg_report, runs, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in report.MODULES else find(name))
    code, _, err = dpg_report(runs)
    assert code == 2
    assert "needs matplotlib, jinja2" in err
    assert "report" in err


def test_names_from_a_stranger_are_text_everywhere(dpg_report, tmp_path):
    hostile = "<script>alert(1)</script>$x$\\input{a}|\x1b]0;owned\x07\u202e{{ 7777*7 }}"
    folder = tmp_path / "runs"
    make_run(folder / "a", LEARNED, algo=hostile, env=f"../../{hostile}", error=hostile, status="failed")
    make_run(
        folder / "b", LEARNED, algo="td3", env=f"../../{hostile}", record={"command": [hostile], "machine": hostile}
    )
    code, out, err = dpg_report(folder)
    assert (code, err) == (0, "")
    report_folder = tmp_path / "here" / "report"
    page = (report_folder / "report.html").read_text()
    Balanced(page)
    assert "<script>alert" not in page
    assert "54439" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).partition("<h2")[0]
    assert not {"\x1b", "\x07"} & set(page + out)
    assert "\u202e" not in out
    assert {path.parent.name for path in report_folder.rglob("*.svg")} == {"figures"}
    assert "<script>" not in (report_folder / "summary.md").read_text()
    assert "\\input{" not in (report_folder / "summary.tex").read_text()


def test_unreadable_runs_are_listed(dpg_report, runs, tmp_path):
    broken = make_run(runs / "broken", [0, 1])
    (broken / "config.yaml").write_text("x: !!python/object/apply:os.mkdir ['sentinel']")
    code, out, _ = dpg_report(runs)
    assert code == 0
    assert f"not in the numbers: {broken / 'config.yaml'}" in out
    assert str(broken) in (tmp_path / "here" / "report" / "report.html").read_text()
    assert not (tmp_path / "here" / "sentinel").exists()


def test_many_groups_fit_the_page_and_the_figure(dpg_report, tmp_path):
    for number in range(24):
        make_run(tmp_path / "runs" / str(number), [value + number for value in LEARNED], algo__tau=number)
    code, _, _ = dpg_report(tmp_path / "runs")
    assert code == 0
    page = (tmp_path / "here" / "report" / "report.html").read_text()
    assert "other groups" in page
    assert page.count("compared with") == 1


def test_a_training_prints_the_line_that_makes_its_report(train, tmp_path, monkeypatch):
    from commands import SMALL, TOY

    monkeypatch.chdir(tmp_path)
    code, out, _ = train(TOY, *SMALL, "num_seeds=2", "hydra.run.dir=two")
    assert code == 0
    assert "  compare      dpg-report two\n" in out
    code, out, _ = train("-m", TOY, *SMALL, "seed=0,1", "hydra.sweep.dir=sweep")
    assert code == 0
    assert "  compare      dpg-report sweep\n" in out
    code, out, _ = train(TOY, *SMALL, "hydra.run.dir=one")
    assert "dpg-report" not in out


def test_our_own_runs_make_a_report(train, dpg_report, tmp_path):
    from commands import SMALL, TOY

    assert train(TOY, *SMALL, "num_seeds=2", f"hydra.run.dir={tmp_path / 'two'}")[0] == 0
    code, _, _ = dpg_report(tmp_path / "two")
    assert code == 0
    page = (tmp_path / "here" / "report" / "report.html").read_text()
    record = json.loads((tmp_path / "two" / "seed_0" / "run.json").read_text())
    assert record["versions"]["torch"] in page
