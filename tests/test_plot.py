"""scripts/plot.py: what it draws and what it rejects."""

import json

import plot
import pytest

from dpg_cli import config
from dpg_cli.errors import UserError

pytest.importorskip("matplotlib")


@pytest.fixture
def runs(tmp_path):
    """Two seeds with three evaluations each."""
    for seed in (0, 1):
        run = tmp_path / f"seed_{seed}"
        run.mkdir()
        checked = config.validate(config.compose(["env=Pendulum-v1", f"seed={seed}"]))
        (run / "config.yaml").write_text(config.dump(checked), encoding="utf-8")
        evaluations = [{"step": step, "returns": [step - seed], "lengths": [200]} for step in (0, 10, 20)]
        (run / "evaluations.jsonl").write_text("".join(json.dumps(e) + "\n" for e in evaluations), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("show", ["interval", "seeds"])
def test_it_draws_and_prints_a_row_for_every_seed(monkeypatch, capsys, runs, show):
    out = runs / "curves.svg"
    arguments = [f"runs={runs}", f"out={out}", f"show={show}", "labels=A", "published=Pendulum-v1:-150"]
    monkeypatch.setattr("sys.argv", ["plot.py", *arguments])
    plot.main()
    printed = capsys.readouterr().out
    assert "Pendulum-v1, A, 20 steps: mean 19.5 ± 0.5 [19.0, 20.0]" in printed
    assert printed.count("seed_") == 2
    assert out.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("show=both", "show=both: must be interval or seeds"),
        ("published=Hopper-v4:3", "published=Hopper-v4:3: Hopper-v4 is not among Pendulum-v1"),
        ("published=Pendulum-v1:x", "published=Pendulum-v1:x: x is not a finite number"),
        ("published=Pendulum-v1:nan", "published=Pendulum-v1:nan: nan is not a finite number"),
        ("published=Pendulum-v1", "published=Pendulum-v1: Pendulum-v1 is not of the form ENV_ID:RETURN"),
        ("labels=A,B", "labels=A,B: 2 labels for 1 curve"),
        ("labels= ", "labels= : has a blank name"),
        ("out=curves.foo", "out=curves.foo: must end in"),
    ],
)
def test_it_rejects_mistakes(monkeypatch, runs, argument, complaint):
    arguments = {"runs": str(runs), "out": str(runs / "curves.svg")} | dict([argument.split("=", 1)])
    monkeypatch.setattr("sys.argv", ["plot.py", *(f"{key}={value}" for key, value in arguments.items())])
    with pytest.raises(UserError, match=complaint):
        plot.main()


def write_steps(run, steps):
    records = [{"step": step, "returns": [float(step)], "lengths": [200]} for step in steps]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_only_steps_that_all_runs_have_are_averaged(capsys, runs):
    both = [runs / "seed_0", runs / "seed_1"]
    write_steps(both[0], [0, 10, 20, 30])
    write_steps(both[1], [0, 20, 40])
    steps, means = plot.returns(both)
    assert steps.tolist() == [0, 20]
    assert means.tolist() == [[0, 20], [0, 20]]
    expected = f"  {both[1]} has only 3 evaluations; steps that not all runs have are left out: 3 of 5\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(("steps", "complaint"), [([], "has no evaluations"), ([7], "shares no evaluation step")])
def test_runs_that_share_no_step_are_rejected(runs, steps, complaint):
    write_steps(runs / "seed_1", steps)
    with pytest.raises(UserError, match=rf"seed_1: {complaint}"):
        plot.returns([runs / "seed_0", runs / "seed_1"])


def test_a_run_that_is_named_twice_counts_once(runs):
    found = plot.curves([runs, runs / "seed_0", runs / "seed_1" / ".." / "seed_1"])
    assert [sorted(run.name for run in own) for own in found["Pendulum-v1"].values()] == [["seed_0", "seed_1"]]


@pytest.mark.parametrize("listed", ["{0},", ",{0}", "{0},{0}/nowhere"])
def test_every_item_of_runs_holds_a_run(monkeypatch, runs, listed):
    monkeypatch.chdir(runs)
    monkeypatch.setattr("sys.argv", ["plot.py", f"runs={listed.format(runs)}", "out=curves.svg"])
    with pytest.raises(UserError, match=r"^runs.*(has an empty item|no run folders in .*nowhere)"):
        plot.main()
