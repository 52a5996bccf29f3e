"""`hydra/launcher=local`: real jobs in parallel, its keys, GPUs, cores and memory."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from commands import SMALL, TOY
from omegaconf import OmegaConf
from screen import Terminal

from dpg_cli import config as configs
from dpg_cli.cli import gpus, job_memory, launch
from dpg_cli.cli.job_memory import most_at_once
from dpg_cli.errors import UserError
from dpg_cli.sweeps.local import Worker

LOCAL = ["-m", "hydra/launcher=local"]
WITHOUT_THREADS = [setting for setting in SMALL if setting != "threads=1"]
COMMAND = [sys.executable, "-c", "from dpg_cli.cli.train import main; main()"]


def evaluations(folder):
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("*/evaluations.jsonl"))}


def jobs_of(pid):
    """The processes of a sweep: jobs and spare interpreters."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children()
    return []


@pytest.fixture
def environ():
    """So that commands find this code and the toy environments, as this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- jobs in parallel ---


def test_jobs_in_parallel_are_those_of_the_plain_sweep(train, tmp_path):
    settings = [TOY, *WITHOUT_THREADS, "seed=0,1", "algo=td3,ddpg"]
    one = ["threads=1", "env_threads=1", "env_processes=1", "device=cpu"]
    assert train("-m", *settings, *one, "hydra.sweep.dir=plain")[0] == 0
    code, out, err = train(*LOCAL, *settings, *one, "hydra.launcher.n_jobs=2", "hydra.sweep.dir=local")
    assert (code, err) == (0, "")
    assert evaluations(tmp_path / "local") == evaluations(tmp_path / "plain")
    assert len(evaluations(tmp_path / "local")) == 4
    for number in range(4):
        of_both = [tmp_path / name / str(number) for name in ("plain", "local")]
        plain, local = (yaml.safe_load((path / ".hydra/config.yaml").read_text()) for path in of_both)
        assert local == plain
        assert (of_both[1] / "config.yaml").read_text() == (of_both[0] / "config.yaml").read_text()
        hydras = [yaml.safe_load((path / ".hydra/hydra.yaml").read_text())["hydra"] for path in of_both]
        assert [node["job"]["num"] for node in hydras] == [number] * 2
        assert hydras[1]["runtime"]["output_dir"] == str(of_both[1])
        log = (of_both[1] / "train.log").read_text()
        assert log.count("done at step 60") == 1
        assert "of 60 steps" in (of_both[1] / "output.log").read_text()
        link = tmp_path / "local/tensorboard" / f"seed={plain['seed']} algo={plain['algo']['name']}"
        assert link.resolve() == of_both[1]
    lines = [line.partition("  ")[2] for line in out.splitlines() if line[2:3] == ":"]
    assert sum("started: seed=" in line for line in lines) == 4
    assert sum(" done after 0:00:" in line for line in lines) == 4


def test_a_failed_job_is_reported_with_its_log_and_the_others_end(train, tmp_path):
    bad = ["env.kwargs.bad=raise", "env.kwargs.bad_step=250,null", "total_steps=300", "eval.every=100"]
    code, out, err = train(*LOCAL, TOY, *SMALL, *bad, "device=cpu", "hydra.sweep.dir=sweep", "hydra.launcher.n_jobs=1")
    assert code == 1
    assert (
        "job 0 failed: the environment Reach raised RuntimeError: the simulator broke (log: sweep/0/output.log)" in out
    )
    assert "[2/2] job 1 done after" in out
    assert err == "dpg-train: job 0 failed: the environment Reach raised RuntimeError: the simulator broke\n"
    assert json.loads((tmp_path / "sweep/1/run.json").read_text())["status"] == "done"
    assert "the simulator broke" in (tmp_path / "sweep/0/output.log").read_text()


def test_a_job_whose_folder_cannot_be_written_names_it(train, tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launch, "run_job", full)
    code, _, err = train(*LOCAL, TOY, *SMALL, "seed=0", "hydra.launcher.n_jobs=1", "hydra.sweep.dir=sweep")
    assert code == 1
    assert re.fullmatch(r"dpg-train: job 0 failed: \S+/sweep: No space left on device; [\d,]+ bytes are free\n", err)


# --- kills and signals ---

SLOW = ["total_steps=1_000_000", "eval.every=1000", "checkpoint.every=100", "eval.episodes=1"]


@pytest.fixture
def sweeping(tmp_path, environ):
    """Two endless jobs side by side in a command of its own, once both have trained; no process is left afterwards."""
    arguments = [*COMMAND, *LOCAL, TOY, *SMALL, *SLOW, "seed=0,1", "device=cpu", "hydra.launcher.n_jobs=2"]
    arguments += ["hydra.sweep.dir=sweep"]
    with Terminal(arguments, 80, cwd=tmp_path, env=environ) as terminal:
        started = time.monotonic()

        def training():
            assert time.monotonic() - started < 60
            return len(list(tmp_path.glob("sweep/*/checkpoints/step_*[1-9]00"))) >= 2

        terminal.read_until(training)
        processes = jobs_of(terminal.process.pid)
        assert len(processes) == 2
        yield terminal, processes
        wait_for(lambda: not any(map(lives, processes)), 12.0)


def lives(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def statuses(tmp_path):
    return [json.loads((tmp_path / f"sweep/{number}/run.json").read_text())["status"] for number in range(2)]


def test_a_signal_before_the_first_job_starts_none(train, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "setup_globals", lambda: os.kill(os.getpid(), signal.SIGINT))
    code, out, err = train(*LOCAL, TOY, *SMALL, "seed=0,1", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep")
    assert (code, err) == (130, "dpg-train: stopping with a checkpoint; a second signal stops at once\n")
    assert "2 jobs did not start" in out
    assert not list(tmp_path.glob("sweep/[01]"))


def test_ctrl_c_stops_every_job_with_a_checkpoint(sweeping, tmp_path):
    terminal, _ = sweeping
    terminal.type(b"\x03")
    assert terminal.wait() == 130
    assert statuses(tmp_path) == ["interrupted"] * 2
    assert "job 0 stopped" in " ".join(terminal.lines())


def test_a_second_ctrl_c_stops_at_once(sweeping, tmp_path):
    terminal, processes = sweeping
    for process in processes:
        process.send_signal(signal.SIGSTOP)  # so that they cannot stop by themselves
    terminal.type(b"\x03")
    terminal.read_until(lambda: b"a second signal stops at once" in terminal.written)
    time.sleep(1.2)
    terminal.type(b"\x03")
    assert terminal.wait() == 130
    assert statuses(tmp_path) == ["running"] * 2
    assert not any(map(lives, processes))


def test_jobs_write_a_checkpoint_when_the_command_is_killed(sweeping, tmp_path):
    terminal, processes = sweeping
    terminal.process.kill()
    terminal.process.wait()
    wait_for(lambda: not any(map(lives, processes)), 10.0)
    assert statuses(tmp_path) == ["interrupted"] * 2


def test_a_killed_job_resumes_in_its_folder(sweeping, tmp_path):
    terminal, processes = sweeping
    processes[0].kill()

    def resumed():
        return any("resumed" in path.read_text() for path in tmp_path.glob("sweep/*/run.json"))

    terminal.read_until(resumed)
    assert "was started again: killed by SIGKILL, probably out of memory; peak 0." in "".join(terminal.lines())
    terminal.type(b"\x03")
    assert terminal.wait() == 130


# --- its keys ---


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("n_jobs=0", "hydra.launcher.n_jobs=0: must be auto or a whole number of at least 1"),
        ("n_jobs=two", "hydra.launcher.n_jobs=two: must be auto or a whole number of at least 1"),
        ("n_jobs=true", "hydra.launcher.n_jobs=True: must be auto or a whole number of at least 1"),
        ("retries=-1", "hydra.launcher.retries=-1: must be a whole number of at least 0"),
        ("retries=null", "hydra.launcher.retries=None: must be a whole number of at least 0"),
        ("fail_fast=1", "hydra.launcher.fail_fast=1: must be true or false"),
        ("gpus=all", "hydra.launcher.gpus=all: must be auto, none or a list such as [0,1]"),
        ("gpus=[a]", "hydra.launcher.gpus=['a']: must be auto, none or a list such as [0,1]"),
        ("gpus=[0]", "hydra.launcher.gpus=[0]: there is no GPU 0; nvidia-smi finds none"),
        ("njobs=1", "hydra.launcher.njobs: unknown key"),
    ],
)
def test_wrong_keys_leave_no_folder(train, tmp_path, monkeypatch, key, expected):
    monkeypatch.setattr(gpus, "visible", list)
    code, out, err = train(*LOCAL, TOY, *SMALL, "seed=0,1", f"hydra.launcher.{key}", "hydra.sweep.dir=sweep")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"dpg-train: {expected}")
    assert list(tmp_path.iterdir()) == []


def test_keys_and_defaults(monkeypatch):
    monkeypatch.setattr(gpus, "visible", list)
    assert launch.check({"_target_": "x"}) == launch.Options(None, 1, False, None)
    given = {"n_jobs": 3, "retries": 0, "fail_fast": True, "gpus": "none"}
    assert launch.check(given) == launch.Options(3, 0, True, [])
    with pytest.raises(UserError, match="unknown key; the keys are n_jobs, retries, fail_fast, gpus"):
        launch.check({"x": 1})


def test_hydra_finds_the_launcher_without_importing_torch():
    program = (
        "import sys; from hydra.core.plugins import Plugins; from hydra.plugins.launcher import Launcher\n"
        "print(*[kind.__name__ for kind in Plugins.instance().discover(Launcher)])\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'dpg_cli')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    launchers, imported = done.stdout.splitlines()
    assert "LocalLauncher" in launchers.split()
    assert imported == "[]"


# --- GPUs ---

LISTED = "GPU 0: NVIDIA A100 (UUID: GPU-aaaa)\nGPU 1: NVIDIA A100 (UUID: GPU-bbbb)\n"
SLICES = "  MIG 1g.5gb     Device  0: (UUID: MIG-cccc)\n  MIG 1g.5gb     Device  1: (UUID: MIG-dddd)\n"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put a program in the place of nvidia-smi."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(text, code=0):
        program = tmp_path / "bin/nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] || exit 9\ncat <<'END'\n{text}END\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.mark.parametrize(
    ("listed", "code", "expected"),
    [
        (LISTED, 0, ["0", "1"]),
        (LISTED + SLICES, 0, ["0", "MIG-cccc", "MIG-dddd"]),
        ("NVIDIA-SMI has failed\n", 9, []),
        ("No devices found.\n", 0, []),
    ],
)
def test_gpus_are_those_that_nvidia_smi_lists(nvidia_smi, listed, code, expected):
    nvidia_smi(listed, code)
    assert gpus.visible() == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", []), ("-1", []), ("3", ["3"]), ("2, 0", ["2", "0"]), ("1,-1,0", ["1"]), ("GPU-aaaa", ["GPU-aaaa"])],
)
def test_cuda_visible_devices_counts_first(nvidia_smi, monkeypatch, given, expected):
    nvidia_smi(LISTED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.visible() == expected


def test_chosen_gpus_may_be_a_list_of_hydras(nvidia_smi):
    nvidia_smi(LISTED)
    assert launch.check(OmegaConf.create({"gpus": [1]})).gpus == ["1"]
    assert launch.check({"gpus": OmegaConf.create([1])}).gpus == ["1"]


def test_gpus_are_positions_among_the_visible_ones(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert gpus.chosen("gpus", "auto") == ["4", "5"]
    assert gpus.chosen("gpus", [1]) == ["5"]
    assert gpus.chosen("gpus", "none") == []
    with pytest.raises(UserError, match=r"gpus=\[0,2\]: there is no GPU 2; choose from 0 to 1"):
        gpus.chosen("gpus", [0, 2])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.chosen("gpus", "auto") is None


@pytest.fixture
def config():
    overrides = [TOY, *WITHOUT_THREADS]
    return configs.validate(configs.compose(overrides))


def prepared(config):
    return launch.Prepared(config, Path("x"), ("[1/1] job 0", ""), ["dpg-train"], {"A": "1"})


def environ_of(config, devices):
    return launch._document(prepared(config), Worker(gpus=devices), 1)["environ"]


def test_a_job_sees_the_gpu_of_its_worker_unless_it_names_one(config):
    named = config.model_copy(update={"device": "cuda:1"})
    assert environ_of(config, None) == {"A": "1"}
    assert environ_of(config, "MIG-cccc") == {"A": "1", "CUDA_VISIBLE_DEVICES": "MIG-cccc"}
    assert environ_of(config, "") == {"A": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert environ_of(named, "0") == {"A": "1"}


def test_workers_take_gpus_in_turn():
    assert [worker.gpus for worker in launch._workers(3, 1, ["0", "1"])] == ["0", "1", "0"]
    assert [worker.gpus for worker in launch._workers(2, 1, [])] == ["", ""]
    assert [worker.gpus for worker in launch._workers(2, 1, None)] == [None, None]


# --- cores ---


def test_cores_are_divided(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    monkeypatch.setattr(launch, "cores", lambda: 8)
    monkeypatch.setattr(launch, "affinity", lambda: 8)
    assert [worker.cores for worker in launch._workers(3, 2, None)] == [[0, 1], [2, 3], [5, 6]]
    assert [worker.cores for worker in launch._workers(16, 1, None)] == [[core] for core in range(8) for _ in range(2)]
    monkeypatch.setattr(launch, "cores", lambda: 2)  # a container's quota
    assert [worker.cores for worker in launch._workers(2, 1, None)] == [None, None]


def test_a_job_with_one_core_has_one_thread_also_when_it_is_resumed(config):
    alone = configs.load(launch._document(prepared(config), Worker(), 1)["config"])
    assert [getattr(alone, key) for key in launch.THREAD_KEYS] == [1, 1, 1]
    more = configs.load(launch._document(prepared(config), Worker(), 2)["config"])
    assert more == config


# --- memory ---


def test_as_many_jobs_run_at_once_as_fit_into_memory(monkeypatch):
    configs_of = [
        configs.validate(configs.compose([TOY, "buffer_size=1e8", "total_steps=1e8", f"seed={seed}"]))
        for seed in range(3)
    ]
    replay = 1e8 * 4 * 7  # two observations of 2 numbers, an action, a reward and a flag
    monkeypatch.setattr(job_memory, "available_memory", lambda: int(4 * (replay + 2**30)))
    number, note = most_at_once(configs_of, 8, lambda: False)
    assert number == 4
    assert note == (
        "note: n_jobs=auto runs 4 jobs at once, not 8: each may need 3.4 GiB, and 14.4 GiB of memory are free"
    )
    assert most_at_once(configs_of, 3, lambda: False) == (3, None)
    monkeypatch.setattr(job_memory, "available_memory", lambda: 2**20)
    number, note = most_at_once(configs_of, 8, lambda: False)
    assert (number, note[:39]) == (1, "note: n_jobs=auto runs one job at once,")


@pytest.mark.parametrize("broken", ["env=toy_envs:Toy/Nothing-v0", "env=nonsense:X-v0"])
def test_environments_that_cannot_be_created_count_as_small(monkeypatch, broken):
    monkeypatch.setattr(job_memory, "available_memory", lambda: 2**20)
    config = configs.validate(configs.compose([broken, "total_steps=1e8"]))
    assert most_at_once([config], 4, lambda: False) == (4, None)


def test_an_environment_that_hangs_delays_the_start_only_a_little(monkeypatch):
    monkeypatch.setattr(job_memory, "SECONDS", 0.0)
    config = configs.validate(configs.compose([TOY]))
    assert job_memory.environment_sizes([config], lambda: False) == {}
