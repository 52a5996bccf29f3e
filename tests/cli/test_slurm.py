"""hydra/launcher=slurm: jobs are submitted, followed by their folders, requeued with a checkpoint, and waited for."""

import importlib.util
import json
import os
import pickle
import signal
import sys
from pathlib import Path

import pytest
import toy_envs  # noqa: F401 - registers Toy/Reach-v0
from commands import SMALL

from dpg_cli.cli import signals, slurm, sweep_states
from dpg_cli.cli.signals import StopRequest
from dpg_cli.cli.sweep_options import launcher_of
from dpg_cli.cli.sweep_plan import Naming, Plan
from dpg_cli.errors import UserError
from dpg_cli.sweeps import slurm as queue_of
from dpg_cli.sweeps.record import Job, SweepFile
from dpg_cli.sweeps.slurm import Submitted

OWN = ["-m", "seed=3,4", *SMALL, "hydra.sweep.dir=sweep"]
JOBS = [*OWN, "env=Toy/Reach-v0"]


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """SLURM's commands on the path; every job starts at once."""
    commands, state = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    state.mkdir()
    source = Path(__file__).parents[1] / "fake_slurm.py"
    for name in ("sbatch", "srun", "squeue"):
        (commands / name).write_text(f"#!{sys.executable}\n{source.read_text()}")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(state))
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "ASK_EVERY", 0.5)
    return state


class FakeSweep:
    """A sweep without jobs of its own."""

    def __init__(self, folder):
        self.plan = Plan(folder, [["seed=0"], ["seed=1"]], planned=True)
        self.stop, self.logs, self.begun = StopRequest(), {}, False
        self.lines, self.failures = [], {}

    def number(self, launched):
        return launched

    def folder(self, number):
        return self.plan.folder / str(number)

    def failed(self, number, reason):
        self.failures[number] = reason

    def score(self, number):
        return 0.0

    def tell(self, line):
        self.lines.append(line)


def test_jobs_run_elsewhere_with_the_same_numbers_and_their_scores_arrive(train, fake_slurm, tmp_path):
    pytest.importorskip("submitit")
    shared = ["-m", "env=Pendulum-v1", "seed=3,4", *SMALL]
    assert train(*shared, "hydra.sweep.dir=plain")[0] == 0
    code, out, err = train(*shared, "hydra/launcher=slurm", "hydra.sweep.dir=sweep")
    assert code == 0, out + err
    assert "2 jobs were submitted to SLURM; squeue --jobs=1 shows them" in out
    for number in "01":
        name = "evaluations.jsonl"
        assert (tmp_path / "sweep" / number / name).read_bytes() == (tmp_path / "plain" / number / name).read_bytes()
    states = [entry["state"] for entry in json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]]
    assert states == ["done", "done"]
    assert "seeds  settings that differ  mean ± spread over seeds" in out
    assert "all 2 jobs are done" in train("resume=sweep")[1]


@pytest.mark.parametrize("missing", ["hydra_plugins.hydra_submitit_launcher", "submitit"])
def test_a_missing_extra_is_said_before_anything_is_written(train, fake_slurm, monkeypatch, tmp_path, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    code, _, err = train(*JOBS, "hydra/launcher=slurm")
    assert code == 2
    assert "needs hydra-submitit-launcher; pip install -e '.[slurm]'" in err
    assert not (tmp_path / "sweep").exists()


def test_a_machine_without_slurm_is_named(train, monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    code, _, err = train(*JOBS, "hydra/launcher=slurm")
    assert code == 2
    assert "this machine has no sbatch" in err
    assert not (tmp_path / "sweep").exists()


def test_a_submission_that_slurm_rejects_leaves_nothing(train, fake_slurm, tmp_path):
    pytest.importorskip("submitit")
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    code, _, err = train(*JOBS, "hydra/launcher=slurm")
    assert code == 2
    assert "invalid partition" in err
    assert not (tmp_path / "sweep").exists()


def test_jobs_that_slurm_accepts_are_waited_for_if_it_rejects_others(train, fake_slurm, monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm, "MOST", 1)
    path = tmp_path / "bin" / "sbatch"
    once = "if (ROOT / 'jobs').exists(): sys.exit('sbatch: error: too many jobs')\n"
    path.write_text(path.read_text().replace("globals()[", once + "globals()["))
    code, out, _ = train(*OWN, "env=Pendulum-v1", "hydra/launcher=slurm")
    assert code == 1
    assert "too many jobs" in out
    assert "1 job was submitted" in out
    states = [entry["state"] for entry in json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]]
    assert states == ["done", "pending"]


def test_resume_waits_for_queued_jobs_and_runs_the_others(train, monkeypatch, tmp_path):
    assert train(*JOBS)[0] == 0
    for number in "01":
        (tmp_path / "sweep" / number / "run.json").unlink()
    queue_of.store(tmp_path / "sweep", {0: Submitted("9_0", "0.err"), 1: Submitted("9_1", "1.err")})
    answers = [{"9_1"}, {"9_1"}]
    monkeypatch.setattr(queue_of, "queue", lambda user: answers.pop() if answers else set())
    monkeypatch.setattr(slurm, "ASK_EVERY", -1.0)
    monkeypatch.setattr(slurm, "LOOK_EVERY", 0.0)
    code, out, err = train("resume=sweep")
    assert code == 1
    assert "waiting for 1 job that is in SLURM's queue" in out
    assert "[1/2] job 0 " in out
    assert "job 1 failed: SLURM job 9_1 was cancelled, or never started" in err
    states = [entry["state"] for entry in json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]]
    assert states == ["done", "failed"]


def test_resume_needs_an_answer_of_slurm_if_jobs_were_submitted(tmp_path, monkeypatch):
    assert queue_of.still_queued(tmp_path) == {}
    queue_of.store(tmp_path, {0: Submitted("9", "0.err")})
    monkeypatch.setattr(queue_of, "queue", lambda user: None)
    with pytest.raises(UserError, match="does not answer"):
        queue_of.still_queued(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"jobs": [1]}', '{"jobs": {"x": {}}}', '{"jobs": {"0": "9"}}'])
def test_damaged_records_of_submitted_jobs_are_ignored(tmp_path, content):
    (tmp_path / "slurm.json").write_text(content)
    assert queue_of.stored(tmp_path) == {}


def test_a_job_that_left_the_queue_without_training_has_failed_with_its_last_words(tmp_path, monkeypatch):
    answers = [None, {"7_0"}, set(), set()]  # no answer; running; gone, gone
    monkeypatch.setattr(queue_of, "queue", lambda user: answers.pop(0))
    monkeypatch.setattr(slurm, "ASK_EVERY", -1.0)
    monkeypatch.setattr(slurm, "LOOK_EVERY", 0.0)
    (tmp_path / "0.err").write_text("Traceback\nModuleNotFoundError: No module named 'torch'\n")
    sweep = FakeSweep(tmp_path)
    slurm.wait(sweep, {0: Submitted("7_0", "0.err")})
    assert not answers
    assert "ended before the training began: ModuleNotFoundError: No module named 'torch'" in sweep.failures[0]


def test_a_signal_stops_the_waiting_and_says_what_continues(tmp_path, monkeypatch):
    sweep = FakeSweep(tmp_path)
    sweep.stop.signal = signal.SIGINT
    with pytest.raises(SystemExit) as ended:
        slurm.wait(sweep, {0: Submitted("7_0", "0.err"), 1: Submitted("7_1", "1.err")})
    assert ended.value.code == 130
    assert "  cancel them   scancel 7" in sweep.lines


@pytest.fixture
def in_a_slurm_job(monkeypatch):
    """As submitit starts it: a handler for SIGUSR2 that requeues the job."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr(signals, "_outlasts", False)
    calls = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    yield calls
    signal.signal(signal.SIGUSR2, before)


def test_a_time_limit_stops_a_training_first_and_requeues_the_job_then(in_a_slurm_job, monkeypatch):
    with slurm.requeued() as requeue:
        with StopRequest() as stop:
            assert not stop()
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop()
            monkeypatch.setattr(signals, "GRACE", -1.0)
            os.kill(os.getpid(), signal.SIGTERM)  # SLURM repeats its signals: no forced stop
            assert in_a_slurm_job == []
        requeue()
    assert in_a_slurm_job == [signal.SIGUSR2]


def test_a_time_limit_before_the_training_requeues_the_job_at_once(in_a_slurm_job):
    with slurm.requeued() as requeue:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert in_a_slurm_job == [signal.SIGUSR2]
        requeue()
    assert in_a_slurm_job == [signal.SIGUSR2]


def test_a_job_without_a_signal_is_not_requeued(in_a_slurm_job):
    with slurm.requeued() as requeue:
        requeue()
    assert in_a_slurm_job == []


@pytest.fixture
def follower(tmp_path):
    """A follower of job 0, its lines, and a function that writes the job's run.json."""
    lines = []
    file = SweepFile(tmp_path, [], "slurm", [Job(0, ["seed=0"], "0"), Job(1, ["seed=1"], "1")])
    own = sweep_states.Follower(file, Naming(tmp_path, 2, set()), {0: Path("0.err")}, lines.append)

    def write(**content):
        (tmp_path / "0").mkdir(exist_ok=True)
        path = tmp_path / "0" / "run.json"
        path.write_text(json.dumps(content))
        os.utime(path, ns=(write.time, write.time))
        write.time += 1
        own.look()
        return file[0].state

    write.time = 1
    return write, lines


def test_jobs_elsewhere_are_followed_by_their_folders(follower):
    write, lines = follower
    assert write(status="running") == "running"
    assert write(status="running", last_step=5) == "running"
    assert write(status="interrupted", last_step=7) == "pending"
    assert write(status="running", resumed=[{"step": 7}]) == "running"
    assert write(status="failed", error="reward is nan", resumed=[{"step": 7}]) == "failed"
    assert write(status="running", resumed=[{"step": 7}, {"step": 7000}]) == "running"
    assert write(status="done", resumed=[{"step": 7}, {"step": 7000}]) == "done"
    label = "[1/2] job 0"
    assert lines == [
        f"{label} started: seed=0",
        f"{label} stopped at step 7: seed=0",
        f"{label} resumed at step 7: seed=0",
        f"{label} failed: reward is nan (log: 0.err)",
        f"{label} resumed at step 7,000: seed=0",
        f"{label} done: seed=0",
    ]


def test_what_a_job_is_told_does_not_grow_with_the_sweep(tmp_path):
    jobs = [["algo=td3", f"seed={seed}"] for seed in range(1000)]
    assert len(pickle.dumps(Plan(tmp_path, jobs, planned=True).naming)) < 1000


def test_options_of_the_launcher_are_taken_from_the_sweep_but_no_commands(capsys, tmp_path):
    command = ["-m", "hydra.launcher.partition=long", "hydra.launcher.setup=[evil]", "seed=0"]
    file = SweepFile(tmp_path, command, "slurm", [])
    assert launcher_of(file) == ["hydra/launcher=slurm", "hydra.launcher.partition='long'"]
    assert "hydra.launcher.setup=[evil] is not taken" in capsys.readouterr().out
