#!/usr/bin/env python
"""How long `dpg-train` takes to start, and how much memory a run takes.

    python scripts/measure/footprint.py
    python scripts/measure/footprint.py repetitions=5 out=footprint.json

Start: seconds of `dpg-train --help` and of `dpg-train --cfg job`, and from the call of `dpg-train` to its first
evaluation, at step 0, and to the first environment step of the training, after that evaluation.

Memory: the peak of `dpg-train` for 3,000 steps of HalfCheetah-v4 with a replay of 1,000 transitions, minus that of a
process that imports torch, mujoco and gymnasium and steps the same environment; and what a full replay takes beside
it, by its size, with episodes of 1,000 steps.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import psutil
from results import check_files, write

from dpg_cli.cli.arguments import parse, run_script, whole
from dpg_cli.errors import UserError

ENV = "HalfCheetah-v4"
DPG_TRAIN = str(Path(sys.executable).with_name("dpg-train"))
BUFFER_SIZES = (10_000, 100_000, 1_000_000)
OBSERVATION_AND_ACTION = {"HalfCheetah-v4": (17, 6), "Humanoid-v4": (376, 17)}
EPISODE = 1_000  # steps

WITHOUT_US = f"""
import gymnasium, mujoco, torch
env = gymnasium.make("{ENV}")
env.reset(seed=0)
for _ in range(1_000):
    _, _, terminated, truncated, _ = env.step(env.action_space.sample())
    if terminated or truncated:
        env.reset()
"""
UNTIL_A_STEP = """
import os, sys, time
from dpg_cli.environments import evaluation, rollout
from dpg_cli.cli.train import main

def stepped(*_, **__):
    print("\\n%s" % time.time(), flush=True)
    os._exit(0)

if sys.argv.pop(1) == "evaluation":
    evaluation.run_episodes = stepped
else:
    rollout.Environments.step = stepped
main()
"""


def main() -> None:
    if sys.argv[1:2] == ["--replay"]:
        _, _, size, env, share = sys.argv
        print(replay_bytes(int(size), *OBSERVATION_AND_ACTION[env], share_next_obs=share == "true"))
        return
    values = parse(sys.argv[1:], ("repetitions", "out"), required=())
    check_files(values, "out")
    repetitions = whole(values, "repetitions", 5, minimum=1)
    with tempfile.TemporaryDirectory() as folder:
        starts = {
            "dpg-train --help": lambda: seconds([DPG_TRAIN, "--help"]),
            "dpg-train --cfg job": lambda: seconds([DPG_TRAIN, "--cfg", "job"]),
            "to the first evaluation": lambda: until_step("evaluation", Path(folder)),
            "to the first environment step": lambda: until_step("training", Path(folder)),
        }
        for start in starts.values():  # once for the files to be in memory
            start()
        times: dict[str, list[float]] = {name: [] for name in starts}
        for _ in range(repetitions):
            for name, start in starts.items():
                times[name].append(start())
        run = [DPG_TRAIN, f"env={ENV}", "device=cpu", "total_steps=3_000", "random_steps=1_000", "buffer_size=1_000"]
        ours = peak_bytes([*run, f"hydra.run.dir={folder}/run"])
    theirs = peak_bytes([sys.executable, "-c", WITHOUT_US])

    print(f"{'seconds':40}{'median':>9}{'lowest':>9}{'highest':>9}")
    for name, own in times.items():
        print(f"{name:40}{statistics.median(own):9.2f}{min(own):9.2f}{max(own):9.2f}")
    print(
        f"\nmemory of a run {ours / 1e6:.0f} MB, without dpg-cli {theirs / 1e6:.0f} MB: {(ours - theirs) / 1e6:.0f} MB"
    )
    print(f"\n{'environment':16}{'share_next_obs':>15}{'transitions':>13}{'MB':>9}{'bytes each':>12}")
    replays = []
    for env, share, size in product(OBSERVATION_AND_ACTION, ("false", "true"), BUFFER_SIZES):
        command = [sys.executable, __file__, "--replay", str(size), env, share]
        taken = int(subprocess.run(command, capture_output=True, check=True).stdout)
        replays.append({"env": env, "share_next_obs": share == "true", "transitions": size, "bytes": taken})
        print(f"{env:16}{share:>15}{size:13,}{taken / 1e6:9.1f}{taken / size:12.1f}")
    write(values, {"seconds": times, "run_bytes": ours, "without_bytes": theirs, "replay_bytes": replays})


def seconds(command: Sequence[str]) -> float:
    """How long a command takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def until_step(which: str, folder: Path) -> float:
    """Seconds from the call of `dpg-train` to a step, at which it ends; its run goes to a new folder."""
    run = Path(tempfile.mkdtemp(dir=folder))
    run.rmdir()
    command = [sys.executable, "-c", UNTIL_A_STEP, which, f"env={ENV}", "device=cpu", f"hydra.run.dir={run}"]
    start = time.time()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) - start


def peak_bytes(command: Sequence[str]) -> int:
    """The most memory that a command had."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{command[0]}: failed; see above")
    return usage.ru_maxrss * 1_024


def replay_bytes(size: int, obs_dim: int, action_dim: int, *, share_next_obs: bool) -> int:
    """What the memory of this process grows by when a replay is made and filled."""
    import numpy as np

    from dpg_cli.replay import Replay
    from dpg_cli.seeding import Purpose, torch_generator

    def new(size: int) -> Replay:
        streams = [torch_generator(0, Purpose.REPLAY)]
        return Replay(size, obs_dim, action_dim, streams, discount=0.99, share_next_obs=share_next_obs)

    shape = (1, EPISODE)
    obs = np.ones((*shape, obs_dim), np.float32)
    next_obs = obs.copy()
    next_obs[:, -1] = 2  # the last observation, which a reset follows
    episode = obs, np.ones((*shape, action_dim)), np.ones(shape), next_obs, np.zeros(shape, bool), np.zeros(shape, bool)
    new(EPISODE).add(*episode)
    before = resident_bytes()
    replay = new(size)
    for _ in range(size // EPISODE):
        replay.add(*episode)
    return resident_bytes() - before


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    run_script("footprint", main)
