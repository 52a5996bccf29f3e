#!/usr/bin/env python
"""What one checkpoint costs at several sizes of the replay, and how much of a training checkpoints take.

    python scripts/measure/checkpoint_cost.py
    python scripts/measure/checkpoint_cost.py repetitions=21 threads=1 out=cost.json

TD3 on HalfCheetah-v4 with the default networks. The buffer is full of random rows; each checkpoint follows `new` rows
more, so that only what is stored differs. The sizes take turns. Seconds are medians, on the disk of the working
directory, synced.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from results import check_files, write

from dpg_cli import config as configs
from dpg_cli.bookkeeping import global_random_state
from dpg_cli.cli.arguments import parse, run_script, whole
from dpg_cli.cli.build import Training, build, sizes
from dpg_cli.environments.rollout import collect
from dpg_cli.metrics import Averages
from dpg_cli.storage.checkpoint import Checkpoints
from dpg_cli.storage.run_dir import versions

STORED = (10_000, 100_000, 1_000_000)
STRIDE = 50_000  # the default checkpoint.every
LEARNING = 1_000  # steps whose speed is measured


def new_training(stored: int, threads: int) -> Training:
    config = configs.validate(
        configs.compose(
            ["env=HalfCheetah-v4", f"buffer_size={stored}", "device=cpu", f"threads={threads}", "eval.episodes=1"]
        )
    )
    return build(config)


def add_random(training: Training, count: int, random: np.random.Generator) -> None:
    obs_dim, action_dim = sizes(training.environments.envs.example)
    obs = random.standard_normal((1, count, obs_dim))
    action = random.uniform(-1, 1, (1, count, action_dim))
    never = np.zeros((1, count), bool)
    training.replay.add(obs, action, random.standard_normal((1, count)), obs, never, never)


def learn(training: Training, steps: int) -> float:
    """Environment steps a second, with an update each, as in the training loop."""
    algorithm, averages = training.algorithm, Averages(1)
    training.environments.reset()
    start = time.perf_counter()
    for _, transition, _ in collect(
        algorithm, training.environments, training.noise, step=0, total_steps=steps, random_steps=0
    ):
        training.replay.add(*transition)
        averages.add(algorithm.update(training.replay.sample(algorithm.batch_size)).scalars)
    return steps / (time.perf_counter() - start)


def save(training: Training, writer: Checkpoints, averages: Averages) -> float:
    """Write a checkpoint as the training loop does; seconds."""
    start = time.perf_counter()
    replay = training.replay
    state = {
        "algorithm": training.algorithm.state(0),
        "noise": training.noise.state(0),
        "replay": replay.state(0),
        "environments": training.environments.state(0),
        "averages": averages.state(0),
        "random": global_random_state(),
    }
    rows, oldest = replay.rows(0, writer.stored), replay.added - replay.size
    writer.save(replay.added, training.algorithm.policy_state(0), state, rows, oldest)
    return time.perf_counter() - start


class Filled:
    """A training with so many stored transitions, and its checkpoints.

    Args:
        stored: transitions; the buffer holds no more.
        threads: of torch.
        folder: to write to.
    """

    def __init__(self, stored: int, threads: int, folder: Path):
        self._random, self._averages = np.random.default_rng(0), Averages(1)
        self.stored, self._run = stored, folder
        self._training = new_training(stored, threads)
        self._writer = Checkpoints(folder, versions(), keep=2)
        add_random(self._training, min(STRIDE, stored), self._random)
        learn(self._training, 10)  # so that Adam has its moments
        while self._training.replay.added < stored:
            self.checkpoint(min(STRIDE, stored))

    def checkpoint(self, new: int) -> tuple[float, int]:
        """Seconds and bytes of a checkpoint after `new` rows more."""
        add_random(self._training, new, self._random)
        seconds = save(self._training, self._writer, self._averages)
        newest = self._run / "checkpoints" / f"step_{self._training.replay.added:09d}"
        shard = max(self._run.glob("replay/*.npy"))
        return seconds, sum(path.stat().st_size for path in [*newest.iterdir(), shard])


def main() -> None:
    values = parse(sys.argv[1:], ("repetitions", "threads", "out"), required=())
    check_files(values, "out")
    repetitions = whole(values, "repetitions", 11, minimum=1)
    threads = whole(values, "threads", 1, minimum=1)
    configs.register()
    results = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        trainings = []
        for stored in STORED:
            own = Path(folder) / str(stored)
            own.mkdir()
            trainings.append(Filled(stored, threads, own))
        print(f"{'stored':>10}{'new rows':>10}{'seconds':>10}{'lowest':>9}{'highest':>9}{'bytes':>13}")
        for new in (STORED[0], STRIDE):
            fitting = [training for training in trainings if training.stored >= new]
            measured = [[training.checkpoint(new) for training in fitting] for _ in range(repetitions)]
            for index, training in enumerate(fitting):
                seconds, sizes_written = zip(*(own[index] for own in measured), strict=True)
                median, size = statistics.median(seconds), max(sizes_written)
                print(
                    f"{training.stored:10,}{new:10,}{median:10.3f}{min(seconds):9.3f}{max(seconds):9.3f}{size:13,}",
                    flush=True,
                )
                results.append({"stored": training.stored, "new": new, "seconds": seconds, "bytes": size})
    training = new_training(STORED[1], threads)
    add_random(training, STRIDE, np.random.default_rng(0))
    learn(training, 100)
    speed = learn(training, LEARNING)
    training.close()
    share = statistics.median(results[-1]["seconds"]) / (STRIDE / speed)
    print(f"{speed:.0f} steps a second: {STRIDE:,} steps take {STRIDE / speed:.0f} s, a checkpoint {share:.2%} of them")
    write(values, {"checkpoints": results, "steps_per_second": speed, "share": share})


if __name__ == "__main__":
    run_script("checkpoint_cost", main)
