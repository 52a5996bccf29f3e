"""It learns: `scripts/test -m slow`, some ten minutes."""

import json

import numpy as np
import pytest

from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.cli import train as train_command


def mean_of_last(run, count):
    records = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    return np.mean([np.mean(record["returns"]) for record in records[-count:]])


def train(monkeypatch, tmp_path, *arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dpg-train", *arguments, "hydra.run.dir=run"])
    with pytest.raises(SystemExit) as ended:
        train_command.main()
    assert not ended.value.code
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_swings_the_pendulum_up(monkeypatch, tmp_path, algo):
    run = train(monkeypatch, tmp_path, f"algo={algo}", "env=Pendulum-v1", "total_steps=15_000", "eval.every=1_000")
    assert mean_of_last(run, 3) >= -200


@pytest.mark.slow
def test_td3_balances_the_double_pendulum(monkeypatch, tmp_path):
    run = train(monkeypatch, tmp_path, "experiment=td3_paper", "env=InvertedDoublePendulum-v4", "eval.every=2_500")
    records = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert max(np.mean(record["returns"]) for record in records) >= 9000
