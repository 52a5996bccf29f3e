#!/usr/bin/env python
"""Training speed of dpg-train beside stable-baselines3 and sbx, in one run, interleaved.

    python scripts/benchmark.py
    python scripts/benchmark.py algo=ddpg threads=1 steps=3000 repetitions=7 out=speed.json
    python scripts/benchmark.py precision=bf16
    python scripts/benchmark.py side_by_side=2

All train on HalfCheetah-v4 with 256-256 networks, batches of 256, Gaussian exploration noise and one update a step.
Every repetition is a process of its own, held to as many cores as it has threads, since JAX knows no other limit.
Timed are environment steps with learning, after a warm-up, with everything that the real programs do between them:
`dpg-train` writes records, its peers write nothing. Start-up and evaluations are not timed. `precision` is dpg-train's.

With `side_by_side=2`, two processes of each candidate run at once, each on cores of its own. Added up are their steps
in the time in which all of them were past the warm-up and none was at its end.

Two more processes follow in each repetition: dpg-cli's updates alone, with sampling, and float32 products of 256³, by
the library that dpg-train would choose. The matrix products of an update, counted from the sizes of the layers, over
that rate are the share of the limit, for updates alone and for the whole training.

Needs the extra `bench`: pip install -e '.[bench]'
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from measure import check_files, prepare, update_flops, update_once, write

from dpg_cli.cli.arguments import parse, run_script, whole
from dpg_cli.errors import UserError

ENV = "HalfCheetah-v4"
OBS_DIM, ACTION_DIM = 17, 6
HIDDEN_SIZES, BATCH_SIZE = [256, 256], 256
CRITICS_AND_DELAY = {"td3": (2, 2), "ddpg": (1, 1)}
WARM_UP = 1_000  # steps: half of them uniform actions without updates, half with
STRIDE = 500  # steps between two looks at the clock
PEERS = {"stable-baselines3": "stable_baselines3", "sbx": "sbx"}  # and the modules that they are
UPDATES, PRODUCTS = "updates alone", "products"
SIDE = 256  # of the matrices whose product is the limit
PRODUCT_SECONDS = 4.0  # long enough for processes side by side to meet

Stamps = list[tuple[float, float]]  # so much was done at such a time, in seconds since 1970


class Work(NamedTuple):
    """What is measured."""

    algo: str
    steps: int
    threads: int
    precision: str


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, algo, steps, threads, precision = sys.argv[2:]
        print(json.dumps(child(name, Work(algo, int(steps), int(threads), precision))))
        return
    known = ("algo", "steps", "threads", "repetitions", "precision", "side_by_side", "out")
    values = parse(sys.argv[1:], known, required=())
    check_files(values, "out")
    repetitions = whole(values, "repetitions", 5, minimum=1)
    side_by_side = whole(values, "side_by_side", 1, minimum=1)
    cores = sorted(os.sched_getaffinity(0))
    work = Work(
        algo=choice(values, "algo", tuple(CRITICS_AND_DELAY)),
        steps=whole(values, "steps", 2_000, minimum=STRIDE),
        threads=whole(values, "threads", 1 if side_by_side > 1 else min(len(cores), 2), minimum=1),
        precision=choice(values, "precision", ("float32", "bf16")),
    )
    if work.steps % STRIDE:
        raise UserError(f"steps={work.steps}: should be a multiple of {STRIDE}, at which the clock is read")
    if side_by_side * work.threads > len(cores):
        raise UserError(f"{side_by_side} times {work.threads} threads: this process may use {len(cores)} cores")
    missing = [name for name, module in PEERS.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} missing; pip install -e '.[bench]'")
    shares = [cores[i * work.threads : (i + 1) * work.threads] for i in range(side_by_side)]

    names = ["dpg-cli", *PEERS, UPDATES, PRODUCTS]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions):
        first = repetition % len(names)  # so that none is always the first
        for name in names[first:] + names[:first]:
            rates[name].append(measure(name, work, shares))
        print(f"{repetition + 1} of {repetitions}: " + ", ".join(f"{n} {r[-1]:.1f}" for n, r in rates.items()))

    report(values, work, side_by_side, rates)


def report(values: dict[str, str], work: Work, side_by_side: int, rates: dict[str, list[float]]) -> None:
    """Print the table and write the JSON."""
    gflop = update_flops(OBS_DIM, ACTION_DIM, HIDDEN_SIZES, BATCH_SIZE, *CRITICS_AND_DELAY[work.algo]) / 1e9
    gflop_per_product = 2 * SIDE**3 / 1e9
    limit = [gflop_per_product * rate for rate in rates[PRODUCTS]]
    ratios = {peer: paired(rates["dpg-cli"], rates[peer]) for peer in PEERS}
    shares = {name: gflop * paired(rates[name], limit) for name in (UPDATES, "dpg-cli")}
    title = f"{work.algo} on {ENV}, dpg-cli in {work.precision}, {work.threads} threads"
    if side_by_side > 1:
        title += f", {side_by_side} side by side"
    print(f"\n{title}, {work.steps} steps, {len(limit)} repetitions; a second")
    print(f"{'':20}{'median':>9}{'lowest':>9}{'highest':>9}   median of the paired ratios dpg-cli to it")
    print(row("dpg-cli", rates["dpg-cli"]))
    for peer, ratio in ratios.items():
        print(row(peer, rates[peer]) + f"   {ratio:.2f}")
    print(row(UPDATES, rates[UPDATES]))
    print(row("GFLOP of products", limit))
    print(f"\nan update has {gflop:.3f} GFLOP of products; of the float32 limit, median of the paired shares,")
    print(f"updates alone reach {shares[UPDATES]:.0%} and the training {shares['dpg-cli']:.0%}")
    result = {"work": work._asdict(), "env": ENV, "side_by_side": side_by_side, "per_second": rates}
    result |= {"gflop_per_update": gflop, "gflop_per_product": gflop_per_product}
    write(values, result | {"ratios": ratios, "shares_of_limit": shares})


def measure(name: str, work: Work, shares: Sequence[Sequence[int]]) -> float:
    """What a candidate does in a second, in as many processes as there are shares of the cores."""
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for i, share in enumerate(shares):
            run = Path(folder) / str(i)
            with (Path(folder) / f"{i}.out").open("w") as out, held_to(share):
                command = train_command(work, run) if name == "dpg-cli" else child_command(name, work)
                processes.append(subprocess.Popen(command, stdout=out, env=environment(work.threads)))
        ends = [process.wait() for process in processes]
        if any(ends):
            raise UserError(f"{name}: failed; see above")
        if name == "dpg-cli":
            return rate([recorded(Path(folder) / str(i)) for i in range(len(shares))])
        outputs = [(Path(folder) / f"{i}.out").read_text() for i in range(len(shares))]
        return rate([json.loads(output.splitlines()[-1]) for output in outputs])


def rate(processes: Sequence[Stamps]) -> float:
    """What all processes together did in a second, while all were at work.

    Args:
        processes: by process, the stamps from the end of its warm-up on.

    Raises:
        UserError: at no time were all of them at work.
    """
    start, end = max(stamps[0][1] for stamps in processes), min(stamps[-1][1] for stamps in processes)
    if start >= end:
        raise UserError("the processes were not at work at the same time; take more steps")
    return sum(done_at(stamps, end) - done_at(stamps, start) for stamps in processes) / (end - start)


def done_at(stamps: Stamps, when: float) -> float:
    """What was done at a time between the first stamp and the last."""
    for (done, before), (more, after) in pairwise(stamps):
        if when <= after:
            return done + (more - done) * (when - before) / (after - before)
    raise AssertionError("after the last stamp")


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of paired ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def train_command(work: Work, run: Path) -> list[str]:
    """`dpg-train`, with whose warm-up and work the peers agree."""
    end = WARM_UP + work.steps
    return [
        str(Path(sys.executable).with_name("dpg-train")),
        f"algo={work.algo}",
        f"env={ENV}",
        f"algo.batch_size={BATCH_SIZE}",
        f"algo.hidden_sizes={HIDDEN_SIZES}",
        f"precision={work.precision}",
        f"threads={work.threads}",
        "device=cpu",
        f"random_steps={WARM_UP // 2}",
        f"total_steps={end}",
        f"eval.every={end}",
        "eval.episodes=1",
        f"log.every={STRIDE}",
        f"hydra.run.dir={run}",
    ]


def recorded(run: Path) -> Stamps:
    """The stamps in a run folder."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["time"]) for r in records if "perf/steps_per_second" in r and r["step"] >= WARM_UP]


def child_command(name: str, work: Work) -> list[str]:
    return [sys.executable, __file__, "--child", name, *map(str, work)]


def child(name: str, work: Work) -> Stamps:
    """One process that is not dpg-train's."""
    import torch

    torch.set_num_threads(work.threads)
    if name == UPDATES:
        return updates_alone(work)
    if name == PRODUCTS:
        return products()
    return train_peer(name, work)


def updates_alone(work: Work) -> Stamps:
    """dpg-cli's updates, without anything else."""
    overrides = [f"algo={work.algo}", f"algo.batch_size={BATCH_SIZE}", f"algo.hidden_sizes={HIDDEN_SIZES}"]
    training = prepare([*overrides, f"precision={work.precision}", f"threads={work.threads}", f"env={ENV}"])
    stamps = []
    for update in range(WARM_UP // 2 + work.steps + 1):  # as many as in a training
        if update >= WARM_UP // 2 and (update - WARM_UP // 2) % STRIDE == 0:
            stamps.append((float(update), time.time()))
        update_once(training)
    return stamps


def products() -> Stamps:
    """Products of two square matrices in float32."""
    import torch

    from dpg_cli.precision import choose_products

    choose_products(torch.device("cpu"))
    a, b, out = torch.randn(3, SIDE, SIDE)
    stamps = [(0.0, time.time())]
    while stamps[-1][1] - stamps[0][1] < PRODUCT_SECONDS:
        for _ in range(100):
            torch.mm(a, b, out=out)
        stamps.append((stamps[-1][0] + 100, time.time()))
    return [stamp for stamp in stamps if stamp[1] - stamps[0][1] > PRODUCT_SECONDS / 4]


def train_peer(name: str, work: Work) -> Stamps:
    """Train with a peer in this process."""
    import importlib

    import numpy as np
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.noise import NormalActionNoise

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps >= WARM_UP and self.num_timesteps % STRIDE == 0:
                stamps.append((float(self.num_timesteps), time.time()))
            return True

    stamps: Stamps = []
    learner = getattr(importlib.import_module(PEERS[name]), work.algo.upper())
    model = learner(
        "MlpPolicy",
        ENV,
        learning_starts=WARM_UP // 2,
        batch_size=BATCH_SIZE,
        train_freq=1,
        gradient_steps=1,
        action_noise=NormalActionNoise(np.zeros(ACTION_DIM), np.full(ACTION_DIM, 0.1)),
        policy_kwargs={"net_arch": HIDDEN_SIZES},
        device="cpu",
        seed=0,
    )
    model.learn(WARM_UP + work.steps + 1, callback=Clock())
    return stamps


@contextlib.contextmanager
def held_to(cores: Sequence[int]) -> Iterator[None]:
    """Processes that are started inside may use these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment(threads: int) -> dict[str, str]:
    """The environment of a measured process."""
    own = {"OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **own}


def row(name: str, rates: Sequence[float]) -> str:
    return f"{name:20}{statistics.median(rates):9.1f}{min(rates):9.1f}{max(rates):9.1f}"


def choice(values: dict[str, str], key: str, known: Sequence[str]) -> str:
    """One of `known`, the first if none is given."""
    value = values.get(key, known[0])
    if value not in known:
        raise UserError(f"{key}={value}: should be {' or '.join(known)}")
    return value


if __name__ == "__main__":
    run_script("benchmark", main)
