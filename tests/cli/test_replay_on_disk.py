"""The room that a replay takes on the disk: said at the start, and checked."""

import json

import numpy as np
import pytest
import torch
from commands import SMALL, TOY

from dpg_cli import config
from dpg_cli.cli import disk, memory
from dpg_cli.errors import UserError
from dpg_cli.storage.atomic import Disk


def checked(*overrides):
    return config.validate(config.compose(["env=HalfCheetah-v4", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "rows", "width"),
    [
        ([], 1_000_000, 4),
        (["total_steps=2_000"], 2_000, 4),
        (["total_steps=3e6"], 1_150_000, 4),
        (["total_steps=3e6", "checkpoint.keep=1", "checkpoint.every=1000"], 1_002_000, 4),
        (["num_seeds=3", "precision=float64"], 3_000_000, 8),
        (["share_next_obs=true", "precision=bf16"], 1_000_000, 4),
        (["checkpoint.replay=false"], 0, 4),
    ],
)
def test_bytes(overrides, rows, width):
    assert disk.replay_bytes(checked(*overrides), 17, 6) == rows * (2 * 17 + 6 + 2) * width


@pytest.mark.parametrize("keep", [1, 2])
def test_no_more_is_ever_stored(train, tmp_path, monkeypatch, keep):
    """Looked at whenever something is removed, which is when most is there."""
    most = 0

    def remove(self, path, remove=Disk.remove):
        nonlocal most
        most = max(most, sum(len(np.load(shard)) for shard in (tmp_path / "run/replay").glob("rows_*.npy")))
        remove(self, path)

    monkeypatch.setattr(Disk, "remove", remove)
    arguments = ["total_steps=100", "buffer_size=20", "checkpoint.every=7", f"checkpoint.keep={keep}"]
    assert train(TOY, *SMALL, *arguments, "hydra.run.dir=run")[0] == 0
    assert 20 < most <= 20 + (keep + 1) * 7


def test_it_is_said_if_it_is_much(train, monkeypatch):
    note = "note: the replay will take up to 0.0 MB on disk; checkpoint.replay=false keeps no replay, but "
    assert note not in train(TOY, *SMALL, "hydra.run.dir=a")[1]
    monkeypatch.setattr(disk, "NOTED", 100)
    assert note in train(TOY, *SMALL, "hydra.run.dir=b")[1]
    assert note not in train(TOY, *SMALL, "checkpoint.replay=false", "hydra.run.dir=c")[1]
    monkeypatch.undo()
    assert "up to 1.7 GB on disk" in disk.disk_note(checked("num_seeds=10"), 17, 6)
    assert disk.disk_note(checked("num_seeds=5"), 17, 6) is None


def test_a_run_that_the_disk_has_no_room_for_does_not_start(train, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    code, out, err = train(TOY, *SMALL, "hydra.run.dir=new/run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "checkpoint.replay=true: the replay takes up to 0.0 MB on disk, and 0.0 MB are free in" in err
    assert list(tmp_path.iterdir()) == []
    assert train(TOY, *SMALL, "checkpoint.replay=false", "hydra.run.dir=new/run")[0] == 0


def test_a_job_that_the_disk_has_no_room_for_fails_alone(train, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    code, _, err = train("-m", TOY, *SMALL, "total_steps=60,20", "hydra.sweep.dir=sweep")
    assert code == 1
    assert "job 0 failed: checkpoint.replay=true: the replay takes" in err
    assert json.loads((tmp_path / "sweep/1/run.json").read_text())["status"] == "done"


def test_what_a_resumed_run_has_stored_is_not_counted_twice(train, finished, monkeypatch):
    finished(TOY, *SMALL)  # 60 transitions of 28 bytes
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 35 * 28)
    assert train("resume=run", "total_steps=90", "trust=true")[0] == 0
    code, _, err = train("resume=run", "total_steps=900", "trust=true")
    assert code == 2
    assert "and already has 0.0 MB, and 0.0 MB are free" in err


def test_the_series_of_the_noise_are_counted(train, tmp_path, monkeypatch):
    pink = checked("noise=pink", "num_envs=1000", "total_steps=1e5", "checkpoint.keep=1")
    series = 8 * 1000 * 1000 * 6  # HalfCheetah's time limit is 1,000 steps
    assert memory.series_bytes(pink, 6) == series
    assert disk.noise_bytes(pink, 6) == 2 * series
    short = pink.model_copy(update={"env": pink.env.model_copy(update={"max_episode_steps": 10})})
    assert memory.series_bytes(short, 6) == series / 100
    assert memory.series_bytes(checked("num_envs=1000"), 6) == 0
    assert disk.disk_note(pink, 17, 6) is None
    many = checked("noise=pink", "num_envs=20_000", "total_steps=1e5")
    assert disk.disk_note(many, 17, 6) == "the checkpoints will take up to 2.9 GB on disk for the series of noise=pink"
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 10**9)
    with pytest.raises(UserError, match=r"noise=pink, num_envs=20000: the checkpoints take up to 2\.9 GB on disk for"):
        disk.check_disk(many, 17, 6, tmp_path)
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
    with pytest.raises(
        UserError, match=r"noise=pink, num_envs=20000: not enough memory for the noise: its series take"
    ):
        memory.check_memory(many, 17, 6, torch.device("cpu"))
    memory.check_memory(many.model_copy(update={"num_envs": 5000}), 17, 6, torch.device("cpu"))


def test_the_series_of_a_checkpoint_are_as_large_as_counted(train, tmp_path):
    limit = "env.max_episode_steps=500"
    for noise in ("gaussian", "pink"):
        given = [limit, "checkpoint.keep=1", "num_envs=2", f"noise={noise}", f"hydra.run.dir={noise}"]
        assert train(TOY, *SMALL, *given)[0] == 0
    plain, pink = (
        (tmp_path / noise / "checkpoints/step_000000060/state.safetensors") for noise in ("gaussian", "pink")
    )
    assert 0 <= pink.stat().st_size - plain.stat().st_size - 8 * 2 * 500 < 1000


def test_room_is_looked_for_where_the_folder_will_be(tmp_path):
    assert disk.free_bytes(tmp_path / "not" / "yet") > 0
    with pytest.raises(UserError, match=f"free in {tmp_path};"):
        disk.check_disk(checked("total_steps=9e8", "num_seeds=1000"), 17, 10**6, tmp_path / "no" / "yet")
