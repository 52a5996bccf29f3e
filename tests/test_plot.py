"""scripts/plot.py: what it draws and what it rejects."""

import json

import plot
import pytest

from dpg_cli import config
from dpg_cli.errors import UserError

pytest.importorskip("matplotlib")
config.register()


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
        ("published=Pendulum-v1:x", "published=Pendulum-v1:x: x is not a number"),
        ("labels=A,B", "labels=A,B: there are 1 curves"),
    ],
)
def test_it_rejects_mistakes(monkeypatch, runs, argument, complaint):
    monkeypatch.setattr("sys.argv", ["plot.py", f"runs={runs}", f"out={runs / 'curves.svg'}", argument])
    with pytest.raises(UserError, match=complaint):
        plot.main()
