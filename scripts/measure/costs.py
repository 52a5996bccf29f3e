#!/usr/bin/env python
"""Where the time of a `dpg-train` goes, in milliseconds an environment step.

    python scripts/measure/costs.py
    python scripts/measure/costs.py steps=50_000 env=Hopper-v4 precision=bf16 out=costs.json

Runs the real command in this process, with timers round its parts, and takes overrides as `dpg-train` does. `steps` is
its total_steps (3,000), and random_steps is 1,000 unless it is given. Counting begins with the hundredth update, so
that start-up and uniform actions are left out. What comes once in a while, evaluations and checkpoints, is counted at
its stride whatever the length of the run: the mean time of one over `eval.every` or `checkpoint.every`. A checkpoint
writes the transitions since the one before: only `steps` of at least `checkpoint.every` show its whole price.

Two shares of the whole are printed below the table: evaluations, and what is neither environment nor update. The second
is given twice. Strictly, only `env.step` and `Algorithm.update` count as that. More mildly, what every program of the
kind must do as well is no loss either: act, draw noise, store and sample. Evaluations are left out of both, with their
time: they have a bound of their own.

The progress panel is drawn by a thread of its own, and only on a terminal (with rich 14, TTY_COMPATIBLE=1 makes one).
Its processor time is a row of its own and is counted as lost, though the other rows hold the waiting for it too.
"""

import contextlib
import functools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from results import check_files, write
from rich.live import Live

from dpg_cli import bookkeeping
from dpg_cli import config as configs
from dpg_cli.algorithms import ALGORITHMS, Algorithm
from dpg_cli.cli import job
from dpg_cli.cli.arguments import parse, run_script, whole
from dpg_cli.cli.train import main as dpg_train
from dpg_cli.environments.make import FlatEnv
from dpg_cli.environments.rollout import Environments
from dpg_cli.errors import UserError
from dpg_cli.metrics import Averages, Recorder
from dpg_cli.networks import Actor, Critic
from dpg_cli.noise import NOISES, Noise
from dpg_cli.replay import Replay
from dpg_cli.storage.checkpoint import Checkpoints

FIRST_UPDATE = 100  # from which on time is counted

ENVIRONMENT, ROUND_IT = "environment", "round the environment: checks, episodes"
ACTING, NOISE, STORING, SAMPLING = "acting", "exploration noise", "storing", "sampling"
TARGET_VALUES, TARGETS = "update: target actions and values", "update: targets' average"
CRITICS, ACTOR = "update: critics", "update: actor"
UPDATE = "update: noise, losses, scalars"
AVERAGES, RECORDS, PROGRESS = "averages of scalars", "records: jsonl, TensorBoard", "progress"
EVALUATION, CHECKPOINT, REST = "evaluations", "checkpoints", "everything else"
PANEL = "progress panel, its own thread"

OF_UPDATE = (TARGET_VALUES, CRITICS, ACTOR, TARGETS, UPDATE)
ON_THE_WAY = (ACTING, NOISE, STORING, SAMPLING)
PARTS = (ENVIRONMENT, ROUND_IT, *ON_THE_WAY, *OF_UPDATE, AVERAGES, RECORDS, PROGRESS, EVALUATION, CHECKPOINT, REST)

# Timed where the loop calls them, and nowhere else.
TIMED: list[tuple[Any, str, str]] = [
    (Environments, "step", ROUND_IT),
    (Algorithm, "act", ACTING),
    *((noise, name, NOISE) for noise in (Noise, *NOISES.values()) for name in ("sample", "reset")),
    (Replay, "add", STORING),
    (Replay, "sample", SAMPLING),
    *((algorithm, "update", UPDATE) for algorithm in ALGORITHMS.values()),
    *((Averages, name, AVERAGES) for name in ("add", "add_noise_scale", "add_episodes")),
    (Averages, "take", RECORDS),
    (Recorder, "scalars", RECORDS),
    (job.Watcher, "stepped", PROGRESS),
    (bookkeeping, "evaluate", EVALUATION),
    (Recorder, "evaluation", EVALUATION),
    (job.Watcher, "evaluated", EVALUATION),
    (Algorithm, "policy_state", CHECKPOINT),
    *((owner, "state", CHECKPOINT) for owner in (Algorithm, Averages, Environments, Replay, Noise)),
    (Replay, "rows", CHECKPOINT),
    (Recorder, "sizes", CHECKPOINT),
    (Checkpoints, "save", CHECKPOINT),
    (Checkpoints, "save_best", EVALUATION),
]
# And what these call in turn.
TIMED_INSIDE: list[tuple[Any, str, str, str]] = [
    (FlatEnv, "step", ENVIRONMENT, ROUND_IT),
    (FlatEnv, "reset", ENVIRONMENT, ROUND_IT),
    (Actor, "__call__", TARGET_VALUES, UPDATE),
    (Critic, "__call__", TARGET_VALUES, UPDATE),
    (Critic, "q1", TARGET_VALUES, UPDATE),
    (Critic, "q1_with_action_gradient", ACTOR, UPDATE),
    (Algorithm, "update_targets", TARGETS, UPDATE),
]


class Clock:
    """Gives every moment to the innermost part that is running."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()  # by the name of the function
        self.counting = False
        self.steps = (0, 0)  # made when counting began, and by now
        self._running: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """The time inside belongs to a part."""
        self._turn()
        self._running.append(part)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def within(self, part: str) -> bool:
        """Whether this part is the innermost."""
        return self._running[-1:] == [part]

    def start_counting(self) -> None:
        """Forget what was before."""
        self._turn()
        self.seconds.clear()
        self.calls.clear()
        self.steps = (self.steps[1], self.steps[1])
        self.counting = True

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


@contextlib.contextmanager
def timers(clock: Clock) -> Iterator[None]:
    """Inside, a training keeps the clock."""
    train, step, stepped, refresh = job.train, Algorithm.step, job.Watcher.stepped, Live.refresh

    def timed(function: Callable[..., Any], part: str, parent: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not clock.within(parent):
                return function(*args, **kwargs)
            clock.calls[function.__name__] += 1
            if part == UPDATE and not clock.counting and clock.calls["update"] == FIRST_UPDATE:
                clock.start_counting()
            with clock.inside(part):
                return function(*args, **kwargs)

        return wrapper

    def timed_train(*args: Any, **kwargs: Any) -> Any:
        with clock.inside(REST):
            return train(*args, **kwargs)

    def timed_step(self: Algorithm, optimizer: Any, gradient: Any) -> Any:
        with clock.inside(CRITICS if optimizer is self.critic_optimizer else ACTOR):
            return step(self, optimizer, gradient)

    def timed_with_backward(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            with clock.inside(part):
                output, backward = function(*args)
            return output, timed(backward, part, UPDATE)

        return wrapper

    def counted_stepped(self: job.Watcher, step: int, *args: Any) -> None:
        clock.steps = (clock.steps[0], step)
        stepped(self, step, *args)

    def timed_refresh(self: Live) -> None:
        start = time.thread_time()
        refresh(self)
        clock.seconds[PANEL] += time.thread_time() - start

    with contextlib.ExitStack() as patches:
        replacements = [
            (job, "train", timed_train),
            (Algorithm, "step", timed_step),
            (Critic, "with_backward", timed_with_backward(Critic.with_backward, CRITICS)),
            (Actor, "with_backward", timed_with_backward(Actor.with_backward, ACTOR)),
            (job.Watcher, "stepped", counted_stepped),
            (Live, "refresh", timed_refresh),
        ]
        for owner, name, new in replacements:
            patches.enter_context(patch.object(owner, name, new))
        for owner, name, part, parent in [(*timed_here, REST) for timed_here in TIMED] + TIMED_INSIDE:
            patches.enter_context(patch.object(owner, name, timed(getattr(owner, name), part, parent)))
        yield


def per_step(clock: Clock, config: configs.TrainConfig) -> dict[str, float]:
    """Milliseconds a step by part; of what comes at a stride, at its stride."""
    steps = clock.steps[1] - clock.steps[0]
    ms = {part: 1_000 * clock.seconds[part] / steps for part in (*PARTS, PANEL)}
    for part, events, every in (
        (EVALUATION, clock.calls["evaluate"], config.eval.every),
        (CHECKPOINT, clock.calls["save"] / config.num_seeds, config.checkpoint.every),
    ):
        ms[part] = 1_000 * clock.seconds[part] / events / every
    return ms


def shares(ms: dict[str, float]) -> dict[str, float]:
    """The shares that have a bound, from the milliseconds of each part."""
    whole_step = sum(ms[part] for part in PARTS)
    training = whole_step - ms[EVALUATION]
    lost = training - ms[ENVIRONMENT] - sum(ms[part] for part in OF_UPDATE) + ms[PANEL]
    return {
        "evaluations": ms[EVALUATION] / whole_step,
        "neither environment nor update": lost / training,
        "nor acting, noise, storing, sampling": (lost - sum(ms[part] for part in ON_THE_WAY)) / training,
    }


def main() -> None:
    own = [argument for argument in sys.argv[1:] if argument.partition("=")[0] in ("steps", "out")]
    values = parse(own, ("steps", "out"), required=())
    check_files(values, "out")
    overrides = [argument for argument in sys.argv[1:] if argument not in own]
    given = {override.partition("=")[0] for override in overrides}
    overrides.append(f"total_steps={whole(values, 'steps', 3_000, minimum=1)}")
    if "random_steps" not in given:
        overrides.append("random_steps=1_000")

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        sys.argv = ["dpg-train", *overrides, f"hydra.run.dir={run}"]
        with timers(clock):
            try:
                dpg_train()
            except SystemExit as ended:
                if ended.code:
                    raise
        if not clock.counting or clock.steps[0] == clock.steps[1]:
            raise UserError(f"steps: too few; there must be {FIRST_UPDATE} updates and steps after them")
        config = configs.load((run / "config.yaml").read_text(encoding="utf-8"))

    ms = per_step(clock, config)
    whole_step = sum(ms[part] for part in PARTS)
    print(f"\n{' '.join(overrides)}: {clock.steps[1] - clock.steps[0]:,} steps counted")
    print(f"{'':44}{'ms a step':>10}{'of it all':>11}")
    for part in (*PARTS, PANEL):
        print(f"{part:44}{ms[part]:10.4f}{ms[part] / whole_step:11.1%}")
    print(f"{'all but the panel':44}{whole_step:10.4f}")
    found = shares(ms)
    for name, share in found.items():
        print(f"{name:44}{share:21.1%}")
    write(values, {"overrides": overrides, "ms_per_step": ms, "shares": found})


if __name__ == "__main__":
    run_script("costs", main)
