"""Environments in worker processes: the numbers and errors of a plain loop, and no process that stays behind."""

import functools
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy_envs
from commands import SMALL, TOY
from oracle import differences
from toy_envs import SCRIPTS, local

from dpg_cli import config
from dpg_cli.cli import build, stepping
from dpg_cli.environments import processes as env_processes
from dpg_cli.environments import worker as env_worker
from dpg_cli.environments.group import LocalEnvs
from dpg_cli.environments.make import make_env
from dpg_cli.environments.processes import EnvProcessError, EnvProcesses
from dpg_cli.environments.stepper import Stepper
from dpg_cli.errors import SimulatorError

TIMEOUT = 30.0  # seconds; only a test that fails waits for so long
SEVERAL = [TOY, *SMALL, "num_seeds=2", "num_envs=2", "eval.episodes=3", "noise=ou", "hydra.run.dir=run"]
SIZE = 4  # environments of `scripted`, two in each worker
FINE = ("fine",) * SIZE


def start(make, size=SIZE, count=2):
    return EnvProcesses(make, make(), {"training": size, "evaluation": size}, count)


def scripted_env():
    return functools.partial(make_env, "toy_envs:Toy/Scripted-v0")


@pytest.fixture(scope="module")
def scripted():
    """Two workers that do what the seeds of their environments say; errors leave them as they were."""
    processes = start(scripted_env())
    yield processes
    processes.close()


@pytest.fixture(autouse=True)
def _no_process_is_left(scripted):
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) == before


def played(envs, scripts, kind="training"):
    """Everything that comes back from three steps of two seeds, or the error that ends them."""
    seeds, shape = (7, 42), (2, SIZE // 2)
    obs = np.zeros((*shape, 2), np.float32)
    running = None if kind == "training" else np.ones(shape, bool)
    made = []
    try:
        envs.reset([SCRIPTS.index(script) for script in scripts], obs.reshape(SIZE, 2))
        stepper = Stepper(envs, seeds)
        for step in range(3):
            made.append(obs.tobytes())
            action = np.sin(np.arange(SIZE).reshape(*shape, 1) + step)
            outcome = stepper.step(f"step {step}", action, obs, running)
            made += [array.tobytes() for array in outcome]
            ended = outcome[1] | outcome[2]
            if running is not None:
                running &= ~ended
            elif ended.any():
                envs.restart(np.flatnonzero(ended).tolist(), obs.reshape(SIZE, 2))
    except BaseException as error:
        return type(error).__name__, str(error)
    return made


@pytest.mark.parametrize("kind", ["training", "evaluation"])
@pytest.mark.parametrize(
    "scripts",
    [
        FINE,
        ("fine", "ends", "ends", "fine"),
        ("fine", "raise", "exit", "diverged"),
        ("fine", "fine", "exit", "raise"),
        ("fine", "fine", "fine", "diverged"),
        ("fine", "shape", "fine", "raise"),
        ("fine", "fine", "shape", "reward"),
        ("fine", "fine", "reward", "shape"),
        ("obs", "fine", "reward", "fine"),
        ("fine", "fine", "fine", "obs"),
        ("reset raise", "fine", "fine", "obs"),
        ("fine", "reset shape", "reset raise", "fine"),
        ("reset obs", "fine", "fine", "reset raise"),
        ("fine", "ends", "reset obs", "fine"),
        ("fine", "seeded raise", "seeded raise", "fine"),
    ],
    ids="-".join,
)
def test_processes_return_and_raise_what_a_plain_loop_does(scripted, scripts, kind):
    make = scripted_env()
    plain = played(local([[make() for _ in range(SIZE)]], kind), scripts, kind)
    assert played(scripted.groups[kind], scripts, kind) == plain
    assert played(scripted.groups[kind], FINE, kind) == played(local([[make() for _ in range(SIZE)]], kind), FINE, kind)


@pytest.mark.parametrize(
    ("script", "message"),
    [("local", "LocalError: of no module"), ("two", "WithTwoArgumentsError: 1 and 2")],
)
def test_an_error_that_cannot_be_pickled_is_named(scripted, script, message):
    assert played(scripted.groups["training"], ("fine", "fine", "fine", script)) == (
        "SimulatorError",
        f"the environment Scripted raised {message}",
    )


def test_an_error_shows_where_it_was_raised(scripted):
    envs = scripted.groups["training"]
    with pytest.raises(SimulatorError, match="reset of") as caught:
        envs.reset([SCRIPTS.index("seeded raise")] * SIZE, np.zeros((SIZE, 2), np.float32))
    assert "toy_envs.py" in caught.value.__notes__[0]


def test_warnings_of_environments_are_logged(scripted, caplog):
    with caplog.at_level(logging.INFO):
        played(scripted.groups["training"], ("fine", "fine", "warns", "fine"))
    assert "it wobbles" in caplog.text


def test_workers_ignore_signals_that_stop_the_main_process(scripted):
    for worker in scripted._workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(worker.process.pid, number)
    assert len(played(scripted.groups["training"], FINE)) == 12


def test_a_simulation_that_mujoco_resets_is_named():
    processes = start(functools.partial(make_env, "toy_envs:Toy/UnstableSeed-v0"))
    for kind in ("training", "evaluation"):
        envs, obs = processes.groups[kind], np.zeros((2, 2, 17), np.float32)
        envs.reset([0, 0, 1, 1], obs.reshape(SIZE, 17))
        stepper = Stepper(envs, (7, 42))
        stepper.step("step 1", np.zeros((2, 2, 6)), obs)
        assert envs.unstable() is None
        with pytest.raises(Exception, match="seed 42, step 2: the simulation became unstable"):
            stepper.step("step 2", np.zeros((2, 2, 6)), obs)
        assert envs.unstable() == 2
    processes.close()


# --- whole runs ---


@pytest.mark.parametrize(
    "changes",
    [
        ["env_processes=3"],
        ["env_processes=2", "precision=float64", "env=HalfCheetah-v4", "env.max_episode_steps=15"],
    ],
)
def test_a_training_in_processes_is_the_same(train, trained, tmp_path, changes):
    code, _, err = train(*SEVERAL, *changes)
    assert (code, err) == (0, "")
    assert differences(tmp_path / "run", trained(*SEVERAL, *changes[1:], "env_threads=1", "env_processes=1")) == []
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"environments are stepped in {changes[0][-1]} processes\n" in log


def test_a_training_in_processes_is_resumed_exactly(train, signalled, trained, tmp_path):
    assert signalled("step", 9, [signal.SIGTERM], *SEVERAL, "env_processes=2")[0] == 143
    assert train("resume=run", "trust=true", "env_processes=3")[0] == 0
    assert differences(tmp_path / "run", trained(*SEVERAL, "env_threads=1", "env_processes=1")) == []
    assert "env_processes: 3" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("exit", "SystemExit: 0"),
        ("killed", "process 1 of 2 that steps Reach was killed by SIGKILL; resume with dpg-train resume="),
    ],
)
def test_an_environment_that_ends_its_process_is_a_failure(train, tmp_path, bad, reason):
    code, _, err = train(
        *SEVERAL, "env.kwargs.bad_step=41", f"env.kwargs.bad={bad}", "total_steps=90", "env_processes=2"
    )
    assert (code, err.count("\n")) == (1, 1)
    assert reason in err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("env", ["Toy/Alone-v0", "Toy/Sharing-v0"])
def test_an_environment_that_shares_state_is_stepped_in_a_plain_loop(train, tmp_path, env, monkeypatch):
    monkeypatch.setattr(build, "EnvProcesses", lambda *arguments: pytest.fail("started processes"))
    arguments = [*SEVERAL, f"env=toy_envs:{env}", *(["env.kwargs.what=class"] if "Sharing" in env else [])]
    code, out, err = train(*arguments, "env_processes=4")
    assert (code, err) == (0, "")
    assert f"note: env_processes=4: toy_envs:{env} is stepped in a plain loop instead: its " in out
    assert "environments are stepped one after another: its " in (tmp_path / "run" / "train.log").read_text()


# --- the end of a worker ---


def test_workers_end_when_their_pipe_closes_or_they_are_killed():
    processes = start(scripted_env())
    first, second = processes._workers
    first.connection.close()
    first.process.join(TIMEOUT)
    assert first.process.exitcode == 0
    second.process.kill()
    with pytest.raises(EnvProcessError, match="process 2 of 2 that steps Scripted was killed by SIGKILL"):
        processes.receive([1])
    processes.close()
    processes.close()


def test_a_worker_whose_environment_hangs_is_killed(monkeypatch):
    monkeypatch.setattr(env_processes, "PATIENCE", 0.1)
    processes = start(scripted_env())
    envs, obs = processes.groups["training"], np.zeros((SIZE, 2), np.float32)
    envs.reset([SCRIPTS.index("hangs")] * SIZE, obs)
    for _ in range(2):
        processes.send(0, env_worker.STEP["training"])
    pid = processes._workers[0].process.pid
    processes.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


PROGRAM = """
import functools, os, signal, sys
from dpg_cli.environments.processes import EnvProcesses
from dpg_cli.environments.make import make_env

if __name__ == "__main__":
    make = functools.partial(make_env, "Pendulum-v1")
    processes = EnvProcesses(make, make(), {"training": 2, "evaluation": 2}, 2)
    print(*[worker.process.pid for worker in processes._workers], flush=True)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_workers_end_with_the_main_process(tmp_path, how):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL if how == "killed" else 0, "")
    pids = done.stdout.split()
    assert len(pids) == 2
    end = time.monotonic() + TIMEOUT
    while any(Path("/proc", pid).exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.01)
    assert not [pid for pid in pids if Path("/proc", pid).exists()]


def test_an_environment_that_cannot_be_made_in_a_worker_is_named():
    with pytest.raises(Exception, match="no environment of that id is registered"):
        EnvProcesses(
            functools.partial(make_env, "NoSuch-v0"), make_env("Pendulum-v1"), {"training": 2, "evaluation": 2}, 2
        )


# --- how many processes, and whether ---


@pytest.mark.parametrize(
    ("cores", "microseconds", "given", "count"),
    [
        (16, 60, ["num_seeds=64"], 15),  # 3.84 ms against 5 * 0.06 + 0.15
        (16, 60, ["num_seeds=4", "num_envs=16"], 15),
        (4, 60, ["num_seeds=64"], 3),
        (3, 60, ["num_seeds=64"], 1),
        (16, 60, [], 1),
        (16, 60, ["num_seeds=5"], 1),  # 0.3 ms against 0.21
        (16, 60, ["num_seeds=6"], 6),  # 0.36 ms against 0.21
        (16, 1, ["num_seeds=64"], 1),
        (16, 5000, ["num_seeds=2"], 2),
        (16, None, ["num_seeds=64"], 1),
        (16, 60, ["num_seeds=64", "total_steps=2000"], 1),  # 7 seconds saved
        (16, 60, ["num_seeds=64", "total_steps=4000"], 15),
        (2, 60, ["env_processes=3"], 3),
        (2, None, ["env_processes=30"], 10),
        (16, 60, ["num_seeds=64", "env_processes=1"], 1),
    ],
)
def test_how_many_processes(monkeypatch, cores, microseconds, given, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    seconds = None if microseconds is None else 1e-6 * microseconds
    assert stepping.choose_env_processes(config.validate(config.compose(given)), seconds) == count


@pytest.mark.parametrize(("problem", "processes", "threads"), [(None, 7, 1), ("its steps change it", 1, 1)])
def test_processes_take_the_place_of_threads(monkeypatch, caplog, problem, processes, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    with caplog.at_level(logging.INFO):
        chosen = stepping.choose_stepping(
            config.validate(config.compose(["num_seeds=64"])), problem, [60e-6, 9e-3, 60e-6]
        )
    assert (chosen.processes, chosen.threads.count) == (processes, threads)
    figures = "a vector step takes 0.750 ms in 7 processes and 3.840 ms in this one (estimated)"
    assert (figures in caplog.messages) == (problem is None)


@pytest.mark.parametrize("processes", [1, 2])
def test_after_an_error_every_environment_is_closed_once(monkeypatch, processes):
    closed = []
    monkeypatch.setattr(toy_envs.Reach, "close", lambda env: closed.append(env))
    monkeypatch.setattr(build, "new_algorithm", lambda *_: pytest.fail("no algorithm"))
    with pytest.raises(pytest.fail.Exception, match="no algorithm"):
        build.build(config.validate(config.compose([TOY, "num_seeds=2", "total_steps=100"])), processes=processes)
    assert len(closed) == (1 if processes == 2 else 2 + 2 * 10)  # in this process
    assert len(set(map(id, closed))) == len(closed)


def test_an_environment_that_does_not_close_keeps_no_other_open(caplog):
    closed = []

    class Env(toy_envs.Reach):
        def close(self):
            closed.append(self)
            raise RuntimeError("it is stuck")

    LocalEnvs([Env(), Env(), Env()]).close()
    assert len(closed) == 3
    assert caplog.messages == ["closing Env raised RuntimeError: it is stuck"] * 3


SCRIPT = """
import sys
sys.argv = ["dpg-train", *ARGUMENTS]
from dpg_cli.cli.train import main
main()
"""


def test_a_script_that_trains_is_not_run_again_by_its_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("ARGUMENTS", repr([*SEVERAL, "total_steps=60", "env_processes=2"])))
    path = os.pathsep.join([str(Path(toy_envs.__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


HANGING = """
import functools
from dpg_cli.environments.processes import EnvProcesses
from dpg_cli.environments.make import make_env
import numpy as np
make = functools.partial(make_env, "toy_envs:Toy/Reach-v0", {"bad_step": 1, "bad": "hang"})
processes = EnvProcesses(make, make(), {"training": 2}, 2)
print(*(worker.process.pid for worker in processes._workers), flush=True)
envs = processes.groups["training"]
obs = np.zeros((2, 2), np.float32)
envs.reset([0, 1], obs)
print("stepping", flush=True)
processes.send(0, b"\\0")
processes.receive([0])
"""


def test_a_worker_that_hangs_ends_with_the_main_process():
    path = os.pathsep.join([str(Path(toy_envs.__file__).parent), *sys.path])
    main = subprocess.Popen(
        [sys.executable, "-c", HANGING], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    workers = [int(pid) for pid in main.stdout.readline().split()]
    assert main.stdout.readline() == "stepping\n"
    main.kill()
    main.communicate()
    end = time.monotonic() + TIMEOUT
    while any(map(runs, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(runs, workers))


def runs(pid):
    """Whether a process is there and is no zombie, which is left where nobody asks for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
