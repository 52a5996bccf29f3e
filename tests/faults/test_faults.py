"""What can happen to a run, at chosen moments in this process; `run.py` does it from outside, at any."""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import SMALL, TOY
from damage import DAMAGES, incomplete, misshapen
from faulty_disk import CountingDisk, Crash
from oracle import differences

from dpg_cli.storage import checkpoint

RUN = [TOY, *SMALL, "noise=ou", "noise.decay_steps=100", "algo.normalize_obs=true", "buffer_size=25"]
RUN += ["env.max_episode_steps=14", "checkpoint.keep=9"]
SWITCHES = [*RUN, "network=simba", "network.actor_size=8", "network.critic_size=8", "replay=lap", "algo.n_steps=3"]
SWITCHES = [argument for argument in SWITCHES if not argument.startswith("noise")] + ["noise=pink"]
RUNS = [pytest.param(RUN, id="ou"), pytest.param(SWITCHES, id="simba lap pink")]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("moment", "call", "number"),
    [
        ("random steps", 6, signal.SIGINT),
        ("learning", 17, signal.SIGTERM),
        ("evaluation", 20, signal.SIGHUP),
        ("checkpoint", 20, signal.SIGUSR1),
        ("reset", 25, signal.SIGINT),
        ("begin", 0, signal.SIGTERM),
        ("recorder", 0, signal.SIGHUP),
    ],
)
def test_signals_at_any_moment(train, signalled, trained, tmp_path, moment, call, number, times):
    code, _, err = signalled(moment, call, [number] * times, *RUN, "hydra.run.dir=run")
    assert code == 128 + number
    assert "resume with dpg-train resume=run" in err
    assert checkpoint.valid_steps(tmp_path / "run")[1] == {}
    assert train("resume=run", "trust=true")[0] == 0
    assert differences(tmp_path / "run", trained(*RUN)) == []


def test_a_stopped_job_of_a_sweep_goes_on(train, signalled, trained, tmp_path):
    code, _, err = signalled("step", 100, [signal.SIGTERM], "-m", "seed=3,0,1", *RUN, "hydra.sweep.dir=sweep")
    assert code == 128 + signal.SIGTERM
    assert "resume with dpg-train resume=sweep/1" in err
    assert not (tmp_path / "sweep" / "2").exists()
    assert train("resume=sweep/1", "trust=true")[0] == 0
    assert differences(tmp_path / "sweep" / "1", trained(*RUN)) == []


@pytest.mark.parametrize("now", ["frozen", "set back"])
def test_the_clock_does_not_matter(train, signalled, trained, tmp_path, monkeypatch, now):
    assert signalled("step", 46, [signal.SIGTERM], *RUN, "hydra.run.dir=run")[0] == 143
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start if now == "frozen" else 1e9)
    assert train("resume=run", "trust=true")[0] == 0
    assert differences(tmp_path / "run", trained(*RUN)) == []


def test_a_run_that_was_moved_goes_on(train, signalled, trained, tmp_path):
    assert signalled("step", 46, [signal.SIGTERM], *RUN, "hydra.run.dir='my runs/Läufe ☃'")[0] == 143
    shutil.move(tmp_path / "my runs", tmp_path / "elsewhere, ünd")
    moved = tmp_path / "elsewhere, ünd" / "Läufe ☃"
    assert train(f"resume={moved}", "trust=true")[0] == 0
    assert differences(moved, trained(*RUN)) == []


@pytest.mark.parametrize("what", ["claim", "lock"])
def test_of_several_processes_at_once_one_wins(tmp_path, what):
    program = "import pathlib, sys\nfrom dpg_cli.storage.run_dir import claim, locked\n"
    program += "print(flush=True)\nsys.stdin.readline()\n"
    program += {
        "claim": "claim(pathlib.Path('run'), 'hydra.run.dir')",
        "lock": "with locked([pathlib.Path('.')]):\n    print('mine', flush=True)\n    sys.stdin.read()",
    }[what]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path)
        for _ in range(4)
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    if what == "lock":
        losers = [process for process in processes if not process.stdout.readline()]
        assert len(losers) == 3
    errors = [process.communicate()[1] for process in processes]
    refusal = {"claim": "already exists", "lock": "is being trained by another process"}[what]
    assert sorted(process.returncode for process in processes) == [0, 1, 1, 1]
    assert sum(refusal in error for error in errors) == 3


# --- damage ---


@pytest.mark.parametrize("given", RUNS)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damaged_file_is_found(trained, tmp_path, damage, given):
    random = np.random.default_rng(0)
    run = shutil.copytree(trained(*given), tmp_path / "run", symlinks=True)
    for path in sorted([*(run / "checkpoints" / "step_000000060").iterdir(), *run.glob("replay/*60.npy")]):
        before = path.read_bytes()
        damage(path, random)
        assert checkpoint.valid_steps(run)[0] == [0, 30], path
        path.write_bytes(before)
    assert checkpoint.valid_steps(run) == ([0, 30, 60], {})


@pytest.mark.parametrize("given", RUNS)
@pytest.mark.parametrize(
    ("damage", "file"),
    [
        *((incomplete, file) for file in ("state.json", "state.safetensors", "shard")),
        *((misshapen, file) for file in ("state.safetensors", "shard")),
    ],
)
def test_a_checkpoint_that_holds_something_else_is_refused(train, signalled, trained, tmp_path, damage, file, given):
    assert signalled("step", 46, [signal.SIGTERM], *given, "hydra.run.dir=run")[0] == 143
    newest = tmp_path / "run" / "checkpoints" / "step_000000047"
    shutil.copytree(tmp_path / "run", tmp_path / "kept", symlinks=True)
    for seed in range(2):
        random = np.random.default_rng(seed)
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(tmp_path / "kept", tmp_path / "run", symlinks=True)
        path = next(tmp_path.glob("run/replay/*47.npy")) if file == "shard" else newest / file
        changed = damage(path, random)
        code, _, err = train("resume=run", "trust=true")
        assert (code in (0, 2), "Traceback" in err, err.count("\n")) == (True, False, 1), changed
        if code == 0:  # the one before was taken
            assert "the checkpoint of step 47 is damaged" in err, changed
            assert differences(tmp_path / "run", trained(*given)) == [], changed
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(tmp_path / "kept", tmp_path / "run", symlinks=True)
    shutil.rmtree(newest)
    assert train("resume=run", "trust=true")[0] == 0
    assert differences(tmp_path / "run", trained(*given)) == []


# --- the negative control of renaming; those of the state are in test_controls.py, of syncing in test_disk.py ---


class InPlace(CountingDisk):
    """Writes under the last name at once, as a program without renaming does."""

    def make_folder(self, path):
        super().make_folder(last(path))

    def write(self, path, data):
        super().write(last(path), data)

    def sync_folder(self, path):
        super().sync_folder(last(path))

    def rename(self, path, target):
        if path.is_symlink():
            super().rename(path, target)


def last(path):
    """`.name.pid/file` as `name/file`."""
    parts = [part[1:].rpartition(".")[0] if part.startswith(".") else part for part in path.parts]
    return type(path)(*parts)


@pytest.mark.parametrize("disk", [CountingDisk, InPlace])
def test_without_renaming_a_checkpoint_can_be_torn(tmp_path, disk):
    torn = False
    rows, state = np.zeros(5, np.dtype([("reward", np.float32)])), {"replay": {"added": 5, "size": 5}}
    for call in range(12):
        run = tmp_path / str(call)
        run.mkdir()
        with pytest.raises(Crash):
            checkpoint.Checkpoints(run, {}, 2, disk(call, half=True)).save(5, {}, state, rows, oldest=0)
        torn |= checkpoint.valid_steps(run)[1] != {}
    assert torn == (disk is InPlace)
