"""sweep.json: what it holds, how often it is written, and what of a stranger's is rejected."""

import json
import threading
import time

import pytest

from dpg_cli.errors import DiskError, UserError
from dpg_cli.storage import atomic
from dpg_cli.sweeps import record
from dpg_cli.sweeps.record import Job, SweepFile, load, store_configs, stored_configs


@pytest.fixture
def writes(monkeypatch):
    """How often sweep.json has been written."""
    found = []

    def write(disk, path, data):
        found.append(path.name)
        atomic.write_whole(disk, path, data)

    monkeypatch.setattr(record, "write_whole", write)
    return found


def a_sweep(folder, number=3):
    return SweepFile(folder, ["dpg-train", "-m"], "basic", [Job(n, [f"seed={n}"], str(n)) for n in range(number)])


def test_the_file_is_as_promised(tmp_path):
    file = a_sweep(tmp_path, 2)
    file.set(1, state="failed", reason="no disk")
    file.flush()
    assert json.loads((tmp_path / "sweep.json").read_text()) == {
        "version": 1,
        "command": ["dpg-train", "-m"],
        "launcher": "basic",
        "jobs": [
            {"number": 0, "overrides": ["seed=0"], "folder": "0", "state": "pending", "reason": None},
            {"number": 1, "overrides": ["seed=1"], "folder": "1", "state": "failed", "reason": "no disk"},
        ],
    }
    again = load(tmp_path)
    assert again.jobs == file.jobs
    assert (again.command, again.launcher) == (["dpg-train", "-m"], "basic")


def test_a_sweep_of_no_jobs_can_be_read(tmp_path):
    a_sweep(tmp_path, 0).flush()
    assert load(tmp_path).jobs == []


def test_changes_within_a_second_share_one_write(tmp_path, writes, monkeypatch):
    monkeypatch.setattr(record, "TOGETHER", 1000.0)
    file = a_sweep(tmp_path, 100)
    for number in range(100):
        file.set(number, state="running")
        file.set(number, state="done")
    assert writes == ["sweep.json"]
    file.flush()
    assert writes == ["sweep.json"] * 2
    assert {job.state for job in load(tmp_path).jobs} == {"done"}


def test_a_change_is_written_also_if_none_follows(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "TOGETHER", 0.05)
    file = a_sweep(tmp_path)
    file.set(0, state="running")
    file.set(1, state="running")
    for _ in range(200):
        if load(tmp_path).jobs[1].state == "running":
            break
        time.sleep(0.02)
    assert [job.state for job in load(tmp_path).jobs] == ["running", "running", "pending"]


def test_a_late_write_that_fails_is_reported_by_the_next(tmp_path, monkeypatch):
    started = []

    class Thread(threading.Thread):
        def start(self):
            started.append(self)
            super().start()

    monkeypatch.setattr(record.threading, "Thread", Thread)
    monkeypatch.setattr(record, "TOGETHER", 0.01)
    file = a_sweep(tmp_path / "sweep")
    for state in ("running", "done", "running"):
        file._written = time.monotonic()  # so that it waits
        file.set(0, state=state)
        while file._due.is_set():
            time.sleep(0.01)
    assert len(started) == 1
    assert started[0].is_alive()
    with pytest.raises(DiskError, match="sweep"):
        file.flush()
    (tmp_path / "sweep").mkdir()
    file.flush()
    assert load(tmp_path / "sweep")[0].state == "running"


def test_what_does_not_change_is_not_written(tmp_path, writes):
    file = a_sweep(tmp_path)
    file.set(0, state="pending", reason=None)
    assert writes == []


def test_jobs_are_added_where_the_sweeper_decides_as_it_goes(tmp_path):
    file = a_sweep(tmp_path, 0)
    file.set(5, overrides=["a=1"], folder="5", state="running")
    assert file[5] == Job(5, ["a=1"], "5", "running")


def test_a_disk_that_fails_is_named(tmp_path):
    file = a_sweep(tmp_path / "nowhere")
    with pytest.raises(DiskError, match="nowhere"):
        file.flush()


def test_configs(tmp_path):
    store_configs(tmp_path, [(0, {"seed": 0}), (7, {"seed": 7})])
    assert stored_configs(tmp_path) == {0: {"seed": 0}, 7: {"seed": 7}}
    (tmp_path / "configs.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="not the configs of a sweep"):
        stored_configs(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "../outside"},
        {"folder": "/etc"},
        {"folder": ""},
        {"folder": 3},
        {"state": "gone"},
        {"number": "0"},
        {"number": True},
        {"overrides": "seed=0"},
        {"overrides": [3]},
        {"reason": ["x"]},
        {"more": 1},
    ],
)
def test_a_strangers_job_is_rejected(tmp_path, change):
    a_sweep(tmp_path).flush()
    content = json.loads((tmp_path / "sweep.json").read_text())
    content["jobs"][0] |= change
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="not a sweep that this version can read"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"version": 2, "command": [], "launcher": "basic", "jobs": []}'])
def test_another_file_of_that_name_is_rejected(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match="not a sweep that this version can read"):
        load(tmp_path)


def test_ten_thousand_jobs_are_written_at_once_quickly(tmp_path):
    """The content is joined from lines that are made once. Time is not asserted: this is the size that was measured."""
    file = a_sweep(tmp_path, 10_000)
    file.flush()
    file.set(9_999, state="done")
    file.flush()
    assert len(load(tmp_path).jobs) == 10_000
