"""dpg-train resume=SWEEP_DIR: what is left of a sweep runs, exactly."""

import json
import shutil
import signal

import pytest
import toy_envs  # noqa: F401 - registers Toy/Reach-v0
import yaml
from commands import SMALL, lines
from oracle import differences

from dpg_cli.cli import job, sweep
from dpg_cli.cli.signals import StopRequest
from dpg_cli.storage import run_dir

TOY = "env=Toy/Reach-v0"  # without a module, so that nothing asks for trust
JOBS = ["-m", TOY, "algo=ddpg,td3", "seed=3,4", *SMALL, "hydra.sweep.dir=sweep"]


def states(folder):
    return [entry["state"] for entry in json.loads((folder / "sweep.json").read_text())["jobs"]]


def evaluations(folder):
    return [(folder / str(number) / "evaluations.jsonl").read_bytes() for number in range(4)]


@pytest.fixture
def stop_at(monkeypatch):
    """Stop a job of the next sweep by a signal, when it has asked so often; `stop_at(None)` lets all run."""

    def arrange(number, calls=15):
        jobs = []

        class Request(StopRequest):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                jobs.append(0)

            def __call__(self):
                jobs[-1] += 1
                if len(jobs) == number + 1 and jobs[-1] == calls:
                    self.signal = signal.SIGTERM
                return self.signal is not None

        monkeypatch.setattr(job, "StopRequest", StopRequest if number is None else Request)

    return arrange


@pytest.fixture
def undisturbed(train, tmp_path):
    assert train(*JOBS)[0] == 0
    (tmp_path / "sweep").rename(tmp_path / "undisturbed")
    return evaluations(tmp_path / "undisturbed")


def test_a_stopped_sweep_resumes_with_the_same_numbers(train, undisturbed, stop_at, tmp_path):
    stop_at(1)
    code, out, _ = train(*JOBS)
    assert code == 143
    assert "  resume       dpg-train resume=sweep\n" in out
    folder = tmp_path / "sweep"
    assert states(folder) == ["done", "pending", "pending", "pending"]
    before = (folder / "0" / "run.json").read_bytes()
    stop_at(None)
    code, out, err = train("resume=sweep")
    assert (code, err) == (0, "")
    assert "sweep: 1 of 4 jobs are done" in out
    assert "[2/4] job 1 resuming at step" in out
    assert "[3/4] job 2 algo=td3 seed=3: td3 on " in out
    assert states(folder) == ["done"] * 4
    assert evaluations(folder) == undisturbed
    assert (folder / "0" / "run.json").read_bytes() == before
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {
        f"algo={algo} seed={seed}" for algo in ("ddpg", "td3") for seed in (3, 4)
    }
    task = yaml.safe_load((folder / "3" / ".hydra" / "overrides.yaml").read_text())
    assert "algo=td3" in task
    assert not any("sweep_job" in text for text in task)


def test_a_finished_sweep_does_nothing_and_can_be_extended(train, tmp_path):
    assert train(*JOBS)[0] == 0
    code, out, _ = train("resume=sweep")
    assert code == 0
    assert "sweep: all 4 jobs are done; a larger total_steps= continues them" in out
    assert train("resume=sweep", "total_steps=80")[::2] == (0, "")
    assert [lines(tmp_path / "sweep" / str(number) / "metrics.jsonl")[-1]["step"] for number in range(4)] == [80] * 4
    assert "all 4 jobs are done" in train("resume=sweep")[1]


def test_a_killed_sweep_is_corrected_from_its_folders(train, undisturbed, tmp_path):
    """As after SIGKILL: the record says less than the folders, or more."""
    folder = tmp_path / "sweep"
    shutil.copytree(tmp_path / "undisturbed", folder, symlinks=True)
    content = json.loads((folder / "sweep.json").read_text())
    for entry, state in zip(content["jobs"], ("pending", "running", "done", "failed"), strict=True):
        entry["state"] = state
    (folder / "sweep.json").write_text(json.dumps(content))
    record = json.loads((folder / "1" / "run.json").read_text())
    (folder / "1" / "run.json").write_text(json.dumps(record | {"status": "running"}))
    shutil.rmtree(folder / "2")
    (folder / "2").mkdir()
    (folder / "2" / "run.json").touch()  # killed while it was made
    code, out, _ = train("resume=sweep")
    assert code == 0
    assert "sweep: 2 of 4 jobs are done" in out
    assert states(folder) == ["done"] * 4
    assert evaluations(folder) == undisturbed


def test_a_job_that_was_killed_while_its_folder_was_made_starts_anew(train, tmp_path):
    arguments = ["-m", TOY, "algo=ddpg,td3", "num_seeds=2", *SMALL, "hydra.sweep.dir=sweep"]
    assert train(*arguments)[0] == 0
    folder, undisturbed = tmp_path / "sweep", tmp_path / "undisturbed"
    shutil.copytree(folder, undisturbed, symlinks=True)
    for path in (folder / "1").iterdir():
        if path.name not in (".hydra", "output.log", "seed_0"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (folder / "1" / "seed_0").iterdir():
        if path.name != ".hydra":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for leftover in ("1/run.json", "1/.config.yaml.7", ".sweep.json.7"):
        (folder / leftover).touch()
    shutil.rmtree(folder / "0")
    (folder / "0" / ".hydra").mkdir(parents=True)
    (folder / "0" / ".hydra" / "config.yaml").write_text("algo:\n  na")
    assert train("resume=sweep")[::2] == (0, "")
    for number in ("0", "1"):
        assert differences(folder / number, undisturbed / number) == []
        contents = [json.dumps(yaml.safe_load(path.read_text())) for path in sorted((folder / number).glob(".hydra/*"))]
        assert len(contents) == 3
        assert all("algo" in content for content in contents)
    assert [path.name for path in folder.glob(".*")] == [".lock"]


def test_failed_jobs_are_tried_again_from_their_checkpoint(train, tmp_path, monkeypatch):
    failing = ["-m", TOY, "env.kwargs.bad_step=41,1000000", *SMALL, "eval.every=60", "hydra.sweep.dir=sweep"]
    assert train(*failing)[0] == 1
    assert states(tmp_path / "sweep") == ["failed", "done"]
    code, out, err = train("resume=sweep", "trust=true")
    assert code == 1
    assert "[1/2] job 0 resuming at step 30" in out
    assert "job 0 failed: seed 0, step 41: reward is not finite" in err
    assert states(tmp_path / "sweep") == ["failed", "done"]


def test_the_sweeps_own_configs_count(train, tmp_path, stop_at):
    tree = tmp_path / "conf" / "algo"
    tree.mkdir(parents=True)
    (tree / "own.yaml").write_text("defaults: [td3]\ntau: 0.25\n")
    stop_at(1)
    train("--config-dir", "conf", "-m", TOY, "algo=own", "seed=3,4", *SMALL, "hydra.sweep.dir=sweep")
    (tree / "own.yaml").write_text("defaults: [td3]\ntau: 0.75\n")
    stop_at(None)
    code, _, err = train("resume=sweep")
    assert code == 0
    assert "algo.tau=0.75 instead of 0.25; the sweep's own configs count" in err
    assert yaml.safe_load((tmp_path / "sweep" / "1" / "config.yaml").read_text())["algo"]["tau"] == 0.25


def test_several_seeds_in_a_job(train, tmp_path, stop_at):
    arguments = ["-m", TOY, "algo=ddpg,td3", "num_seeds=2", *SMALL, "hydra.sweep.dir=sweep"]
    stop_at(0)
    assert train(*arguments)[0] == 143
    stop_at(None)
    code, out, _ = train("resume=sweep")
    assert code == 0
    assert states(tmp_path / "sweep") == ["done", "done"]
    assert "mean ± spread over seeds" in out


def test_one_process_for_a_sweep(train, tmp_path, stop_at, monkeypatch):
    stop_at(1)
    train(*JOBS)

    def taken(file, flags):
        raise BlockingIOError(11, "taken")

    monkeypatch.setattr(run_dir.fcntl, "lockf", taken)
    code, _, err = train("resume=sweep")
    assert (code, err) == (2, f"dpg-train: {tmp_path / 'sweep'}: is being trained by another process\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["algo.tau=0.1"], "algo.tau=0.1: resume= of a sweep can only change total_steps, trust, "),
        (["trust=maybe"], "trust=maybe: should be true or false"),
        (["total_steps=-1"], "total_steps=-1: should be greater than or equal to 1"),
        (["total_steps=80", "total_steps=90"], "total_steps: given twice"),
        (["hydra/launcher=nonsense"], "nonsense"),
    ],
)
def test_mistakes(train, tmp_path, stop_at, arguments, complaint):
    stop_at(1)
    train(*JOBS)
    before = (tmp_path / "sweep" / "configs.jsonl").read_bytes()
    code, _, err = train("resume=sweep", *arguments)
    assert code == 2
    assert complaint in err
    assert err.count("\n") == 1
    assert (tmp_path / "sweep" / "configs.jsonl").read_bytes() == before


def test_a_strangers_sweep_needs_trust(train, tmp_path, stop_at):
    stop_at(1)
    train(*JOBS)
    path = tmp_path / "sweep" / "configs.jsonl"
    path.write_text(path.read_text().replace("Toy/Reach-v0", "os:Toy/Reach-v0"))
    code, _, err = train("resume=sweep")
    assert code == 2
    assert "trust=true" in err


def test_a_folder_that_holds_another_run_is_not_touched(train, tmp_path):
    assert train(TOY, *SMALL, "seed=9", "hydra.run.dir=sweep/1")[0] == 0
    before = (tmp_path / "sweep" / "1" / "metrics.jsonl").read_bytes()
    shutil.move(tmp_path / "sweep", tmp_path / "other")
    assert train(*JOBS)[0] == 0
    shutil.rmtree(tmp_path / "sweep" / "1")
    shutil.copytree(tmp_path / "other" / "1", tmp_path / "sweep" / "1", symlinks=True)
    record = json.loads((tmp_path / "sweep" / "1" / "run.json").read_text())
    (tmp_path / "sweep" / "1" / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    code, _, err = train("resume=sweep")
    assert code == 1
    assert "already holds a run, with seed=4 instead of 9" in err
    assert (tmp_path / "sweep" / "1" / "metrics.jsonl").read_bytes() == before


def test_scores_of_jobs_that_ran_elsewhere_come_from_their_folders(train, tmp_path):
    assert train(*JOBS)[0] == 0
    for number in range(4):
        folder = tmp_path / "sweep" / str(number)
        means = [sum(record["returns"]) / 2 for record in lines(folder / "evaluations.jsonl")]
        assert sweep.scores_of(folder).mean() == pytest.approx(sum(means[-10:]) / len(means[-10:]))
