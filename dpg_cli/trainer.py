"""The training loop."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from dpg_cli import checkpoint
from dpg_cli.algorithms import Algorithm
from dpg_cli.errors import DivergedError
from dpg_cli.metrics import Averages, Recorder
from dpg_cli.noise import Noise
from dpg_cli.replay import Replay
from dpg_cli.rollout import Env, Environments, Episode, Evaluation, StopRequested, collect, evaluate


class Progress(Protocol):
    """Who watches."""

    def stepped(self, step: int, episodes: Sequence[Episode]) -> None:
        """`step` environment steps are made for each seed."""

    def evaluated(self, step: int, evaluations: Sequence[Evaluation]) -> None:
        """One evaluation a member."""


@dataclass
class Outcome:
    """How a training went.

    Attributes:
        step: environment steps made for each seed.
        evaluations: by member, the step and mean return of each.
        interrupted: whether `stop` ended it.
    """

    evaluations: list[list[tuple[int, float]]]
    step: int = 0
    interrupted: bool = False

    def final(self, member: int) -> float:
        """Mean return of the last evaluation."""
        return self.evaluations[member][-1][1]

    def best(self, member: int) -> tuple[int, float]:
        """Step and mean return of the best evaluation, the first of equals."""
        return max(self.evaluations[member], key=lambda evaluation: evaluation[1])

    def score(self) -> float:
        """Mean of the last ten evaluations over all members, for whoever compares runs; NaN if there was none."""
        means = [mean for member in self.evaluations for _, mean in member[-10:]]
        return float(np.mean(means)) if means else math.nan


class Stopwatch:
    """Speed since the last record, evaluations and checkpoints excluded."""

    def __init__(self) -> None:
        self.steps = self.updates = 0
        self._excluded = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is off the clock."""
        start = time.perf_counter()
        yield
        self._excluded += time.perf_counter() - start

    def rates(self) -> dict[str, float]:
        """Steps and updates a second."""
        seconds = time.perf_counter() - self._start - self._excluded
        return {
            "perf/steps_per_second": self.steps / seconds,
            "perf/updates_per_second": self.updates / seconds,
        }


def train(
    algorithm: Algorithm,
    environments: Environments,
    evaluation_envs: Sequence[Sequence[Env]],
    noise: Noise,
    replay: Replay,
    recorders: Sequence[Recorder],
    folders: Sequence[Path],
    *,
    total_steps: int,
    random_steps: int,
    learning_starts: int,
    updates_per_step: float,
    truncation_bootstraps: bool,
    eval_every: int,
    checkpoint_every: int,
    checkpoint_keep: int,
    log_every: int,
    versions: Mapping[str, str],
    progress: Progress,
    stop: Callable[[], bool],
) -> Outcome:
    """Train S members, each in its own environments and folder.

    Steps are environment steps for each seed throughout. With E environments a seed, a stride fires when it
    is crossed, and the updates of a vector step follow it.

    Args:
        algorithm: learns and acts.
        environments: to train in.
        evaluation_envs: by member and episode.
        noise: exploration noise.
        replay: empty.
        recorders: one a member.
        folders: one run folder a member.
        total_steps: when to end.
        random_steps: so many uniform actions first.
        learning_starts: steps before the first update; never before one batch is stored.
        updates_per_step: updates for each step after `learning_starts`.
        truncation_bootstraps: whether a target looks beyond a time limit.
        eval_every: steps between evaluations.
        checkpoint_every: steps between checkpoints.
        checkpoint_keep: newest checkpoints to keep.
        log_every: steps between records.
        versions: of the software, for the checkpoints.
        progress: told of steps and evaluations.
        stop: asked after every step whether to end early, with a checkpoint; an evaluation is then given up.

    Returns:
        All evaluations, and where it ended.

    Raises:
        DivergedError: an action, a reward, an observation or a loss is not finite.
    """
    seeds = environments.seeds
    num_envs = environments.num_envs
    first_update = max(learning_starts, algorithm.batch_size - 1)
    averages = Averages(len(seeds))
    outcome = Outcome([[] for _ in seeds])
    watch = Stopwatch()

    def updates_due(step: int) -> int:
        return math.floor(max(step - first_update, 0) * updates_per_step)

    def crossed(every: int, step: int) -> bool:
        return step // every > (step - num_envs) // every

    def record(step: int) -> None:
        nonlocal watch
        for recorder, seed, values in zip(recorders, seeds, averages.take(), strict=True):
            for tag, value in values.items():
                if not math.isfinite(value):
                    raise DivergedError(f"seed {seed}, step {step}: {tag} is not finite")
            recorder.scalars(step, values | watch.rates())
        watch = Stopwatch()

    def run_evaluation(step: int) -> None:
        with watch.paused():
            try:
                evaluations = evaluate(algorithm, evaluation_envs, seeds, step, stop)
            except StopRequested:
                outcome.interrupted = True
                return
            for member, evaluation in enumerate(evaluations):
                recorders[member].evaluation(step, evaluation)
                outcome.evaluations[member].append((step, float(np.mean(evaluation.returns))))
                if outcome.best(member)[0] == step:
                    checkpoint.save_best(folders[member], step, algorithm.policy_state(member), versions)
            progress.evaluated(step, evaluations)

    def save_checkpoint(step: int) -> None:
        with watch.paused():
            for member, folder in enumerate(folders):
                checkpoint.save(folder, step, algorithm.policy_state(member), versions, checkpoint_keep)

    environments.reset()
    algorithm.observe(environments.obs)
    save_checkpoint(0)
    run_evaluation(0)
    if outcome.interrupted:
        return outcome
    for step, transition, episodes in collect(
        algorithm, environments, noise, step=0, total_steps=total_steps, random_steps=random_steps
    ):
        obs, action, reward, next_obs, terminated, truncated = transition
        no_bootstrap = terminated if truncation_bootstraps else terminated | truncated
        replay.add(obs, action, reward, next_obs, no_bootstrap)
        algorithm.observe(environments.obs)
        for _ in range(updates_due(step) - updates_due(step - num_envs)):
            averages.add(algorithm.update(replay.sample(algorithm.batch_size)))
            watch.updates += 1
        watch.steps += num_envs

        averages.add_episodes(episodes)
        if step - num_envs >= random_steps:
            averages.add_noise_scale(noise.scale_at(step - num_envs))
        progress.stepped(step, episodes)

        outcome.step = step
        complete = step >= total_steps
        outcome.interrupted = stop() and not complete
        if crossed(log_every, step) or complete or outcome.interrupted:
            record(step)
        if (crossed(eval_every, step) or complete) and not outcome.interrupted:
            run_evaluation(step)
        if crossed(checkpoint_every, step) or complete or outcome.interrupted:
            save_checkpoint(step)
        if outcome.interrupted:
            break
    return outcome
