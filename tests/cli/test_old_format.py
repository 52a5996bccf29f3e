"""A run from before the replay knew where episodes end, and everything that can still be done with it.

`format_1.tar.gz` holds the run folder that revision 800d5aa wrote, without logs and links:

    dpg-train env=Pendulum-v1 algo.hidden_sizes=[8] algo.batch_size=4 total_steps=30 random_steps=10 eval.every=20 \
        eval.episodes=2 checkpoint.every=15 log.every=10 threads=1 env.max_episode_steps=10 algo.normalize_obs=true \
        checkpoint.keep=1 hydra.run.dir=run
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dpg_cli import load_policy
from dpg_cli.cli import play, report
from dpg_cli.seeding import Purpose, integer
from dpg_cli.storage.checkpoint import FORMAT
from dpg_cli.storage.checkpoint_folder import checksum

SAME = ["env=Pendulum-v1", "algo.hidden_sizes=[8]", "algo.batch_size=4", "total_steps=30", "random_steps=10"]
SAME += ["eval.every=20", "eval.episodes=2", "checkpoint.every=15", "log.every=10", "threads=1"]
SAME += ["env.max_episode_steps=10", "algo.normalize_obs=true"]
WHY = "a version of dpg-cli before this one wrote it: its replay does not know where episodes end"


def reason(run, why=WHY):
    return f"{why}; it can still be evaluated, exported and reported, and init={run} starts a new run with its networks"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tarfile.open(Path(__file__).with_name("format_1.tar.gz")) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return tmp_path / "run"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("more", [[], ["total_steps=40"], ["eval.every=10"]])
def test_it_is_not_resumed(run, train, more):
    before = contents(run)
    assert train("resume=run", *more) == (2, "", f"dpg-train: resume={run}: cannot be resumed: {reason(run)}\n")
    assert contents(run) == before


def test_it_is_no_data_set(run, train):
    code, out, err = train(*SAME, f"dataset={run}", "hydra.run.dir=offline")
    assert (code, out, err) == (2, "", f"dpg-train: dataset={run}: {WHY}\n")
    assert not (run.parent / "offline").exists()


def test_a_sweep_with_such_a_job_is_not_extended(run, train, tmp_path):
    assert train("-m", *SAME, "seed=0,1", "hydra.sweep.dir=sweep")[0] == 0
    sweep = tmp_path / "sweep"
    shutil.rmtree(sweep / "1")
    run.rename(sweep / "1")
    assert "all 2 jobs are done" in train("resume=sweep")[1]
    before = contents(sweep)
    message = f"dpg-train: resume={sweep}: job 1: {sweep}/1: cannot be resumed: {reason(sweep / '1')}\n"
    assert train("resume=sweep", "total_steps=40") == (2, "", message)
    assert contents(sweep) == before


def test_a_sweep_with_such_a_job_of_several_seeds(run, train, tmp_path):
    assert train("-m", *SAME, "num_seeds=2", "seed=0,5", "hydra.sweep.dir=sweep")[0] == 0
    member = tmp_path / "sweep" / "1" / "seed_5"
    shutil.rmtree(member)
    run.rename(member)
    code, out, err = train("resume=sweep", "total_steps=40")
    assert (code, out) == (2, "")
    assert f"job 1: {member}: cannot be resumed: {reason(member)}" in err


def test_a_later_version_is_named_as_such(run, train):
    path = run / "checkpoints" / "step_000000030" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": FORMAT + 1}
    del manifest["checksum"]
    path.write_text(json.dumps(manifest | {"checksum": checksum(manifest)}))
    message = f"cannot be resumed: {reason(run, 'a version of dpg-cli after this one wrote it')}"
    assert train("resume=run", "total_steps=40") == (2, "", f"dpg-train: resume={run}: {message}\n")


def test_it_is_evaluated_with_the_same_numbers(run, evaluate, monkeypatch):
    last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    monkeypatch.setattr(play, "integer", lambda seed, _, i: integer(seed, Purpose.EVALUATION, last["step"], i))
    for checkpoint in ("latest", "30"):
        assert evaluate("run", f"checkpoint={checkpoint}", "episodes=2", "out=result.json")[::2] == (0, "")
        assert json.loads(Path("result.json").read_text())["returns"] == pytest.approx(last["returns"], rel=1e-6)
    assert evaluate("run", "episodes=2")[::2] == (0, "")


def test_its_policy_is_loaded_and_exported(run, export):
    action = load_policy(run, "latest")(np.array([1.0, 0.0, 0.5]))
    assert action.shape == (1,)
    code, out, err = export("run", "format=pt2")
    assert (code, err) == (0, "")
    assert "verified with torch on 30 observations of the replay" in out


def test_it_is_reported_beside_new_runs(run, train, command):
    pytest.importorskip("matplotlib")
    assert train(*SAME, "seed=1", "hydra.run.dir=new")[0] == 0
    code, out, err = command(report.main, "run", "new", "out=report")
    assert (code, err) == (0, "")
    assert "  td3        2     30  " in out  # one group of two seeds


def test_a_new_run_starts_from_its_networks(run, train):
    code, out, err = train(*SAME, "init=run", "hydra.run.dir=new")
    assert (code, err) == (0, "")
    assert "the networks start as at step 30" in out
