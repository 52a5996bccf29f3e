"""A checkpoint appears whole or not at all, wherever its writing ends."""

import errno
import os

import numpy as np
import pytest
import torch
from faulty_disk import FULL, CountingDisk, Crash, PowerlessDisk

from dpg_cli.errors import DiskError
from dpg_cli.storage import checkpoint
from dpg_cli.storage.atomic import Disk
from dpg_cli.storage.untrusted import check_kinds

ROWS = np.zeros(5, np.dtype([("obs", np.float32, (2,)), ("reward", np.float32)]))
POLICY = {"weight": torch.arange(6.0)}


def state(step):
    return {"replay": {"added": step, "size": step}, "tensor": torch.full((3,), float(step))}


def write(run, step, disk, start=None):
    writer = checkpoint.Checkpoints(run, {}, 2, disk, start)
    writer.save(step, POLICY, state(step), ROWS, oldest=0)
    return writer


@pytest.fixture
def run(tmp_path):
    """A run folder with the checkpoint of step 5."""
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder, 5, Disk())
    return folder


def calls(run, **options):
    disk = CountingDisk(**options)
    write(run, 10, disk, checkpoint.load(run, 5))
    return disk.calls


def count(tmp_path):
    """How many calls one checkpoint takes."""
    folder = tmp_path / "counted"
    folder.mkdir()
    write(folder, 5, Disk())
    return calls(folder)


def sound(run):
    """The newest checkpoint can be resumed from, nothing else is left, and the next one can be written."""
    check_kinds(run)  # what a crash leaves is not taken for an attack
    steps, _ = checkpoint.valid_steps(run)
    newest = checkpoint.load(run, steps[-1])
    assert torch.equal(newest.state["tensor"], torch.full((3,), float(newest.step)))
    assert len(newest.rows) == newest.step
    checkpoint.rewind(run, newest, Disk())
    assert list(run.rglob(".*")) == []
    assert checkpoint.find(run, "latest").name == f"step_{newest.step:09d}"
    if newest.step == 5:
        write(run, 10, Disk(), newest)
        assert checkpoint.valid_steps(run) == ([5, 10], {})
    return newest.step


def test_the_real_disk_syncs_what_it_writes(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    Disk().write(tmp_path / "file", b"data")
    Disk().sync_folder(tmp_path)
    assert synced == [str(tmp_path / "file"), str(tmp_path)]


def test_a_process_killed_at_any_call(tmp_path, run):
    number = count(tmp_path)
    assert number > 10
    reached = set()
    for at in range(number):
        folder = tmp_path / f"at_{at}"
        folder.mkdir()
        write(folder, 5, Disk())
        with pytest.raises(Crash):
            write(folder, 10, CountingDisk(at, half=True), checkpoint.load(folder, 5))
        reached.add(sound(folder))
    assert reached == {5, 10}


def test_the_power_fails_at_any_call(tmp_path):
    """Files and names that were not synced are lost."""
    number = count(tmp_path)
    reached = set()
    for at in range(number + 1):
        folder = tmp_path / f"at_{at}"
        folder.mkdir()
        write(folder, 5, Disk())
        disk = PowerlessDisk(folder, at)
        if at < number:
            with pytest.raises(Crash):
                write(folder, 10, disk, checkpoint.load(folder, 5))
        else:
            write(folder, 10, disk, checkpoint.load(folder, 5))
        disk.fail()
        step = sound(folder)
        assert step == 10 or at < number  # what was reported as written is there
        reached.add(step)
    assert reached == {5, 10}


@pytest.mark.parametrize("forgotten", ["synced_files", "synced_folders"])
def test_without_syncing_it_is_lost(tmp_path, run, forgotten):
    """The negative control."""
    disk = PowerlessDisk(run, **{forgotten: False})
    write(run, 10, disk, checkpoint.load(run, 5))
    disk.fail()
    assert 10 not in checkpoint.valid_steps(run)[0]


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("error", FULL, ids=lambda number: errno.errorcode[number])
def test_a_disk_that_refuses_at_any_call(tmp_path, error, lasting):
    count(tmp_path)
    disk = CountingDisk(error=error)
    write(tmp_path / "counted", 15, disk, checkpoint.load(tmp_path / "counted", 10))
    failing = disk.calls  # removing never fails
    for at in range(failing + 1):
        folder = tmp_path / f"at_{at}"
        folder.mkdir()
        write(folder, 5, Disk())
        disk = CountingDisk(at, error, lasting)
        start = checkpoint.load(folder, 5)
        if at < failing:
            with pytest.raises(DiskError, match=r"at_.*bytes are free"):
                write(folder, 10, disk, start)
            assert list(folder.rglob(".*")) == []
        else:
            write(folder, 10, disk, start)
        sound(folder)
