"""`dataset=`: learning from stored transitions, without training environments."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from commands import SMALL, TOY, lines
from oracle import curves, differences
from test_old_format import WHY
from test_old_format import run as old  # noqa: F401 - a fixture

from dpg_cli import config, load_policy
from dpg_cli.captured_learner import CapturedLearner
from dpg_cli.cli import build, memory
from dpg_cli.cli.dataset import read_dataset
from dpg_cli.errors import UserError
from dpg_cli.replay import CUT
from dpg_cli.storage import checkpoint

ONLINE = [TOY, *SMALL]
OFFLINE = [TOY, *SMALL, "log.every=10"]
BC = [*OFFLINE, "algo=td3_bc"]
FEW = ["total_steps=20", "eval.every=20"]


@pytest.fixture
def run(trained):
    return trained(*ONLINE)


@pytest.fixture
def two(trained):
    """Two seeds with three environments each."""
    return trained(*ONLINE, "num_seeds=2", "num_envs=3")


def state(folder, step=60):
    return checkpoint.load(folder, step).state


# --- the training ---


def test_every_step_is_an_update_and_the_environments_are_for_evaluations(train, run, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "Environments", None)
    code, out, err = train(*BC, f"dataset={run}", "num_envs=3", "noise=ou", "hydra.run.dir=new")
    assert (code, err) == (0, "")
    new = tmp_path / "new"
    assert [record["step"] for record in lines(new / "evaluations.jsonl")] == [0, 20, 40, 60]
    own = state(new)
    assert own["algorithm"]["updates"] == 60
    assert not (new / "replay").exists()
    assert checkpoint.saved_steps(new) == [30, 60]
    records = [record for record in lines(new / "metrics.jsonl") if "loss/critic" in record]
    assert [record["step"] for record in records] == [10, 20, 30, 40, 50, 60]
    assert all("perf/updates_per_second" in record for record in records)
    assert not any("perf/steps_per_second" in record for record in records)
    about = json.loads((new / "run.json").read_text())
    assert about["dataset"]["sha256"] == own["dataset"]
    assert (about["dataset"]["transitions"], about["dataset"]["env_ids"]) == (60, ["toy_envs:Toy/Reach-v0"])
    says = f"the data set has 60 transitions, 3 complete episodes with return {about['dataset']['return_mean']:.1f} ±"
    assert says in out
    assert says in (new / "train.log").read_text()
    assert f"from {run} at step 60" in out
    assert "offline, num_envs=3, random_steps=10, noise=ou have no effect" in out
    assert "60 of 60 updates" in out
    assert "done at update 60" in out
    assert "at step" not in out.replace(f"{run} at step 60", "")
    assert "return –" not in out
    assert len(curves(new)) > 0


@pytest.mark.parametrize(
    "more", [["algo=td3_bc"], ["algo=ddpg", "replay=lap", "algo.n_steps=3", "algo.normalize_obs=true"]]
)
def test_a_run_that_is_stopped_resumes_exactly(train, trained, signalled, two, tmp_path, more):
    given = [*OFFLINE, *more, f"dataset={two}", "num_seeds=2", "seed=3"]
    assert signalled("learning", 33, [signal.SIGTERM], *given, "hydra.run.dir=run")[0] == 143
    assert json.loads((tmp_path / "run/run.json").read_text())["last_step"] == 34
    code, out, err = train("resume=run", "trust=true")
    assert (code, err) == (0, "")
    assert "resuming at update 34" in out
    assert differences(tmp_path / "run", trained(*given)) == []
    assert "done at update 60; a larger total_steps= continues it" in train("resume=run", "trust=true")[1]


def test_captured_learning_resumes_exactly_and_uses_one_copy(train, signalled, two, tmp_path, monkeypatch):
    made, new = [], build.new_learner

    def captured_learner(*args, captured):
        made.append(new(*args, captured=True))
        return made[-1]

    monkeypatch.setattr(build, "new_learner", captured_learner)
    given = [*BC, *FEW, f"dataset={two}", "num_seeds=2", "replay=lap", "algo.n_steps=2"]
    assert train(*given, "hydra.run.dir=whole")[0] == 0
    assert signalled("learning", 2, [signal.SIGTERM], *given, "hydra.run.dir=run")[0] == 143
    assert train("resume=run", "trust=true")[0] == 0
    assert differences(tmp_path / "run", tmp_path / "whole") == []
    assert all(type(learner) is CapturedLearner for learner in made)
    assert made[0].replay._rows.stride(0) == 0


def test_a_seed_is_the_same_run_alone_and_beside_others(trained, two):
    given = [*BC, f"dataset={two}", "precision=float64", "replay=lap", "algo.n_steps=3"]
    together, alone = trained(*given, "num_seeds=2", "seed=4"), trained(*given, "seed=5")
    for name, tensor in state(alone)["algorithm"]["actor"].items():
        torch.testing.assert_close(state(together / "seed_5")["algorithm"]["actor"][name], tensor, rtol=0, atol=1e-10)


def test_the_policy_normalises_by_the_data_set(trained, run):
    bc = trained(*BC, f"dataset={run}")
    obs = checkpoint.load(run, 60).rows["obs"].astype(np.float64)
    own = state(bc)["algorithm"]["actor"]
    np.testing.assert_allclose(own["normalizer.mean"][0].numpy(), obs.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(np.sqrt(own["normalizer.var"][0].numpy() + 1e-8), obs.std(axis=0) + 1e-3, rtol=1e-12)
    assert own["normalizer.count"].item() == 60
    policy = load_policy(bc)
    assert policy.metadata["network"][0]["clip"] is None
    seen = np.array([50.0, -3.0])  # beyond ten deviations
    x = (seen - obs.mean(axis=0)) / (obs.std(axis=0) + 1e-3)
    tensors = {name: tensor.double().numpy() for name, tensor in own.items()}
    for layer in range(2):
        x = x @ tensors[f"layers.{layer}.weight"] + tensors[f"layers.{layer}.bias"][0]
        x = np.maximum(x, 0) if layer == 0 else np.tanh(x)
    np.testing.assert_allclose(policy.scaled(seen.astype(np.float32)), x, atol=1e-5)


def test_it_continues_online(train, trained, run, tmp_path):
    bc = trained(*BC, f"dataset={run}")
    given = [*ONLINE, "algo=td3", "algo.normalize_obs=true", f"init={bc}", "hydra.run.dir=next"]
    assert train(*given)[::2] == (0, "")
    before, after = state(bc)["algorithm"]["actor"], state(tmp_path / "next")["algorithm"]["actor"]
    assert after["normalizer.count"].item() == before["normalizer.count"].item() + 61


# --- the sources ---


def refused(train, tmp_path, *arguments):
    """The message of a command that is refused and leaves no folder."""
    before = sorted(tmp_path.iterdir())
    code, out, err = train(*BC, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sorted(tmp_path.iterdir()) == before
    return err.removeprefix("dpg-train: ").strip()


def test_several_folders_by_a_comma_a_list_or_a_sweep(train, run, two, tmp_path):
    both = f"{run},{two}"
    for number, dataset in enumerate([f"dataset={both}", f"dataset='{both}'"]):
        code, out, _ = train(*BC, *FEW, dataset, f"hydra.run.dir={number}")
        assert code == 0
        assert "the data set has 180 transitions, " in out
        assert f", from {run} at step 60; {two} at step 60 (2 seeds)" in out
        assert state(tmp_path / "0", 20)["dataset"] == state(tmp_path / str(number), 20)["dataset"]
    jobs = [*BC, *FEW, f"dataset={both},[{both}]", "hydra.sweep.dir=sweep"]
    assert train("-m", *jobs)[0] == 0
    found = [state(tmp_path / "sweep" / str(job), 20)["dataset"] for job in range(3)]
    assert len(set(found)) == 3
    assert found[2] == state(tmp_path / "0", 20)["dataset"]


def read(*overrides):
    """The data set of a config, as a run would learn from it."""
    checked = config.validate(config.compose([*BC, *overrides]))
    env = build.environment_pool(checked)()
    try:
        return read_dataset(checked, env)
    finally:
        env.close()


def test_environments_take_their_places_one_after_another(two):
    found = read(f"dataset={two}").rows.numpy()
    for seed in range(2):
        stored = checkpoint.load(two / f"seed_{seed}", 60).rows
        for env in range(3):
            own = stored[stored["env"] == env]
            place = 60 * seed + 20 * env
            part = found[place : place + 20]
            assert np.array_equal(part[:, :2], own["obs"])
            assert np.array_equal(part[:, 2:3], own["action"])
            assert np.array_equal(part[:, 3], own["reward"])
            assert np.array_equal(part[:, 5:], own["next_obs"])
            ends = own["terminated"] + 2 * own["truncated"]
            ends[-1] = ends[-1] or CUT
            assert np.array_equal(part[:, 4], ends)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "algo=td3_bc: learns offline; add dataset=RUN_DIR or dataset=minari:NAME"),
        (["dataset=nowhere"], "nowhere: no such folder"),
        (["dataset=minari"], "minari: no such folder; for Minari write minari:NAME"),
        (["dataset=."], "not a run folder: it has no config.yaml"),
        (["dataset=run,run"], "run: given twice"),
        (["dataset=run", "eval.episodes=0"], "eval.episodes=0: offline (dataset=) there are no training episodes"),
        (["dataset=run", "algo.batch_size=61"], "run: has 60 transitions, fewer than algo.batch_size=61"),
        (
            ["dataset=run", "env=Pendulum-v1"],
            "run: an observation has 2 numbers, and 3 in Pendulum-v1; use env=toy_envs:Toy/Reach-v0",
        ),
        (["dataset=run", "env=toy_envs:Toy/Parts-v0"], "an observation has 2 numbers, and 19 in Toy/Parts-v0"),
        (["dataset=run,minari:a/b-v0"], "takes run folders or one Minari data set"),
        (["dataset=minari:"], "names no data set"),
        (["-m", "dataset=run,nowhere"], "nowhere: no such folder (with dataset=nowhere)"),
        (["-m", "algo.alpha=1,2"], "algo=td3_bc: learns offline"),
    ],
)
def test_what_cannot_be_learned_from(train, finished, tmp_path, arguments, message):
    finished(*ONLINE)
    assert message in refused(train, tmp_path, *arguments)


def test_a_folder_without_transitions(train, trained, tmp_path, run, old):  # noqa: F811
    without = trained(*ONLINE, *FEW, "checkpoint.replay=false")
    assert "checkpoint.replay=false kept no replay" in refused(train, tmp_path, f"dataset={without}")
    bc = trained(*BC, f"dataset={run}")
    assert f"it learned offline and has no transitions of its own; use dataset={run}" in refused(
        train, tmp_path, f"dataset={bc}"
    )
    assert refused(train, tmp_path, f"dataset={old}") == f"dataset={old}: {WHY}"
    shutil.copytree(run, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty/checkpoints")
    assert "empty: there is no whole checkpoint" in refused(train, tmp_path, "dataset=empty")


def test_one_that_memory_does_not_hold(train, tmp_path, run, monkeypatch):
    monkeypatch.setattr("dpg_cli.cli.dataset.available_memory", lambda: 1000)
    assert "GiB are free" in refused(train, tmp_path, f"dataset={run}")
    checked = config.validate(config.compose([*BC, f"dataset={run}", "replay=lap", "num_seeds=10"]))
    with pytest.raises(UserError, match="100,000,000,000 transitions for 10 seeds take another"):
        memory.check_memory(checked, 2, 1, torch.device("cpu"), 10**11)
    memory.check_memory(checked, 2, 1, torch.device("cpu"), 10**4)


def test_a_resumed_run_needs_the_same_data_set(train, finished, trained, run, two, tmp_path):
    shutil.copytree(run, tmp_path / "data")
    assert train(*BC, "dataset=data", "hydra.run.dir=run")[0] == 0
    shutil.rmtree(tmp_path / "data")
    code, _, err = train("resume=run", "total_steps=80", "trust=true")
    assert (code, err) == (2, f"dpg-train: dataset={tmp_path}/data: no such folder\n")
    shutil.copytree(two / "seed_0", tmp_path / "data")
    code, _, err = train("resume=run", "total_steps=80", "trust=true")
    assert (code, err.count("\n")) == (2, 1)
    assert "its transitions are not those that this run has learned from" in err
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(run, tmp_path / "data")
    assert train("resume=run", "total_steps=80", "trust=true")[0] == 0


def test_another_environment_of_the_same_sizes_is_noted(train, run):
    code, out, _ = train(*BC, *FEW, "env=toy_envs:Toy/Drawing-v0", f"dataset={run}", "hydra.run.dir=new")
    assert code == 0
    assert "note: the data set is of toy_envs:Toy/Reach-v0; evaluations are on toy_envs:Toy/Drawing-v0" in out
