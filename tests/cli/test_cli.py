"""The commands as a user meets them: what they print, write and return."""

import contextlib
import gc
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
import yaml
from commands import SMALL, TOY, lines, without_time
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from dpg_cli import __version__, config
from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.cli import job, memory
from dpg_cli.cli import signals as signals_of_a_run
from dpg_cli.cli import train as train_command
from dpg_cli.cli.signals import StopRequest
from dpg_cli.config import choices

TAGS = {
    *("train/episode_return", "train/episode_length", "eval/return_mean", "eval/return_std", "eval/episode_length"),
    *("loss/critic", "loss/actor", "value/q_mean", "value/target_mean", "policy/saturation", "grad/critic_norm"),
    *("grad/actor_norm", "noise/scale", "perf/steps_per_second", "perf/updates_per_second"),
}


def test_help_starts_with_examples_and_names_the_choices(train, evaluate):
    code, out, _ = train("--help")
    assert code == 0
    assert out.index("Examples") < out.index("Keys")
    assert all(name in out for group in ("algo", "noise", "experiment") for name in choices(group))
    assert len(out.splitlines()) <= 40
    code, out, _ = evaluate("--help")
    assert code == 0
    assert out.index("Examples") < out.index("Keys")


@pytest.mark.parametrize("command", ["train", "eval", "export"])
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_a_reader_may_leave(command, flag):
    """As in `dpg-train --help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    program = f"from dpg_cli.cli.{command} import main; main()"
    done = subprocess.run([sys.executable, "-c", program, flag], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


ONLINE = [name for name, own in ALGORITHMS.items() if not own.offline_only]


@pytest.mark.parametrize(("noise", "algo"), [*zip(choices("noise"), itertools.cycle(ONLINE))])
def test_every_algorithm_and_every_noise_trains(train, tmp_path, algo, noise):
    code, _out, err = train(TOY, f"algo={algo}", f"noise={noise}", *SMALL, "hydra.run.dir=run")
    assert (code, err) == (0, "")
    assert lines(tmp_path / "run" / "evaluations.jsonl")[-1]["step"] == 60


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_trains(train, tmp_path, experiment):
    arguments = [TOY, f"experiment={experiment}", *SMALL, "num_seeds=1"]
    code, _, err = train(*arguments, "hydra.run.dir=run", "hydra.sweep.dir=run")
    assert (code, err) == (0, "")
    statuses = [json.loads(path.read_text())["status"] for path in (tmp_path / "run").rglob("run.json")]
    assert set(statuses) == {"done"}


def test_a_run_folder_holds_what_the_contract_says(train, tmp_path):
    steps = ["env.max_episode_steps=600", "total_steps=700", "eval.every=350"]
    code, out, err = train(TOY, "algo=td3", *SMALL, *steps, "seed=3")
    assert (code, err) == (0, "")
    (run,) = (tmp_path / "outputs" / "toy_envs_Toy_Reach-v0" / "td3").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", run.name)
    names = {p.name for p in run.iterdir()}
    assert names - {n for n in names if n.startswith("events.out.tfevents.")} == {
        *(".hydra", "checkpoints", "config.yaml", "evaluations.jsonl", "metrics.jsonl", "replay", "run.json"),
        *("train.log", ".lock"),
    }
    assert len(names) == 10  # one event file, no sub-run
    assert {p.name for p in (run / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["seed"], config["algo"]["name"], config["noise"]["name"]) == (3, "td3", "gaussian")
    assert config["env"]["id"] == "toy_envs:Toy/Reach-v0"
    assert (config["total_steps"], config["learning_starts"]) == (700, 10)

    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["last_step"], record["error"]) == ("done", 700, None)
    assert {"python", "torch", "gymnasium", "mujoco", "numpy", "dpg_cli"} <= set(record["versions"])
    assert record["command"][1:3] == [TOY, "algo=td3"]

    metrics = lines(run / "metrics.jsonl")
    assert [r["step"] for r in metrics] == sorted(r["step"] for r in metrics)
    tags = {key for r in metrics for key in r} - {"step", "time"}
    assert tags - {"value/bias"} == TAGS
    for r in lines(run / "evaluations.jsonl"):
        assert set(r) == {"step", "returns", "lengths"}
        assert len(r["returns"]) == len(r["lengths"]) == 2

    for checkpoint in (run / "checkpoints").glob("step_*"):
        assert re.fullmatch(r"step_\d{9}", checkpoint.name)
        assert {p.name for p in checkpoint.iterdir()} == {
            *("manifest.json", "policy.safetensors", "state.json", "state.safetensors")
        }
    assert not os.path.isabs((run / "checkpoints" / "latest").readlink())

    best = max(lines(run / "evaluations.jsonl"), key=lambda r: np.mean(r["returns"]))
    assert f"best {np.mean(best['returns']):.1f} at step {best['step']}" in out
    assert f"dpg-eval run={run.relative_to(tmp_path)}" in out
    assert "tensorboard --logdir" in out


def test_same_seed_same_run_and_another_seed_another(train, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(TOY, *SMALL, f"seed={seed}", f"hydra.run.dir={name}")[0] == 0
    a, b, c = (tmp_path / name for name in "abc")
    assert (a / "evaluations.jsonl").read_bytes() == (b / "evaluations.jsonl").read_bytes()
    assert (a / "evaluations.jsonl").read_bytes() != (c / "evaluations.jsonl").read_bytes()
    assert without_time(lines(a / "metrics.jsonl")) == without_time(lines(b / "metrics.jsonl"))


def test_real_environments_train(train, tmp_path):
    for env_id in ("HalfCheetah-v4", "Pendulum-v1", "Hopper-v5"):
        code, _out, err = train(f"env={env_id}", *SMALL, "env.max_episode_steps=50", f"hydra.run.dir={env_id}")
        assert (code, err) == (0, "")
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


def test_environment_arguments_need_no_plus(train, tmp_path):
    code, _, err = train(
        "env=HalfCheetah-v5", "env.kwargs.ctrl_cost_weight=0.5", *SMALL, "env.max_episode_steps=20", "hydra.run.dir=run"
    )
    assert (code, err) == (0, "")
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["env"]["kwargs"] == {"ctrl_cost_weight": 0.5}


def test_sweep(train, tmp_path):
    code, _out, err = train("-m", TOY, "algo=ddpg,td3", "seed=0,1", *SMALL)
    assert (code, err) == (0, "")
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    configs = [yaml.safe_load((sweep / str(job) / "config.yaml").read_text()) for job in range(4)]
    assert [(c["algo"]["name"], c["seed"]) for c in configs] == [("ddpg", 0), ("ddpg", 1), ("td3", 0), ("td3", 1)]
    assert all(json.loads((sweep / str(job) / "run.json").read_text())["status"] == "done" for job in range(4))


def test_a_failed_job_does_not_stop_the_sweep(train, tmp_path):
    code, _out, err = train("-m", TOY, "env.kwargs.bad_step=41,1000000", *SMALL, "eval.every=60")
    assert code == 1
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    statuses = [json.loads((sweep / str(job) / "run.json").read_text())["status"] for job in range(2)]
    assert statuses == ["failed", "done"]
    assert "job 0 failed: seed 0, step 41: reward is not finite" in err
    assert "Error executing job" not in err


def test_failed_jobs_are_found_wherever_their_folders_are(train, tmp_path):
    arguments = ["env.kwargs.bad_step=41", "seed=0,1", *SMALL, "eval.every=60", "hydra.sweeper.max_batch_size=1"]
    code, _out, err = train("-m", TOY, *arguments, "hydra.sweep.subdir=${algo.name}/${hydra.job.num}")
    assert code == 1
    assert "job 0 failed" in err
    assert "job 1 failed" in err


def test_an_environment_that_cannot_be_made_fails_its_job_alone(train, tmp_path):
    code, _, err = train("-m", f"{TOY},NoSuch-v0", *SMALL, "hydra.sweep.dir=sweep")
    assert code == 1
    assert "job 1 failed: env.id=NoSuch-v0: no environment of that id" in err
    statuses = [json.loads((tmp_path / "sweep" / str(job) / "run.json").read_text())["status"] for job in range(2)]
    assert statuses == ["done", "failed"]


def test_jobs_may_be_named_by_what_is_swept(train, tmp_path):
    arguments = ["-m", TOY, "env.kwargs.bad_step=41,900", *SMALL, "eval.every=60", "hydra.sweep.dir=../here/sweep"]
    (tmp_path / "here").mkdir()
    os.chdir(tmp_path / "here")
    code, _out, err = train(*arguments, "hydra.sweep.subdir=bad_${env.kwargs.bad_step}_${hydra.job.id}")
    assert code == 1
    assert "job 0 failed: seed 0, step 41" in err
    assert (tmp_path / "here" / "sweep" / "bad_900_1" / "run.json").exists()
    link = tmp_path / "here" / "sweep" / "tensorboard" / "env.kwargs.bad_step=900"
    assert str(link.readlink()) == "../bad_900_1"


def test_a_job_without_memory_for_its_replay_fails_alone(train, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2**30)
    arguments = ["-m", TOY, *SMALL, "total_steps=60,9e8", "buffer_size=1e12", "num_seeds=2", "hydra.sweep.dir=sweep"]
    code, out, err = train(*arguments)
    assert code == 1
    assert "job 1 failed: buffer_size=1000000000000" in err
    assert "GiB of memory are free" in err
    assert "[2/2] job 1 failed" in err
    assert re.search(r"1 +total_steps=\S+ +failed", out)


def test_a_sweep_that_is_stopped_says_how_far_it_came(train, monkeypatch):
    class Request(StopRequest):
        def __call__(self):
            self.signal = signal.SIGTERM
            return True

    monkeypatch.setattr(job, "StopRequest", Request)
    code, out, _ = train("-m", TOY, "seed=0,1,2", *SMALL, "hydra.sweep.dir=sweep")
    assert code == 143
    assert "2 jobs did not start" in out
    assert "sweep folder sweep" in out


def test_a_signal_between_two_handlers_of_a_sweep_counts(train, monkeypatch):
    """While Hydra prepares a job, the handler of the sweep receives it, not that of the job."""

    def run(*arguments, **others):
        os.kill(os.getpid(), signal.SIGTERM)
        return run_job(*arguments, **others)

    run_job = job.run
    monkeypatch.setattr(job, "run", run)
    code, out, err = train("-m", TOY, "seed=0,1", *SMALL, "hydra.sweep.dir=sweep")
    assert code == 143
    assert "stopped at step 0 " in err
    assert "1 job did not start" in out


def test_a_sweep_is_stopped_between_two_jobs(train, monkeypatch):
    def run(*arguments, **others):
        result = run_job(*arguments, **others)
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    run_job = job.run
    monkeypatch.setattr(job, "run", run)
    code, out, _ = train("-m", TOY, "seed=0,1,2", *SMALL, "hydra.sweep.dir=sweep")
    assert code == 143
    assert re.search(r"0 +seed=0 +-", out)
    assert "2 jobs did not start" in out


def test_what_is_probably_not_meant_is_said(train):
    assert "nothing will be learned" in train(TOY, *SMALL, "learning_starts=60", "hydra.run.dir=a")[1]
    assert "has no time limit" in train("env=toy_envs:Toy/Endless-v0", "env.kwargs.bad_step=1", *SMALL)[1]


def test_keys_that_another_key_makes_useless_are_noted(train):
    simba = ["network=simba", "network.actor_size=4", "network.critic_size=4", "algo.hidden_sizes=[9]"]
    code, out, _ = train(TOY, *SMALL, *simba, "algo.target_copy_every=4", "algo.tau=0.5")
    assert code == 0
    assert "note: algo.hidden_sizes=[9] has no effect with network=simba\n" in out
    assert "note: algo.tau=0.5 has no effect with algo.target_copy_every=4\n" in out
    assert "has no effect" not in train(TOY, *SMALL, "algo.target_copy_every=4", "hydra.run.dir=other")[1]
    out = train(TOY, *SMALL, "noise.final_scale=0.05", "hydra.run.dir=constant")[1]
    assert "note: noise.final_scale=0.05 has no effect with noise.decay_steps=null\n" in out
    td7 = ["algo=td7", "algo.bc_weight=0.5", "algo.policy_checkpoints=false", "algo.checkpoint_start=9"]
    out = train(TOY, *SMALL, *td7, "algo.target_copy_every=4", "hydra.run.dir=td7")[1]
    assert "note: algo.bc_weight=0.5 has no effect with dataset=null\n" in out
    assert "note: algo.checkpoint_start=9 has no effect with algo.policy_checkpoints=false\n" in out
    decaying = ["noise.final_scale=0.05", "noise.decay_steps=50"]
    assert "has no effect" not in train(TOY, *SMALL, *decaying, "hydra.run.dir=decaying")[1]


def test_the_range_of_values_that_suits_few_environments_is_noted(train):
    d4pg = [TOY, *SMALL, "algo=d4pg", "network.actor_sizes=[8]", "network.critic_sizes=[8]"]
    note = "note: algo.v_min=-150 and algo.v_max=150 suit rewards in [0, 1]; set them for toy_envs:Toy/Reach-v0"
    assert note in train(*d4pg, "hydra.run.dir=a")[1]
    assert "rewards in" not in train(*d4pg, "algo.v_min=-20", "hydra.run.dir=b")[1]


@pytest.mark.parametrize(("given", "updates"), [((), 50), (("updates_per_step=0.5",), 25)])
def test_targets_that_are_never_copied_are_noted(train, given, updates):
    last, never = (f"algo.target_copy_every={number // 2 * 2}" for number in (updates, updates + 2))
    assert "never change" not in train(TOY, *SMALL, *given, last, "hydra.run.dir=a")[1]
    note = f"note: {never}: the targets never change, since this run makes {updates} updates\n"
    assert note in train(TOY, *SMALL, *given, never, "hydra.run.dir=b")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algo=td33"], "did you mean td3"),
        (["algo.tau=2"], "algo.tau=2: should be less than or equal to 1"),
        (["seed=-5"], "seed=-5"),
        (["env_threads=-2"], "env_threads=-2: should be 'auto' or greater than or equal to 1"),
        (["env_processes=0"], "env_processes=0: should be 'auto' or greater than or equal to 1"),
        (["total_stepz=5"], "total_stepz: unknown key; did you mean total_steps?"),
        (["env=HalfChetah-v4"], "did you mean HalfCheetah-v4"),
        (["env=HalfCheetah"], "did you mean HalfCheetah-v"),
        (["env=no_such_module:Env-v0"], "env.id=no_such_module:Env-v0"),
        (["env=CartPole-v1"], "must be continuous"),
        (["env=toy_envs:Toy/Spaces-v0", "env.kwargs.kind=discrete"], "must be continuous"),
        (["env=toy_envs:Toy/Spaces-v0", "env.kwargs.kind=unbounded"], "must be bounded"),
        (["env=toy_envs:Toy/Spaces-v0", "env.kwargs.kind=image"], "images"),
        ([TOY, "env.kwargs.nonsense=1"], "cannot be created"),
        (["device=cuda:99"], "device=cuda:99"),
        (["algo.critic_action_layer=9"], "algo.critic_action_layer=9: must be from 1 to 3"),
        ([TOY, "hydra.run.dir=taken"], "taken: already exists"),
        ([TOY, "hydra.run.dir=taken/file/run"], "cannot be written"),
        (["buffer_size=1e12", "total_steps=9e8", "num_seeds=50"], "GiB of memory are free"),
        (["-m", "algo=ddpg,td33"], "did you mean td3"),
        (["-m", "algo.tau=0.5,2"], "algo.tau=2"),
        (["-m", TOY, "algo.target_copy_every=4,5"], "algo.target_copy_every=5: must be a multiple of policy_delay=2"),
        (["resume=outputs/x"], "no such folder"),
        (["--experimental-rerun", "x.pickle"], "--experimental-rerun: unknown flag"),
        (["noise=colored", "noise.beta=5"], "noise.beta=5: should be less than or equal to 4"),
        (["noise={a:1}"], "noise={a:1}: must be one of colored, gaussian, none, ou, pink"),
        (["experiment={a:1}"], "experiment={a:1}: must be one of d4pg_acme, "),
        (["hydra/launcher=[[1]]"], "hydra/launcher=[[1]]: must be one of basic, local"),
        (["-m", "hydra/launcher=nonsense"], "hydra/launcher=nonsense: must be one of basic, local"),
        (["-m", "algo.actor_lr=interval(0,1)"], "algo.actor_lr=interval(0,1): has no list of values"),
        (["algo.gamma=0.9"], "algo.gamma: unknown key; use algo.discount"),
        (["algo.hidden_sizes=[64,", "64]"], "write 'algo.hidden_sizes=[64, 64]'"),
        (["total_steps", "=", "5"], "total_steps = 5: write total_steps=5"),
        (["hydra.run.dir=~/x"], "hydra.run.dir=~/x: ~ is not expanded; write hydra.run.dir=$HOME/x"),
        (["resume=~/x"], "write resume=$HOME/x"),
        (["--config-dir=~/x"], "write --config-dir=$HOME/x"),
        (["hydra.job.chdir=${nothing}"], "hydra.job.chdir: Interpolation key 'nothing' not found"),
        (["--env", "Hopper-v4"], "--env: unknown flag; write env=Hopper-v4"),
        (["--total-timesteps=1000"], "--total-timesteps: unknown flag; write total_steps=1000"),
        (["--lr", "3e-4"], "--lr: unknown flag; write algo.actor_lr=3e-4 algo.critic_lr=3e-4"),
        (["--polyak", "0.995"], "--polyak: unknown flag; use algo.tau, which is 1 - polyak"),
        (["-sc"], "-sc: takes install=SHELL or uninstall=SHELL"),
        (["-sc", "install=x"], "-sc: takes install=SHELL or uninstall=SHELL"),
        (["-sc", "install=[1]", "seed=1"], "-sc: takes install=SHELL or uninstall=SHELL"),
        (["--info", "nonsense"], "--info=nonsense: should be one of all, config,"),
        (["--info", "defaults", "-m"], "-m and --info: cannot be given together"),
        (["--info", "algo=td33"], "did you mean td3"),
        (["--cfg"], "-c/--cfg: expected one argument"),
        (["--cfg", "hydra", "--package", "hydra.nonsense"], "--package=hydra.nonsense: no such key"),
        (["--config-name", "other"], "--config-name: unknown flag"),
        (["-r"], "-r: unknown flag"),
        (["--cfg", "everything"], "-c/--cfg: invalid choice: 'everything' (choose from 'job', 'hydra', 'all')"),
        (["--resolve"], "need --cfg"),
        (["--cfg", "job", "--resolve", "algo.tau=2"], "algo.tau=2"),
        (["-m", "--cfg", "job", "--resolve", "seed=1,2"], "leave out -m"),
        (["-m", "--cfg", "job", "seed=1,2"], "leave out -m"),
        (["-m", "seed=range(0)"], "the sweep has no jobs"),
        (["hydra.run.dir=a=b"], "hydra.run.dir=a=b: not of the form key=value"),
        (["-m", "seed=0,1", "hydra.sweep.dir=a=b"], "hydra.sweep.dir=a=b: not of the form key=value"),
        (["-m", "algo=ddpg,td3", "seed=1,1"], "jobs 0 and 1 would be the same run (algo=ddpg seed=1)"),
        (["-m", "seed=1,1.0"], "jobs 0 and 1 would be the same run"),
        (["-m", "seed=0,1", "algo.tau=0.1", "++seed=5"], "jobs 0 and 1 would be the same run"),
        (["-m", "seed=0,1", "hydra.sweep.subdir=x"], "hydra.sweep.subdir: jobs 0 and 1 would share the folder x"),
        (["-m", "seed=0,1", "hydra.sweep.subdir=${algo.name}"], "would share the folder td3"),
        (["-m", "seed=0,1", "hydra.sweep.subdir=${nothing}"], "hydra.sweep.subdir: Interpolation key 'nothing'"),
        (["-m", "algo=td3,ddpg", "algo.policy_delay=3"], "(with algo=ddpg)"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true"),
        (["hydra.run.dir=x/${nothing}"], "hydra.run.dir: Interpolation key 'nothing' not found"),
        (["device=cuda:99999999999999999999"], "no such device"),
        (["algo.hidden_sizes=[1e7,1e7]"], "not enough memory for these networks"),
    ],
)
def test_a_mistake_costs_one_line_and_no_folder(train, tmp_path, arguments, message):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    code, out, err = train(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("dpg-train: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "taken"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("reward", "seed 0, step 41: reward is not finite"),
        ("obs", "obs is not finite"),
        ("raise", "RuntimeError: the simulator broke"),
        ("exit", "SystemExit: 0"),
    ],
)
def test_a_failure_is_one_line_and_stands_in_the_log(train, tmp_path, bad, reason):
    arguments = ["env.kwargs.bad_step=41", f"env.kwargs.bad={bad}", *SMALL, "eval.every=60", "hydra.run.dir=run"]
    code, _out, err = train(TOY, *arguments)
    assert code == 1
    assert reason in err
    assert err.count("\n") == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["last_step"]) == ("failed", 40)
    assert reason in record["error"]
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()


def test_a_failure_stands_in_the_log_of_every_seed(train, tmp_path):
    assert train(TOY, "env.kwargs.bad_step=41", "num_seeds=2", *SMALL, "hydra.run.dir=run")[0] == 1
    for folder in ("run", "run/seed_0", "run/seed_1"):
        assert "Traceback" in (tmp_path / folder / "train.log").read_text()
        assert json.loads((tmp_path / folder / "run.json").read_text())["status"] == "failed"


def test_several_seeds_each_have_a_complete_run_folder(train, tmp_path):
    assert train(TOY, *SMALL, "seed=4", "num_seeds=2", "hydra.run.dir=both")[0] == 0
    assert train(TOY, *SMALL, "seed=5", "hydra.run.dir=alone")[0] == 0
    config = yaml.safe_load((tmp_path / "both" / "seed_5" / "config.yaml").read_text())
    assert (config["seed"], config["num_seeds"]) == (5, 1)
    member, single = ({p.name for p in (tmp_path / path).iterdir()} for path in ("both/seed_5", "alone"))
    assert {n for n in member if "tfevents" not in n} == {n for n in single if "tfevents" not in n}
    assert {"config.yaml", "run.json", "train.log", ".hydra"} <= {p.name for p in (tmp_path / "both").iterdir()}
    assert yaml.safe_load((tmp_path / "both/seed_5/.hydra/config.yaml").read_text())["seed"] == 5
    overrides = yaml.safe_load((tmp_path / "both/seed_5/.hydra/overrides.yaml").read_text())
    assert overrides[-2:] == ["seed=5", "num_seeds=1"]
    hydra = yaml.safe_load((tmp_path / "both/seed_5/.hydra/hydra.yaml").read_text())["hydra"]
    assert hydra["overrides"]["task"] == overrides
    assert hydra["runtime"]["output_dir"] == str(tmp_path / "both" / "seed_5")
    assert "seed=4" not in overrides
    beside, alone = (lines(tmp_path / p / "evaluations.jsonl") for p in ("both/seed_5", "alone"))
    np.testing.assert_allclose(beside[0]["returns"], alone[0]["returns"], rtol=1e-5)


@pytest.mark.parametrize("command_fixture", ["train", "evaluate"])
def test_version(request, command_fixture):
    code, out, err = request.getfixturevalue(command_fixture)("--version")
    assert (code, err) == (0, "")
    versions = dict(line.split(" ") for line in out.splitlines())
    assert versions["dpg-cli"] == __version__
    assert {"torch", "gymnasium", "mujoco"} <= versions.keys()


def test_flags_of_hydra_may_stand_anywhere(train):
    code, out, err = train("algo=ddpg", "--cfg", "hydra", "--package=hydra.run", "hydra.run.dir=here")
    assert (code, out, err) == (0, "# @package hydra.run\ndir: here\n", "")
    assert "algo: ddpg" in train("--info", "defaults-tree", "algo=ddpg")[1]
    assert "algo/ddpg" in train("--info", "algo=ddpg")[1]


def test_a_folder_of_ones_own_files(train, tmp_path):
    for group, name, text in (("noise", "loud", "name: gaussian"), ("env", "swing", "id: Pendulum-v1")):
        (tmp_path / "own" / group).mkdir(parents=True)
        (tmp_path / "own" / group / f"{name}.yaml").write_text(text)
    given = ["--config-dir", "own"]
    out = train("--help", *given)[1]
    assert "gaussian, loud, none, ou" in out
    assert "swing" in out
    assert "id: Pendulum-v1" in train(*given, "env=swing", "--cfg", "job", "--resolve")[1]
    assert "loud, none, ou, pink, random_scale; did you mean loud?" in train(*given, "noise=lod")[2]
    assert "--config-dir has env=swing" in train(*given, "env=swnig")[2]
    assert "--config-dir=nowhere: no such folder" in train("--config-dir", "nowhere")[2]


@pytest.fixture
def own_module(tmp_path):
    """A module in the working directory, which writes a file when it is imported."""
    source = "from pathlib import Path\nPath('imported').touch()\n"
    source += "import gymnasium\nfrom toy_envs import Reach\n"
    source += "gymnasium.register('Here-v0', Reach, max_episode_steps=20)\n"
    (tmp_path / "envs_here.py").write_text(source)

    def forget():
        (tmp_path / "imported").unlink(missing_ok=True)
        sys.modules.pop("envs_here", None)
        gym.registry.pop("Here-v0", None)
        sys.path[:] = [place for place in sys.path if place != str(tmp_path)]

    yield forget
    forget()


def test_a_module_in_the_working_directory_is_found_but_not_for_a_strangers_folder(
    train, evaluate, tmp_path, own_module
):
    code, _, err = train("env=envs_here:Here-v0", *SMALL, "hydra.run.dir=run")
    assert (code, err) == (0, "")
    for run in (lambda *given: evaluate("run", *given), lambda *given: train("resume=run", "total_steps=80", *given)):
        own_module()
        code, _, err = run()
        assert code == 2
        assert "trust=true" in err
        assert not (tmp_path / "imported").exists()
        assert str(tmp_path) not in sys.path
        code, _, err = run("trust=true")
        assert (code, err) == (0, "")
        assert (tmp_path / "imported").exists()


def test_a_file_in_the_working_directory_hides_no_installed_module(train, tmp_path):
    for name in ("gymnasium", "torch", "random"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    arguments = ["env=Pendulum-v1", *SMALL, "hydra.run.dir=run"]
    with installed("dpg-train", *arguments, cwd=tmp_path) as process:
        assert process.wait(60) == 0, process.stderr.read()


@contextlib.contextmanager
def installed(program, *arguments, cwd):
    """The installed command in a process of its own, with the signals of a foreground job; never left behind."""

    def foreground():
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    path = os.path.join(os.path.dirname(sys.executable), program)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [path, *arguments], cwd=cwd, stdout=pipe, stderr=pipe, text=True, preexec_fn=foreground
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGHUP, signal.SIGHUP]])
def test_a_signal_ends_the_installed_command_with_a_checkpoint(tmp_path, signals):
    # Two at once is what a closing terminal sends.
    arguments = [
        "env=Pendulum-v1",
        *SMALL[:2],
        "total_steps=1e8",
        "buffer_size=1000",
        "eval.every=1e8",
        "hydra.run.dir=run",
    ]
    with installed("dpg-train", *arguments, cwd=tmp_path) as process:
        while not (tmp_path / "run" / "checkpoints" / "best").exists() and process.poll() is None:
            time.sleep(0.1)
        time.sleep(0.5)
        for number in signals:
            process.send_signal(number)
        _out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signals[0], err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert (tmp_path / "run" / "checkpoints" / "latest").readlink().name == f"step_{record['last_step']:09d}"
    assert "resume with dpg-train resume=run" in err.splitlines()[-1]


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    monkeypatch.setattr(signals_of_a_run, "_ignored", None)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_outlives_the_pipe_that_it_writes_to(tmp_path):
    arguments = ["env=Pendulum-v1", *SMALL[:2], "total_steps=600", "eval.every=50", "eval.episodes=1"]
    with installed("dpg-train", *arguments, "hydra.run.dir=run", cwd=tmp_path) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0, process.stderr.read()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("env=Half", {"env=HalfCheetah-v4", "env=HalfCheetah-v5"}),
        ("env=phys2d/P", {"env=phys2d/Pendulum-v0"}),
        ("algo=", {"algo=ddpg", "algo=td3", "algo=td3/without_delay"}),
        ("experiment=td3_", {"experiment=td3_paper", "experiment=td3_ablation"}),
        ("algo.policy_d", {"algo.policy_delay="}),
        ("total_", {"total_steps="}),
        ("al", {"algo=", "algo."}),
        ("-m 'seed=range(5)' nois", {"noise="}),
        ("env.kwargs.g=9 alg", {"algo=", "algo."}),
        ("-m algo=ddpg,td3 experiment=td3_v", {"experiment=td3_vs_ddpg"}),
    ],
)
def test_completion(train, monkeypatch, typed, completions):
    monkeypatch.setenv("COMP_LINE", f"dpg-train {typed}")
    monkeypatch.setenv("COMP_POINT", str(len(f"dpg-train {typed}")))
    code, out, err = train("-sc", "query=bash")
    assert (code, err) == (0, "")
    assert completions <= set(out.split())
    assert all(word.startswith(typed.split()[-1]) for word in out.split())


def test_completion_in_the_middle_of_a_line(train, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "dpg-train env=Half seed=3")
    monkeypatch.setenv("COMP_POINT", str(len("dpg-train env=Half")))
    assert train("-sc", "query=bash")[1].split() == ["env=HalfCheetah-v4", "env=HalfCheetah-v5"]


def test_completion_after_nonsense_does_not_complain(train, monkeypatch):
    for line in ("dpg-train 'open al", "dpg-train algo=[ al", "dpg-train no=key env.al", "dpg-train --cfg al"):
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        code, _, err = train("-sc", "query=bash")
        assert (code, err) == (0, ""), line


def test_completion_installs(train):
    code, out, _ = train("-sc", "install=bash")
    assert code == 0
    assert "complete -o nospace" in out


@pytest.mark.parametrize("overrides", [[], ["algo=ddpg", "num_seeds=2", "experiment=our_ddpg", "noise=ou"]])
def test_the_resolved_config_is_what_a_run_writes(train, tmp_path, overrides):
    arguments = [TOY, *SMALL, *overrides, "hydra.run.dir=run"]
    code, shown, err = train("--cfg", "job", "--resolve", *arguments)
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert train(*arguments)[0] == 0
    assert (tmp_path / "run" / "config.yaml").read_text() == shown


def test_the_resolved_config_of_a_sweep_says_over_what(train):
    arguments = ["--cfg", "job", "--resolve", "experiment=td3_vs_ddpg"]
    assert "sweep over algo=td3,ddpg; " in train(*arguments)[2]
    assert train(*arguments, "algo=td3")[2] == ""


def test_a_job_says_which_of_how_many_it_is_and_what_differs(train, tmp_path):
    code, out, _ = train("-m", TOY, "algo=ddpg,td3", "seed=3,4", *SMALL, "hydra.sweep.dir=sweep")
    assert code == 0
    assert "[3/4] job 2 algo=td3 seed=3: td3 on " in out
    scores = [re.fullmatch(r" *(\d) +(.*?) +(-?[\d.]+)", line) for line in out.splitlines()]
    named = {match[1]: match[2] for match in scores if match}
    assert named["3"] == "algo=td3 seed=4"
    links = {path.name: str(path.readlink()) for path in (tmp_path / "sweep" / "tensorboard").iterdir()}
    names = ["algo=ddpg seed=3", "algo=ddpg seed=4", "algo=td3 seed=3", "algo=td3 seed=4"]
    assert links == {name: f"../{job}" for job, name in enumerate(names)}
    assert "tensorboard --logdir sweep/tensorboard" in out


def test_every_line_of_a_sweep_names_its_job(train):
    code, out, _ = train("-m", "env=toy_envs:Toy/Odd-v0", "seed=0,1", *SMALL, "hydra.sweep.dir=sweep")
    assert code == 0
    assert "[1/2] job 0  note: " in out
    lines = out.partition("job  settings that differ")[0].splitlines()
    assert all(re.match(r"\[[12]/2\] job [01] ", line) for line in lines), lines


def test_the_table_of_a_sweep_has_the_mean_over_seeds(train):
    code, out, _ = train("-m", TOY, "algo=ddpg,td3", "seed=3,4,5", *SMALL, "hydra.sweep.dir=sweep")
    assert code == 0
    scores = np.array(re.findall(r"^ *\d  algo=\w+ seed=\d +(-?[\d.]+)", out, re.MULTILINE), float).reshape(2, 3)
    means = re.findall(r"^ *3  (algo=\w+) +(-?[\d.]+) ± ([\d.]+)$", out, re.MULTILINE)
    assert [name for name, *_ in means] == ["algo=ddpg", "algo=td3"]
    np.testing.assert_allclose(np.array([mean for _, mean, _ in means], float), scores.mean(axis=1), atol=0.11)
    np.testing.assert_allclose(np.array([std for *_, std in means], float), scores.std(axis=1), atol=0.11)


def test_the_mean_over_the_seeds_of_one_process(train, tmp_path):
    code, out, _ = train("-m", TOY, "algo=ddpg,td3", "num_seeds=2", *SMALL, "hydra.sweep.dir=sweep")
    assert code == 0
    evaluations = [lines(tmp_path / f"sweep/0/seed_{seed}/evaluations.jsonl") for seed in (0, 1)]
    scores = [np.mean([np.mean(record["returns"]) for record in own]) for own in evaluations]
    assert re.search(rf"^ *2  algo=ddpg +{np.mean(scores):.1f} ± {np.std(scores):.1f}$", out, re.MULTILINE)
    assert "mean ± spread over seeds" not in train("-m", TOY, "algo=ddpg,td3", *SMALL, "hydra.sweep.dir=other")[1]


def test_names_that_are_no_file_names(train, tmp_path):
    """A slash, a name that is too long, and two that are the same by then."""
    long = [f"[{','.join(['4'] * count)}]" for count in (120, 121)]
    keys = [f"{TOY},toy_envs:Toy/Drawing-v0", f"algo.hidden_sizes={','.join(long)}", *SMALL[1:], "total_steps=1"]
    assert train("-m", *keys, "hydra.sweep.dir=sweep")[0] == 0
    links = list((tmp_path / "sweep" / "tensorboard").iterdir())
    assert sorted(str(path.readlink()) for path in links) == ["../0", "../1", "../2", "../3"]
    assert all((path / "run.json").exists() for path in links)


def test_the_hparams_tab_shows_every_run_once_and_every_key(train, tmp_path):
    """Asked of TensorBoard's own plugin, over a sweep whose first run knows fewer keys than its second."""
    assert train("-m", TOY, "algo=ddpg,td3", "num_seeds=2", *SMALL, "hydra.sweep.dir=sweep")[0] == 0
    (tmp_path / "sweep").rename(tmp_path / "moved, and: renamed")
    folder = tmp_path / "moved, and: renamed" / "tensorboard"
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    runs = [f"algo={algo} seed={seed}" for algo in ("ddpg", "td3") for seed in (0, 1)]
    assert sorted(multiplexer.Runs()) == runs
    provider = data_provider.MultiplexerDataProvider(multiplexer, "")
    context = Context(TBContext(data_provider=provider))
    experiment = get_experiment.Handler(
        RequestContext(), context, "", api_pb2.GetExperimentRequest(include_metrics=True)
    ).run()
    request = api_pb2.ListSessionGroupsRequest(slice_size=10, include_metrics=True)
    request.allowed_statuses.extend(api_pb2.Status.values())
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    assert sorted(group.name for group in groups) == [
        f"algo={algo} seed={seed} (sweep/{job})" for job, algo in enumerate(("ddpg", "td3")) for seed in (0, 1)
    ]
    assert all(len(group.sessions) == 1 for group in groups)
    assert all("eval/return_mean" in {value.name.tag for value in group.metric_values} for group in groups)
    assert {"algo.policy_delay", "algo.tau", "seed", "env.id"} <= {info.name for info in experiment.hparam_infos}
    assert "eval/return_mean" in {info.name.tag for info in experiment.metric_infos}


@pytest.mark.parametrize("side_by_side", [False, True])
def test_jobs_side_by_side_have_one_thread_each(train, tmp_path, monkeypatch, side_by_side):
    monkeypatch.setattr(config, "has_basic_launcher", lambda composed: not side_by_side)
    settings = [setting for setting in SMALL if setting != "threads=1"]
    assert train("-m", TOY, *settings, "total_steps=20", "hydra.sweep.dir=sweep")[0] == 0
    stored = yaml.safe_load((tmp_path / "sweep/0/config.yaml").read_text())
    chosen = {stored[key] for key in ("threads", "env_threads", "env_processes")}
    assert chosen == ({1} if side_by_side else {"auto"})


def test_several_seeds_with_an_interpolation_on_the_command_line(train, tmp_path):
    settings = [*SMALL, "num_seeds=2", "learning_starts=${algo.batch_size}", "hydra.run.dir=run"]
    assert train(TOY, *settings)[0] == 0
    for seed in (0, 1):
        stored = yaml.safe_load((tmp_path / f"run/seed_{seed}/config.yaml").read_text())
        assert stored["learning_starts"] == stored["algo"]["batch_size"]
        overrides = yaml.safe_load((tmp_path / f"run/seed_{seed}/.hydra/overrides.yaml").read_text())
        assert "learning_starts=${algo.batch_size}" in overrides


@pytest.mark.parametrize("mistake", ["+hydra.callbacks.x._target_=nowhere.Class", "hydra.job_logging.root.level=LOUD"])
@pytest.mark.parametrize("where", [["hydra.run.dir=run"], ["-m", "seed=0,1", "hydra.sweep.dir=run"]])
def test_a_mistake_in_hydras_own_keys_leaves_no_folder(train, tmp_path, mistake, where):
    code, out, err = train(TOY, *SMALL, mistake, *where)
    gc.collect()  # a file that is left open warns here, not in another test
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("dpg-train: ")
    assert "nowhere.Class" in err or "root logger" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["launcher", "sweeper"])
@pytest.mark.parametrize("mistake", ["._target_=nowhere.Class", "=nonsense", "=null"])
def test_a_launcher_or_sweeper_that_does_not_exist_leaves_no_folder(train, tmp_path, key, mistake):
    code, out, err = train(TOY, *SMALL, "-m", "seed=0,1", f"hydra.{key}{mistake}", "hydra.sweep.dir=run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("dpg-train: ")
    assert not (tmp_path / "run").exists()


def test_a_sweep_whose_folder_is_removed_still_says_which_job_failed(train, tmp_path, monkeypatch):
    def fail(config, where, *_, **__):
        shutil.rmtree(tmp_path / "run")
        return job.Result(1, error="gone")

    monkeypatch.setattr(job, "run", fail)
    code, _, err = train(TOY, *SMALL, "-m", "seed=0", "hydra.sweep.dir=run")
    assert (code, err) == (1, "dpg-train: job 0 failed: gone\n")


@pytest.mark.parametrize("arguments", [["algo=td3", "algo=ddpg"], ["-m", "algo=td3,ddpg", "algo=ddpg"]])
def test_a_group_given_twice_is_rejected(command, arguments, tmp_path):
    code, out, err = command(train_command.main, *arguments)
    assert (code, out, err) == (2, "", f"dpg-train: {arguments[-2]} {arguments[-1]}: algo is given twice\n")
    assert list(tmp_path.iterdir()) == []
