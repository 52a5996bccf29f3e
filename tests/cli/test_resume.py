"""`dpg-train resume=`: a run that was stopped anywhere ends as one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from commands import SMALL, TOY, lines
from oracle import differences, members

from dpg_cli.cli import job
from dpg_cli.cli.signals import StopRequest
from dpg_cli.environments import group as env_group
from dpg_cli.environments.state import CannotCopy
from dpg_cli.storage import run_dir

RUN = [TOY, *SMALL, "noise=ou", "hydra.run.dir=run"]


@pytest.fixture
def stopped(train, monkeypatch):
    """Train, and ask to stop when `stop` has been asked about so many times."""

    def run(times, *arguments, number=signal.SIGTERM):
        class Request(StopRequest):
            asked = 0

            def __call__(self):
                self.asked += 1
                if self.asked == times:
                    self.signal = number
                return super().__call__()

        with monkeypatch.context() as patch:
            patch.setattr(job, "StopRequest", Request)
            return train(*arguments)

    return run


@pytest.fixture
def begun(stopped, kept, tmp_path, tmp_path_factory):
    """A copy, `run`, of a run that was stopped so; only the first test that asks must train it."""

    def run(times, *arguments):
        if (times, arguments) not in kept:
            folder = tmp_path_factory.mktemp("begun") / "run"
            assert stopped(times, *arguments, f"hydra.run.dir={folder}")[0] == 143
            kept[times, arguments] = folder
        return shutil.copytree(kept[times, arguments], tmp_path / "run", symlinks=True)

    return run


def same(run, other):
    assert differences(run, other) == []


VARIANTS = {
    "one seed": [],
    "two seeds, two environments": ["num_seeds=2", "num_envs=2", "algo.normalize_obs=true"],
    "a ring that has wrapped": ["buffer_size=13", "algo=ddpg", "noise=gaussian"],
    "pink noise": ["noise=pink", "num_seeds=2", "num_envs=2"],
    "shared next observations": ["buffer_size=13", "num_envs=2", "share_next_obs=true"],
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("times", [1, 4, 25, 70])
def test_stopped_and_resumed_is_never_stopped(train, stopped, trained, tmp_path, name, times):
    arguments = [*RUN, *VARIANTS[name]]
    code, _, err = stopped(times, *arguments)
    assert code == 143
    assert "resume with dpg-train resume=run" in err
    code, out, err = train("resume=run", "trust=true")
    assert (code, err) == (0, "")
    assert "resuming at step" in out
    same(tmp_path / "run", trained(*arguments))
    record = json.loads((members(tmp_path / "run")[0] / "run.json").read_text())
    assert record["status"] == "done"
    assert len(record["resumed"]) == 1


def test_a_run_stopped_in_its_very_last_evaluation_ends_as_if_it_was_not(train, signalled, trained, tmp_path):
    arguments = [*RUN, "total_steps=50", "eval.every=25"]  # evaluations of 20 steps at 0, 25 and 50
    assert signalled("evaluation", 45, [signal.SIGTERM], *arguments, "hydra.run.dir=run")[0] == 143
    assert json.loads((tmp_path / "run" / "run.json").read_text())["last_step"] == 50
    assert train("resume=run", "trust=true")[0] == 0
    same(tmp_path / "run", trained(*arguments))


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("left", ["the config alone", "no checkpoint", "one seed's first checkpoint"])
def test_a_folder_that_was_only_claimed_is_trained_from_the_start(train, trained, finished, tmp_path, seeds, left):
    arguments = [*RUN, f"num_seeds={seeds}", "checkpoint.keep=9"]
    finished(*arguments)
    for path in (tmp_path / "run").iterdir():
        if left == "the config alone" and path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for member, run in enumerate(members(tmp_path / "run") if left != "the config alone" else []):
        shutil.rmtree(run / "replay")
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            (run / name).write_text("")
        for path in (run / "checkpoints").glob("*_*"):
            if left == "no checkpoint" or member > 0 or seeds == 1 or path.name != "step_000000000":
                shutil.rmtree(path)
    code, out, err = train("resume=run", "trust=true")
    assert (code, err) == (0, "")
    assert "starting at step 0" in out
    same(tmp_path / "run", trained(*arguments))


@pytest.mark.parametrize("torn", ["config.yaml", "hydra.yaml"])
def test_a_run_killed_while_hydra_wrote_is_trained_from_the_start(train, trained, tmp_path, torn):
    arguments = [*RUN, "num_seeds=2"]
    (tmp_path / "run").mkdir()
    shutil.copy(trained(*arguments) / "config.yaml", tmp_path / "run")
    shutil.copytree(trained(*arguments) / ".hydra", tmp_path / "run" / ".hydra")
    (tmp_path / "run" / ".hydra" / torn).write_text("")
    (tmp_path / "run" / ".run.json.4711").write_text("half")
    assert train("resume=run", "trust=true")[0] == 0
    same(tmp_path / "run", trained(*arguments))


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_whose_checkpoints_are_lost_is_not_trained_over(train, finished, tmp_path, seeds):
    finished(*RUN, f"num_seeds={seeds}")
    for path in (tmp_path / "run").rglob("checkpoints"):
        shutil.rmtree(path)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, _, err = train("resume=run", "trust=true")
    assert code == 2
    assert "it has results, but no checkpoints" in err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_what_a_crash_has_left_is_removed(train, trained, finished, tmp_path):
    run = finished(*RUN)
    (run / ".config.yaml.4711").write_text("half")
    (run / "checkpoints" / ".latest.4711").symlink_to("step_000000060")
    (run / "checkpoints" / ".step_000000070.4711").mkdir()
    (run / "replay" / ".rows_000000000060_000000000070.npy.4711").write_bytes(b"half")
    assert train("resume=run", "total_steps=95", "trust=true")[0] == 0
    same(tmp_path / "run", trained(*RUN, "total_steps=95"))


def copied(source, target, how):
    """Copy a run as a tool does that knows nothing of links."""
    shutil.copytree(source, target, symlinks=how != "followed")
    for path in [path for path in target.rglob("*") if path.is_symlink()]:
        text = str(path.readlink())
        path.unlink()
        if how == "text":
            path.write_text(text)


@pytest.mark.parametrize("how", ["followed", "dropped", "text"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_copy_without_links_is_evaluated_and_resumed(train, evaluate, trained, tmp_path, how, seeds):
    arguments = [*RUN, f"num_seeds={seeds}"]
    copied(trained(*arguments), tmp_path / "run", how)
    for which in ("best", "latest"):
        own, whole = (
            evaluate(f"run={members(run)[0]}", f"checkpoint={which}", "trust=true")
            for run in (tmp_path / "run", trained(*arguments))
        )
        assert own == whole
        assert own[0] == 0
    assert train("resume=run", "total_steps=95", "trust=true")[0] == 0
    same(tmp_path / "run", trained(*arguments, "total_steps=95"))
    for name in ("best", "latest"):
        assert (members(tmp_path / "run")[0] / "checkpoints" / name).is_symlink()


@pytest.mark.parametrize("count", ["9.5e1", "0.95e2", "95.0"])
def test_counts_are_written_as_in_a_new_run(train, trained, finished, tmp_path, count):
    finished(*RUN)
    assert train("resume=run", f"total_steps={count}", "trust=true")[0] == 0
    same(tmp_path / "run", trained(*RUN, "total_steps=95"))


def test_three_stops_in_one_run(train, stopped, trained, tmp_path):
    assert stopped(20, *RUN)[0] == 143
    for _ in range(2):
        assert stopped(20, "resume=run", "trust=true")[0] == 143
    assert train("resume=run", "trust=true")[0] == 0
    same(tmp_path / "run", trained(*RUN))


def test_a_longer_run_by_resume_is_one_that_was_long_from_the_start(train, trained, tmp_path):
    assert train(*RUN, "total_steps=47")[0] == 0  # on no stride at all
    assert lines(tmp_path / "run" / "evaluations.jsonl")[-1]["step"] == 47
    assert train("resume=run", "total_steps=95", "trust=true")[0] == 0
    same(tmp_path / "run", trained(*RUN, "total_steps=95"))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["total_steps"] == 95


def test_a_finished_run_says_so_and_stays_as_it_is(train, finished, tmp_path):
    finished(*RUN)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for arguments in ([], ["total_steps=60"], ["total_steps=10"]):
        code, out, err = train("resume=run", "trust=true", *arguments)
        assert (code, err) == (0, "")
        assert "done at step 60" in out
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_one_seed_of_several_goes_on_alone(train, stopped, tmp_path):
    assert stopped(30, *RUN, "num_seeds=2", "seed=4", "checkpoint.keep=9")[0] == 143
    code, out, _ = train("resume=run/seed_5", "trust=true")
    assert code == 0
    assert "seed 5" in out
    assert json.loads((tmp_path / "run/seed_5/run.json").read_text())["status"] == "done"
    assert json.loads((tmp_path / "run/seed_4/run.json").read_text())["status"] == "interrupted"
    code, _, err = train("resume=run", "trust=true")  # all seeds, from where the other one stands
    assert code == 0
    assert "seed_5: returns from step 60 to" in err


def test_a_seed_that_is_missing_is_named(train, finished, tmp_path):
    finished(*RUN, "num_seeds=2")
    shutil.rmtree(tmp_path / "run/seed_1")
    code, _, err = train("resume=run", "trust=true", "total_steps=80")
    assert code == 2
    assert "seed_1 is missing; each other seed_*/ can be resumed alone" in err
    assert train("resume=run/seed_0", "trust=true", "total_steps=80")[0] == 0


def test_a_run_is_done_after_its_seeds(train, monkeypatch):
    """If it is killed in between it is resumed, and the seeds that say "running" are done too."""
    ended = []

    def end(run_file, status, **values):
        ended.append((run_file._path.parent.name, status))
        whole_end(run_file, status, **values)

    whole_end = run_dir.RunFile.end
    monkeypatch.setattr(run_dir.RunFile, "end", end)
    assert train(*RUN, "num_seeds=2")[0] == 0
    assert ended == [("seed_1", "done"), ("seed_0", "done"), ("run", "done")]


def test_seeds_without_a_step_in_common_are_told_apart(train, finished, tmp_path):
    finished(*RUN, "num_seeds=2")
    shutil.rmtree(tmp_path / "run/seed_0/checkpoints/step_000000060")
    shutil.rmtree(tmp_path / "run/seed_1/checkpoints/step_000000030")
    code, _, err = train("resume=run", "trust=true")
    assert code == 2
    assert "no step at which every seed has a checkpoint" in err
    assert "seed_0: [30]; seed_1: [60]" in err


def test_several_seeds_go_on_from_the_highest_step_whole_in_all(train, tmp_path):
    assert train(*RUN, "num_seeds=2", "checkpoint.keep=3")[0] == 0
    (tmp_path / "run/seed_1/checkpoints/step_000000060/state.json").write_text("{}")
    code, out, err = train("resume=run", "trust=true", "total_steps=61")
    assert code == 0
    assert "resuming at step 30" in out
    assert "seed_1: the checkpoint of step 60 is damaged" in err


@pytest.mark.parametrize("file", ["manifest.json", "policy.safetensors", "state.json", "state.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "zeroed", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(train, trained, finished, tmp_path, file, damage):
    finished(*RUN, "checkpoint.keep=3")
    path = tmp_path / "run" / "checkpoints" / "step_000000060" / file
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncated": data[:-1], "zeroed": bytes(len(data)), "flipped": data, "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    code, out, err = train("resume=run", "trust=true")
    assert code == 0
    assert "step 60 is damaged" in err
    assert "resuming at step 30" in out
    same(tmp_path / "run", trained(*RUN, "checkpoint.keep=3"))


def test_a_damaged_shard_is_a_damaged_checkpoint(train, finished, tmp_path):
    finished(*RUN)
    for shard in (tmp_path / "run" / "replay").iterdir():
        shard.write_bytes(shard.read_bytes()[:-1])
    code, _, err = train("resume=run", "trust=true", "total_steps=61")
    assert (code, err.count("is damaged")) == (2, 2)
    assert "there is no whole checkpoint" in err


def test_a_run_without_its_replay_says_what_is_missing(train, evaluate, finished, tmp_path):
    run = finished(*RUN)
    shutil.rmtree(run / "replay")
    (run / ".lock").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, _, err = train("resume=run", "total_steps=95", "trust=true")
    assert (code, err) == (
        2,
        f"dpg-train: resume={run}: cannot be resumed: {run}/replay is missing; it can still be evaluated, exported and "
        f"reported, and init={run} starts a new run with its networks\n",
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before
    assert evaluate("run=run", "trust=true")[0] == 0


def test_no_replay_on_disk(train, stopped, evaluate, trained, tmp_path):
    """Such a run trains as any other, can be evaluated, and says that it cannot be resumed."""
    arguments = [*RUN, "checkpoint.replay=false"]
    code, _, err = stopped(30, *arguments, "checkpoint.keep=9")
    assert code == 143
    assert "with checkpoint.replay=false it cannot be resumed" in err
    before = sorted(tmp_path.rglob("*"))
    code, _, err = train("resume=run", "trust=true")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be resumed: checkpoint.replay=false kept no replay" in err
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(tmp_path / "run")

    assert train(*arguments)[0] == 0
    run, whole = tmp_path / "run", trained(*RUN)
    assert not (run / "replay").exists()
    assert (run / "evaluations.jsonl").read_bytes() == (whole / "evaluations.jsonl").read_bytes()
    assert evaluate("run=run", "trust=true")[0] == 0
    code, out, _ = train("resume=run", "trust=true")
    assert (code, out) == (0, f"{run}: done at step 60\n")
    assert train("resume=run", "trust=true", "total_steps=95")[0] == 2


def test_the_replay_can_be_dropped_by_a_resume(train, finished, trained, tmp_path):
    run = finished(*RUN)
    assert train("resume=run", "total_steps=95", "checkpoint.replay=false", "checkpoint.keep=1", "trust=true")[0] == 0
    assert list((run / "replay").iterdir()) == []
    whole = trained(*RUN, "total_steps=95")
    assert (run / "evaluations.jsonl").read_bytes() == (whole / "evaluations.jsonl").read_bytes()


def test_shards_are_written_once_and_load_as_a_dataset(train, tmp_path):
    assert train(*RUN, "checkpoint.every=20", "checkpoint.keep=1")[0] == 0
    shards = sorted((tmp_path / "run" / "replay").glob("*.npy"))
    assert [path.name for path in shards] == [f"rows_{first:012d}_{first + 20:012d}.npy" for first in (0, 20, 40)]
    data = np.concatenate([np.load(path) for path in shards])
    assert data["obs"].shape == data["next_obs"].shape == (60, 2)
    assert data["action"].shape == (60, 1)
    np.testing.assert_array_equal(data["obs"][1:19], data["next_obs"][:18])
    assert set(data["terminated"]) <= {0.0, 1.0}


def test_shards_that_the_ring_has_overwritten_go(train, tmp_path):
    assert train(*RUN, "checkpoint.every=10", "checkpoint.keep=1", "buffer_size=15")[0] == 0
    assert [p.name[:17] for p in sorted((tmp_path / "run" / "replay").iterdir())] == [
        "rows_000000000040",
        "rows_000000000050",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=nowhere"], "nowhere: no such folder"),
        (["resume=run"], "trust=true"),
        (["resume=run", "trust=true", "algo.tau=0.1"], "algo.tau: affects steps already taken"),
        (["resume=run", "trust=true", "seed=3"], "seed: affects steps already taken"),
        (["resume=run", "trust=true", "share_next_obs=true"], "share_next_obs: affects steps already taken"),
        (["resume=run", "trust=true", "total_steps=abc"], "total_steps=abc"),
        (["resume=run", "trust=true", "total_steps=["], "total_steps=["),
        (["resume=run", "trust=true", "total_steps=70,80"], "total_steps=70,80: takes one value"),
        (["resume=run", "trust=true", "total_step=70"], "total_step: unknown key; did you mean total_steps?"),
        (["resume=run", "trust=true", "hydra.run.dir=x"], "hydra.run.dir: unknown key"),
        (["resume=run", "trust=true", "eval.every=0"], "eval.every=0"),
        (["resume=run", "-m"], "-m"),
        (["resume="], "resume: missing"),
    ],
)
def test_what_cannot_be_resumed_is_refused(train, begun, tmp_path, arguments, message):
    begun(30, *RUN)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = train(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert sorted(p for p in tmp_path.rglob("*") if p.name != ".lock") == [p for p in before if p.name != ".lock"]


def test_what_may_change_does(train, begun, tmp_path):
    begun(30, *RUN)
    changes = ["total_steps=80", "eval.every=11", "eval.episodes=3", "checkpoint.every=7", "checkpoint.keep=4"]
    changes += ["log.every=9", "threads=1", "env_threads=2", "device=cpu"]
    assert train("resume=run", "trust=true", *changes)[0] == 0
    assert len(lines(tmp_path / "run" / "evaluations.jsonl")[-1]["returns"]) == 3
    assert lines(tmp_path / "run" / "evaluations.jsonl")[-1]["step"] == 80


def test_other_versions_are_named(train, begun, tmp_path, monkeypatch):
    begun(30, *RUN)
    monkeypatch.setattr("dpg_cli.storage.run_dir.__version__", "99.0")
    code, _, err = train("resume=run", "trust=true")
    assert code == 0
    assert "not the same bit for bit: dpg_cli" in err
    assert "-> 99.0" in err


def test_one_writer(train, begun, tmp_path):
    begun(30, *RUN)
    program = "import pathlib, sys\nfrom dpg_cli.storage.run_dir import locked\nwith locked([pathlib.Path('run')]):\n"
    program += "    print('locked', flush=True)\n    sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True, cwd=tmp_path) as other:
        assert other.stdout.readline() == "locked\n"
        code, _, err = train("resume=run", "trust=true")
        assert code == 2
        assert "is being trained by another process" in err
        other.kill()
        other.wait()
    assert train("resume=run", "trust=true")[0] == 0


@pytest.mark.parametrize("file", ["metrics.jsonl", "evaluations.jsonl", "events"])
@pytest.mark.parametrize("damage", ["torn", "more"])
def test_torn_and_later_lines_are_cut(train, begun, trained, tmp_path, file, damage):
    begun(40, *RUN)
    path = next((tmp_path / "run").glob("events.*")) if file == "events" else tmp_path / "run" / file
    with path.open("ab") as stream:
        stream.write(b'{"step": 10' if damage == "torn" else path.read_bytes()[-200:])
    assert train("resume=run", "trust=true")[0] == 0
    same(tmp_path / "run", trained(*RUN))


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_a_lost_event_file_is_written_anew(train, begun, trained, tmp_path, damage):
    begun(40, *RUN)
    (path,) = (tmp_path / "run").glob("events.*")
    os.truncate(path, 100) if damage == "cut" else path.unlink()
    assert train("resume=run", "trust=true")[0] == 0
    same(tmp_path / "run", trained(*RUN))


def test_an_environment_that_cannot_be_copied_begins_a_new_episode(train, stopped, tmp_path):
    odd = "env=toy_envs:Toy/Odd-v0"
    code, out, _ = stopped(30, odd, *SMALL, "hydra.run.dir=run")
    assert code == 143
    assert "its state cannot be saved in the middle of an episode" in out
    assert train("resume=run", "trust=true")[0] == 0
    assert lines(tmp_path / "run" / "evaluations.jsonl")[-1]["step"] == 60


def test_a_simulator_of_another_model_begins_a_new_episode(train, stopped, tmp_path, monkeypatch):
    assert stopped(30, "env=Pendulum-v1", *SMALL, "hydra.run.dir=run")[0] == 143

    def other(env, state):
        raise CannotCopy

    monkeypatch.setattr(env_group, "set_state", other)
    assert train("resume=run")[0] == 0
    assert lines(tmp_path / "run" / "evaluations.jsonl")[-1]["step"] == 60
