#!/usr/bin/env python
"""Training speed of dpg-train beside stable-baselines3 and sbx, in one run, interleaved.

    python scripts/measure/benchmark.py
    python scripts/measure/benchmark.py algo=ddpg threads=1 seconds=3 repetitions=30 out=speed.json
    python scripts/measure/benchmark.py precision=bf16
    python scripts/measure/benchmark.py side_by_side=2

All train on HalfCheetah-v4 with 256-256 networks, batches of 256, Gaussian exploration noise and one update a step.
Each is a process of its own, held to as many cores as it has threads, since JAX knows no other limit. All are started
and brought past a warm-up; then they take turns: one runs for `seconds`, while the others are stopped by a signal.
Turns are so short that what else a shared machine does meets all of them alike. Counted are environment steps with
learning and everything that the real programs do between them: `dpg-train` writes records, its peers write nothing.
Start-up and evaluations are not counted. `precision` is dpg-train's; with bf16 a dpg-train in float32 takes turns too.

With `side_by_side=2`, two processes of each candidate take a turn at once, each on cores of its own; their steps are
added up.

Two more processes take turns: dpg-cli's updates alone, with sampling, and float32 products of 256³, by the library that
dpg-train would choose. The matrix products of an update, counted from the sizes of the layers, over that rate are the
share of the limit, for updates alone and for the whole training. Where a step's time goes is for costs.py.

Needs the extra `bench`: pip install -e '.[bench]'
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from results import check_files, write
from updates import prepare, update_flops, update_once

from dpg_cli.cli.arguments import parse, run_script, whole
from dpg_cli.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("algo", "seconds", "threads", "repetitions", "precision", "side_by_side", "out")
ENV = "HalfCheetah-v4"
OBS_DIM, ACTION_DIM = 17, 6
HIDDEN_SIZES, BATCH_SIZE = [256, 256], 256
CRITICS_AND_DELAY = {"td3": (2, 2), "ddpg": (1, 1)}
WARM_UP = 1_000  # steps: half of them uniform actions without updates, half with
ENDLESS = 1_000_000  # steps; more than there is time for
OURS, IN_FLOAT32 = "dpg-cli", "dpg-cli in float32"
PEERS = {"stable-baselines3": "stable_baselines3", "sbx": "sbx"}  # and the modules that they are
UPDATES, PRODUCTS = "updates alone", "products"
SIDE = 256  # of the matrices whose product is the limit
SETTLE = 0.2  # seconds of a turn before counting: caches are another's

Counter = np.memmap  # one number, which a measured process keeps


class Work(NamedTuple):
    """What is measured."""

    algo: str
    threads: int
    precision: str


class Turns(NamedTuple):
    """How it is measured."""

    repetitions: int
    seconds: int
    shares: list[list[int]]  # the cores of each of the processes that work side by side


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, path, algo, threads, precision = sys.argv[2:]
        child(name, np.memmap(path, np.int64, "r+"), Work(algo, int(threads), precision))
        return
    values = parse(sys.argv[1:], KEYS, required=())
    check_files(values, "out")
    work, turns = work_of(values)
    missing = [name for name, module in PEERS.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} missing; pip install -e '.[bench]'")
    with contextlib.ExitStack() as started:
        folder = Path(started.enter_context(tempfile.TemporaryDirectory()))
        names = [OURS, *([IN_FLOAT32] if work.precision != "float32" else []), *PEERS, UPDATES, PRODUCTS]
        rates = in_turns({name: started.enter_context(stopped(name, work, turns, folder)) for name in names}, turns)
    report(values, work, turns, rates)


def work_of(values: dict[str, str]) -> tuple[Work, Turns]:
    """What is measured, and how.

    Raises:
        UserError: there is no such choice, or too few cores, or this is not Linux.
    """
    side_by_side = whole(values, "side_by_side", 1, minimum=1)
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("benchmark: needs Linux, which can hold a process to some of the cores")
    cores = sorted(os.sched_getaffinity(0))
    work = Work(
        algo=choice(values, "algo", tuple(CRITICS_AND_DELAY)),
        threads=whole(values, "threads", 1 if side_by_side > 1 else min(len(cores), 2), minimum=1),
        precision=choice(values, "precision", ("float32", "bf16")),
    )
    if side_by_side * work.threads > len(cores):
        raise UserError(f"{side_by_side} times {work.threads} threads: this process may use {len(cores)} cores")
    return work, Turns(
        repetitions=whole(values, "repetitions", 20, minimum=1),
        seconds=whole(values, "seconds", 2, minimum=1),
        shares=[cores[i * work.threads : (i + 1) * work.threads] for i in range(side_by_side)],
    )


def in_turns(candidates: Mapping[str, "Candidate"], turns: Turns) -> dict[str, list[float]]:
    """What each candidate did in a second, by repetition."""
    names = list(candidates)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(turns.repetitions):
        first = repetition % len(names)  # so that none is always the first
        for name in names[first:] + names[:first]:
            rates[name].append(candidates[name].turn(turns.seconds))
        done = ", ".join(f"{name} {rate[-1]:.1f}" for name, rate in rates.items())
        print(f"{repetition + 1} of {turns.repetitions}: {done}")
    return rates


class Candidate(NamedTuple):
    """Processes that work side by side while it is their turn."""

    processes: list[subprocess.Popen[bytes]]
    counters: list[Counter]

    def turn(self, seconds: float) -> float:
        """What all of them did in a second."""
        self.signal(signal.SIGCONT)
        time.sleep(SETTLE)
        before, start = self.done(), time.perf_counter()
        time.sleep(seconds)
        after, end = self.done(), time.perf_counter()
        self.signal(signal.SIGSTOP)
        return (after - before) / (end - start)

    def done(self) -> int:
        """What all of them have done since their start."""
        return sum(int(counter[0]) for counter in self.counters)

    def signal(self, number: signal.Signals) -> None:
        """To each of them."""
        for process in self.processes:
            process.send_signal(number)


@contextlib.contextmanager
def stopped(name: str, work: Work, turns: Turns, folder: Path, tree: Path = ROOT) -> Iterator[Candidate]:
    """A candidate past its warm-up, stopped, with a process for each share of the cores; ended afterwards.

    Args:
        name: of the candidate.
        work: that it does.
        turns: how it is measured.
        folder: for its files.
        tree: the checkout whose dpg_cli is measured.

    Raises:
        UserError: it failed.
    """
    candidate, log = Candidate([], []), folder / f"{name}.log"
    try:
        for i, share in enumerate(turns.shares):
            path = folder / f"{name} {i}"
            candidate.counters.append(np.memmap(path, np.int64, "w+", shape=(1,)))
            command = [sys.executable, __file__, "--child", name, str(path), *map(str, work)]
            if name in (OURS, IN_FLOAT32):
                command = training(path, tree, work if name == OURS else work._replace(precision="float32"))
            with log.open("ab") as output, held_to(share):
                candidate.processes.append(
                    subprocess.Popen(command, stdout=output, stderr=output, env=environment(work.threads, tree))
                )
        while min(int(counter[0]) for counter in candidate.counters) < WARM_UP:
            if any(process.poll() is not None for process in candidate.processes):
                raise UserError(f"{name}: failed:\n{log.read_text(errors='replace')}")
            time.sleep(0.05)
        candidate.signal(signal.SIGSTOP)
        yield candidate
    finally:
        for process in candidate.processes:
            process.kill()
            process.wait()


def report(values: dict[str, str], work: Work, turns: Turns, rates: dict[str, list[float]]) -> None:
    """Print the table and write the JSON."""
    gflop = update_flops(OBS_DIM, ACTION_DIM, HIDDEN_SIZES, BATCH_SIZE, *CRITICS_AND_DELAY[work.algo]) / 1e9
    gflop_per_product = 2 * SIDE**3 / 1e9
    limit = [gflop_per_product * rate for rate in rates[PRODUCTS]]
    ratios = {other: paired(rates[OURS], rates[other]) for other in (IN_FLOAT32, *PEERS) if other in rates}
    shares = {name: gflop * paired(rates[name], limit) for name in (UPDATES, OURS)}
    print_title(work, turns)
    print(f"{'':20}{'median':>9}{'lowest':>9}{'highest':>9}   median of the paired ratios dpg-cli to it")
    print(row(OURS, rates[OURS]))
    for other, ratio in ratios.items():
        print(row(other, rates[other]) + f"   {ratio:.2f}")
    print(row(UPDATES, rates[UPDATES]))
    print(row("GFLOP of products", limit))
    print(f"\nan update has {gflop:.3f} GFLOP of products; of the float32 limit, median of the paired shares,")
    print(f"updates alone reach {shares[UPDATES]:.0%} and the training {shares[OURS]:.0%}")
    result = {"work": work._asdict(), "env": ENV, "turns": turns._asdict(), "per_second": rates}
    result |= {"gflop_per_update": gflop, "gflop_per_product": gflop_per_product}
    write(values, result | {"ratios": ratios, "shares_of_limit": shares})


def print_title(work: Work, turns: Turns) -> None:
    """What the table below is of."""
    title = f"{work.algo} on {ENV}, dpg-cli in {work.precision}, {work.threads} threads"
    if len(turns.shares) > 1:
        title += f", {len(turns.shares)} side by side"
    print(f"\n{title}, {turns.repetitions} turns of {turns.seconds} s; a second")


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of paired ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def child(name: str, counter: Counter, work: Work) -> None:
    """Work without an end, and count."""
    import torch

    torch.set_num_threads(work.threads)
    if name in PEERS:
        train_peer(name, counter, work)
    elif name == UPDATES:
        repeat(updates(work), counter)
    else:
        repeat(products(), counter)


def training(counter: Path, tree: Path, work: Work) -> list[str]:
    """The command of `dpg-train` itself, with whose warm-up and work the peers agree."""
    script = ROOT / "scripts" / "measure" / "counted_training.py"
    command = [sys.executable, str(script), str(counter), str(tree), *overrides(work)]
    command += [f"env={ENV}", "device=cpu", f"random_steps={WARM_UP // 2}", f"hydra.run.dir={counter}.run"]
    return [*command, f"total_steps={ENDLESS}", f"eval.every={ENDLESS}", "eval.episodes=1"]


def overrides(work: Work) -> list[str]:
    """What learning is configured with."""
    networks = [f"algo.batch_size={BATCH_SIZE}", f"algo.hidden_sizes={HIDDEN_SIZES}"]
    return [f"algo={work.algo}", *networks, f"precision={work.precision}", f"threads={work.threads}"]


def repeat(act: Callable[[], object], counter: Counter) -> None:
    """Do it over and over."""
    for done in count(1):
        act()
        counter[0] = done


def updates(work: Work) -> Callable[[], object]:
    """One of dpg-cli's updates, with sampling and nothing else."""
    training = prepare([*overrides(work), f"env={ENV}"])
    return lambda: update_once(training)


def products() -> Callable[[], object]:
    """A product of two square matrices in float32."""
    import torch

    from dpg_cli.precision import choose_products

    choose_products(torch.device("cpu"))
    a, b, out = torch.randn(3, SIDE, SIDE)
    return lambda: torch.mm(a, b, out=out)


def train_peer(name: str, counter: Counter, work: Work) -> None:
    """Train with a peer."""
    import importlib

    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.noise import NormalActionNoise

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            counter[0] = self.num_timesteps
            return True

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
    model.learn(ENDLESS, callback=Count())


@contextlib.contextmanager
def held_to(cores: Sequence[int]) -> Iterator[None]:
    """Processes that are started inside may use these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment(threads: int, tree: Path) -> dict[str, str]:
    """The environment of a measured process."""
    path = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    run_script("benchmark", main)
