"""A run whose disk fills, fails or goes: one line, exit code 1, and it can be resumed once there is room."""

import errno
import json
import os
import shutil
import subprocess

import pytest
from commands import SMALL, TOY, lines, without_time

from dpg_cli import metrics
from dpg_cli.cli import disk, job
from dpg_cli.storage import checkpoint, run_dir
from dpg_cli.storage.atomic import Disk
from dpg_cli.storage.state_tree import pack

BIG = ["algo.hidden_sizes=[200,200]", "algo.batch_size=4", "total_steps=60", "random_steps=10", "eval.every=20"]
BIG += ["eval.episodes=2", "checkpoint.every=10", "checkpoint.keep=2", "log.every=20", "threads=1"]
WAYS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


@pytest.fixture
def mounted(tmp_path):
    """A tmpfs of some size on `tmp_path/disk`, which can be made larger or read-only."""

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")

    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        yield mount
    finally:
        subprocess.run(["umount", disk], capture_output=True, check=False)


def same(run, other):
    assert (run / "evaluations.jsonl").read_bytes() == (other / "evaluations.jsonl").read_bytes()
    assert without_time(lines(run / "metrics.jsonl")) == without_time(lines(other / "metrics.jsonl"))
    states = [pack(checkpoint.load(folder, 60).state) for folder in (run, other)]
    for tree, _ in states:
        del tree["files"]
    assert states[0][0] == states[1][0]
    assert all((states[0][1][name] == tensor).all() for name, tensor in states[1][1].items())


def leftovers(run):
    return [path for path in run.rglob(".*") if path.name not in (".hydra", ".lock")]


def failed(result, *texts):
    code, _, err = result
    assert code == 1, err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for text in texts:
        assert text in err
    return err


def test_a_tmpfs_that_fills(train, tmp_path, mounted):
    """20 MB are too few for what the run keeps, 40 are enough."""
    mounted("size=20m")
    assert train(TOY, *BIG, "hydra.run.dir=whole")[0] == 0
    ballast = tmp_path / "disk" / "ballast"
    ballast.write_bytes(bytes(14 * 2**20))
    failed(
        train(TOY, *BIG, "hydra.run.dir=disk/run"),
        "No space left on device",
        "bytes are free",
        "the previous one is intact",
    )
    run = tmp_path / "disk" / "run"
    assert leftovers(run) == []
    good, bad = checkpoint.valid_steps(run)
    assert good
    assert not bad
    subprocess.run(["mount", "-o", "remount,size=40m", tmp_path / "disk"], check=True)
    code, out, err = train("resume=disk/run", "trust=true")
    assert (code, err) == (0, "")
    assert f"resuming at step {good[-1]}" in out
    same(run, tmp_path / "whole")
    assert leftovers(run) == []


@pytest.mark.parametrize("room", range(0, 96, 8))
def test_a_disk_that_is_full_from_the_start(train, tmp_path, mounted, monkeypatch, room):
    """Wherever in the start-up the room ends, as if the room for the replay had been there."""
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 10**9)
    mounted("size=1m")
    ballast = tmp_path / "disk" / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(tmp_path / "disk").free - room * 1024))
    failed(train(TOY, *BIG, "hydra.run.dir=disk/run"), "disk", "No space left on device")
    run = tmp_path / "disk" / "run"
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=40m", tmp_path / "disk"], check=True)
    if run.exists():
        assert train("resume=disk/run", "trust=true")[0] == 0
        assert checkpoint.valid_steps(run)[0][-1] == 60
        assert leftovers(run) == []
    else:
        assert train(TOY, *BIG, "hydra.run.dir=disk/run")[0] == 0


class FullStream:
    """A stream that takes no more."""

    def __init__(self, file, error):
        self._file, self._error = file, error

    def write(self, data):
        raise OSError(self._error, os.strerror(self._error))

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("error", WAYS, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("file", ["metrics.jsonl", "evaluations.jsonl", "events.out.tfevents", "run.json", "train.log"])
def test_a_file_that_takes_no_more_is_named(train, trained, tmp_path, monkeypatch, file, error):
    whole = trained(TOY, *SMALL)
    with monkeypatch.context() as patch:
        break_writes(patch, file, error)
        result = train(TOY, *SMALL, "hydra.run.dir=run")
    if file == "train.log":  # whatever there is to log, a run does not end for it
        assert (result[0], result[2]) == (0, "")
        return
    failed(result, file, os.strerror(error), "bytes are free")
    assert leftovers(tmp_path / "run") == []
    assert train("resume=run", "trust=true")[0] == 0
    same(tmp_path / "run", whole)


def break_writes(patch, file, error):
    """From step 40 on."""

    def from_then_on(change):
        scalars = metrics.Recorder.scalars

        def changed(self, step, values):
            if step >= 40:
                change(self)
            scalars(self, step, values)

        patch.setattr(metrics.Recorder, "scalars", changed)

    if file == "metrics.jsonl":
        from_then_on(lambda self: setattr(self, "_metrics", FullStream(self._metrics, error)))
    elif file == "evaluations.jsonl":
        from_then_on(lambda self: setattr(self, "_evaluations", FullStream(self._evaluations, error)))
    elif file.startswith("events"):
        from_then_on(lambda self: setattr(self._events._records, "_writer", FullStream(self._events.file, error)))
    elif file == "run.json":

        class Full(Disk):
            def write(self, path, data):
                if "run.json" in path.name and b'"last_step": 40' in data:
                    path.write_bytes(data[:10])
                    raise OSError(error, os.strerror(error), str(path))
                super().write(path, data)

        patch.setattr(run_dir, "Disk", Full)
    else:
        build = job.build

        def noisy(*arguments, **stepping):
            import logging

            for handler in logging.root.handlers:
                handler.stream = FullStream(handler.stream, error)
            logging.getLogger("dpg_cli").warning("something")
            return build(*arguments, **stepping)

        patch.setattr(job, "build", noisy)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=lambda number: errno.errorcode[number])
def test_a_folder_that_cannot_be_claimed_or_described(train, tmp_path, monkeypatch, error):
    class Full(Disk):
        def write(self, path, data):
            raise OSError(error, os.strerror(error), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("dpg_cli.storage.atomic.Disk", Full)
        failed(train(TOY, *SMALL, "hydra.run.dir=run"), "config.yaml", os.strerror(error))
    assert not (tmp_path / "run").exists()

    def fail(*_, **__):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.mkdir", fail)
        with pytest.raises(run_dir.DiskError, match=os.strerror(error)):
            run_dir.claim(tmp_path / "run", "hydra.run.dir")


def test_a_run_folder_that_is_removed_while_it_trains(train, tmp_path, monkeypatch):
    evaluated = job.Watcher.evaluated

    def removing(self, step, evaluations):
        if step == 20:
            shutil.rmtree(tmp_path / "run")
        evaluated(self, step, evaluations)

    monkeypatch.setattr(job.Watcher, "evaluated", removing)
    failed(train(TOY, *SMALL, "hydra.run.dir=run"), "No such file or directory", "the run folder is gone")
    assert not (tmp_path / "run").exists()


def test_a_read_only_disk(train, tmp_path, mounted):
    mounted("size=40m")
    assert train(TOY, *SMALL, "hydra.run.dir=disk/run")[0] == 0
    subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
    resume, start = ["resume=disk/run", "trust=true", "total_steps=80"], [TOY, *SMALL, "hydra.run.dir=disk/other"]
    for arguments, expected in ((resume, 1), (start, 2)):  # for a new run another folder would do
        code, _, err = train(*arguments)
        assert code == expected
        assert err.count("\n") == 1
        assert "disk" in err
        assert "cannot be written: Read-only file system" in err


# --- cluster jobs that are begun again ---

OWN = {"SLURM_JOB_ID": "123", "SLURM_ARRAY_JOB_ID": "120", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.fixture
def unfinished(train, tmp_path, monkeypatch):
    """A run that job 123 has left at step 30."""
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    code, _, _ = train(TOY, "env.kwargs.bad_step=400", *SMALL, "hydra.run.dir=whole")
    assert code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000000060")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["slurm"] == {"job_id": "123", "array_job_id": "120", "array_task_id": "3"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"status": "running"}))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    return [TOY, "env.kwargs.bad_step=400", *SMALL, "hydra.run.dir=run"]


def test_a_requeued_job_goes_on_with_its_own_run(train, unfinished, tmp_path):
    code, out, err = train(*unfinished)
    assert (code, err) == (0, "")
    assert "requeued job 123: resuming its own run in run" in out
    assert "resuming at step 30" in out
    same(tmp_path / "run", tmp_path / "whole")
    code, _, err = train(*unfinished)  # it is done now
    assert code == 2
    assert "already exists" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_JOB_ID": "124"}, "already exists"),
        ({"SLURM_ARRAY_TASK_ID": "4"}, "already exists"),
        ({"SLURM_RESTART_COUNT": "0"}, "already exists"),
        ({"SLURM_RESTART_COUNT": "junk"}, "already exists"),
        ({"SLURM_JOB_ID": None}, "already exists"),
        ("seed=4", "seed=4 instead of 0"),
        ("algo.tau=0.5", "algo.tau=0.5 instead of 0.005"),
        ("total_steps=80", "total_steps=80 instead of 60"),
    ],
)
def test_what_is_not_its_own_is_refused(train, unfinished, monkeypatch, change, message):
    arguments = [change] if isinstance(change, str) else []
    for name, value in change.items() if isinstance(change, dict) else ():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    code, _, err = train(*unfinished, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
