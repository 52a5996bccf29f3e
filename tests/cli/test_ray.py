"""`hydra/launcher=ray`: real jobs, killed ones, failed ones, and Ctrl-C. Skipped without the extra `ray`."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import SMALL

pytest.importorskip("ray")
pytest.importorskip("hydra_plugins.hydra_ray_launcher")

COMMAND = [sys.executable, "-c", "from dpg_cli.cli.train import main; main()"]
ENVIRON = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}
RAY = ["hydra/launcher=ray", "hydra.launcher.ray.init.address=local", "hydra.launcher.ray.init.num_cpus=2"]
KILLED = """
import os
import gymnasium
from toy_envs import Reach


class Killed(Reach):
    '''Its process is killed once, at a step of the training.'''

    def __init__(self, mark=None, **arguments):
        super().__init__(**arguments)
        self.mark, self.steps = mark, 0

    def step(self, action):
        self.steps += 1
        if self.mark and self.steps > 200 and not os.path.exists(self.mark):
            open(self.mark, "w").close()
            os.kill(os.getpid(), 9)
        return super().step(action)


gymnasium.register("Killed-v0", Killed, max_episode_steps=1000)
"""


def states(folder):
    return [entry["state"] for entry in json.loads((folder / "sweep.json").read_text())["jobs"]]


def evaluations(folder):
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("*/evaluations.jsonl"))}


def run(tmp_path, *arguments):
    done = subprocess.run([*COMMAND, "-m", *arguments], cwd=tmp_path, env=ENVIRON, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_killed_job_resumes_and_relative_paths_and_modules_are_found(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    settings = ["env=killed:Killed-v0", *SMALL, "total_steps=400", "checkpoint.every=50", "seed=0,1", "device=cpu"]
    (tmp_path / "mark").touch()
    assert run(tmp_path, *settings, "env.kwargs.mark=./mark", "hydra.sweep.dir=plain")[0] == 0
    (tmp_path / "mark").unlink()
    code, _, err = run(tmp_path, *RAY, *settings, "env.kwargs.mark=./mark", "hydra.sweep.dir=ray")
    assert (code, states(tmp_path / "ray")) == (0, ["done", "done"]), err
    assert (tmp_path / "mark").exists()
    assert evaluations(tmp_path / "ray") == evaluations(tmp_path / "plain")
    resumed = [json.loads(path.read_text()).get("resumed") for path in (tmp_path / "ray").glob("*/run.json")]
    assert sum(entry is not None for entry in resumed) == 1


def test_one_job_that_is_lost_or_fails_does_not_end_the_others(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    settings = ["env=killed:Killed-v0", *SMALL, "total_steps=300", "seed=0", "device=cpu"]
    marks = "env.kwargs.mark=./mark,null"
    retries = "hydra.launcher.ray.remote.max_retries=0"
    code, out, err = run(tmp_path, *RAY, retries, *settings, marks, "hydra.sweep.dir=sweep")
    assert (code, states(tmp_path / "sweep")) == (1, ["failed", "done"])
    reason = "its process or node died 1 times (hydra.launcher.ray.remote.max_retries=0)"
    assert f"dpg-train: job 0 failed: {reason}\n" in err
    assert "resume       dpg-train resume=sweep" in out


def test_ctrl_c_stops_every_job_with_a_checkpoint(tmp_path):
    settings = ["env=toy_envs:Toy/Reach-v0", *SMALL, "total_steps=1_000_000", "eval.every=1000", "checkpoint.every=100"]
    arguments = [*COMMAND, "-m", *RAY, *settings, "seed=0,1,2", "device=cpu", "hydra.sweep.dir=sweep"]
    sweep = subprocess.Popen(arguments, cwd=tmp_path, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("sweep/*/checkpoints/step_*[1-9]00"))) < 3:
        assert time.monotonic() < end
        time.sleep(0.1)
    sweep.send_signal(signal.SIGINT)
    out = sweep.communicate(timeout=60)[0].decode()
    assert sweep.returncode == 130
    assert states(tmp_path / "sweep") == ["pending"] * 3
    statuses = [json.loads(path.read_text())["status"] for path in (tmp_path / "sweep").glob("*/run.json")]
    assert statuses == ["interrupted"] * 2
    assert "1 job did not start" in out
    assert "(raylet)" not in out


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("hydra.launcher.ray.init.address=127.0.0.1:1", "hydra.launcher.ray.init.address=127.0.0.1:1: no Ray cluster"),
        ("+hydra.launcher.ray.init.nonsense=1", "hydra.launcher.ray.init: Unknown keyword argument(s): nonsense"),
        ("+hydra.launcher.ray.remote.nonsense=1", "hydra.launcher.ray.remote: Invalid option keyword nonsense"),
    ],
)
def test_a_mistake_leaves_no_folder(tmp_path, key, message):
    code, _, err = run(tmp_path, *RAY, key, "env=toy_envs:Toy/Reach-v0", *SMALL, "seed=0", "hydra.sweep.dir=sweep")
    assert (code, err.splitlines()[-1].startswith(f"dpg-train: {message}")) == (2, True), err
    assert not (tmp_path / "sweep").exists()
