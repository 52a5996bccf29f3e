"""The training loop."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from dpg_cli.environments.evaluation import Evaluation, StopRequested, evaluate
from dpg_cli.environments.group import EnvGroup
from dpg_cli.environments.rollout import Environments, Episode, collect
from dpg_cli.errors import DivergedError, UserError
from dpg_cli.learner import Learner
from dpg_cli.metrics import Recorder
from dpg_cli.noise import Noise
from dpg_cli.replay import Step
from dpg_cli.seeding import Purpose, integer
from dpg_cli.storage.checkpoint import Checkpoints, Loaded
from dpg_cli.storage.shapes import check_form


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


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What happens when, in environment steps per seed.

    With E environments per seed, an interval fires when it is crossed.

    Attributes:
        total_steps: length of the training.
        random_steps: uniform actions at the start.
        learning_starts: steps before the first update. The first update never comes before one batch is stored.
        updates_per_step: updates for each step after `learning_starts`.
        eval_every: steps between evaluations.
        checkpoint_every: steps between checkpoints.
        log_every: steps between records.
    """

    total_steps: int
    random_steps: int
    learning_starts: int
    updates_per_step: float
    eval_every: int
    checkpoint_every: int
    log_every: int


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
    learner: Learner,
    environments: Environments,
    evaluation_envs: EnvGroup,
    noise: Noise,
    schedule: Schedule,
    recorders: Sequence[Recorder],
    checkpoints: Sequence[Checkpoints],
    start: Sequence[Loaded] | None = None,
    *,
    truncation_bootstraps: bool,
    progress: Progress,
    stop: Callable[[], bool],
) -> Outcome:
    """Train S members, each in its own environments and folder.

    Steps are environment steps per seed throughout. With E environments per seed, the updates of a vector step follow
    it.

    Args:
        learner: learns and acts; nothing is stored yet.
        environments: to train in.
        evaluation_envs: S members with as many environments as an evaluation has episodes.
        noise: exploration noise.
        schedule: what happens when.
        recorders: one per member.
        checkpoints: one per member.
        start: the checkpoint to resume from, one per member; None for a new run.
        truncation_bootstraps: whether a target looks beyond a time limit.
        progress: told of steps and evaluations.
        stop: asked after every step whether to end early, with a checkpoint; an evaluation is then abandoned.

    Returns:
        All evaluations, and where it ended.

    Raises:
        DivergedError: an action, a reward, an observation or a loss is not finite.
        UserError: `start` does not fit.
    """
    seeds = environments.seeds
    num_envs = environments.num_envs
    algorithm, replay, averages = learner.algorithm, learner.replay, learner.averages
    first_update = max(schedule.learning_starts, algorithm.batch_size - 1)
    outcome = Outcome([[] for _ in seeds])
    watch = Stopwatch()

    def updates_due(step: int) -> int:
        return math.floor(max(step - first_update, 0) * schedule.updates_per_step)

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
                evaluations = evaluate(algorithm, evaluation_envs, seeds, step, stop, learner.act_to_evaluate)
            except StopRequested:
                outcome.interrupted = True
                return
            for member, evaluation in enumerate(evaluations):
                recorders[member].evaluation(step, evaluation)
                outcome.evaluations[member].append((step, float(np.mean(evaluation.returns))))
                if outcome.best(member)[0] == step:
                    checkpoints[member].save_best(step, algorithm.policy_state(member))
            progress.evaluated(step, evaluations)

    def save_checkpoint(step: int, *, evaluation_due: bool) -> None:
        with watch.paused(), learner.saving():
            for member, writer in enumerate(checkpoints):
                learned = algorithm.state(member)
                averaged = averages.state(member)
                for name, part in {**learned, "average": averaged}.items():
                    if not all_finite(part):
                        raise DivergedError(f"seed {seeds[member]}, step {step}: {name} is not finite")
                state = {
                    "algorithm": learned,
                    "noise": noise.state(member),
                    "replay": replay.state(member),
                    "environments": environments.state(member),
                    "averages": averaged,
                    "evaluations": outcome.evaluations[member],
                    "evaluation_due": evaluation_due,
                    "files": recorders[member].sizes(),
                    "random": global_random_state(),
                }
                rows, oldest = replay.rows(member, writer.stored), replay.added - replay.size
                writer.save(step, algorithm.policy_state(member), state, rows, oldest)

    learner.prepare()
    if start is None:
        seed_global_random_state(seeds[0])
        environments.reset()
        algorithm.observe(environments.obs)
        save_checkpoint(0, evaluation_due=True)
        evaluation_due = True
    else:
        try:
            evaluation_due = _restore(learner, environments, noise, outcome, start)
        except torch.OutOfMemoryError:  # which says nothing about the checkpoint
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise UserError(f"the checkpoint of step {start[0].step} cannot be resumed: {error}") from error
    if evaluation_due:
        run_evaluation(outcome.step)
    if outcome.interrupted:  # the checkpoint that it started from says that this evaluation is due
        return outcome
    if start is not None and evaluation_due and outcome.step >= schedule.total_steps:  # else nothing is saved after it
        save_checkpoint(outcome.step, evaluation_due=False)

    total_steps, random_steps = schedule.total_steps, schedule.random_steps
    for step, transition, episodes in collect(
        learner, environments, noise, step=outcome.step, total_steps=total_steps, random_steps=random_steps
    ):
        obs, action, reward, next_obs, terminated, truncated = transition
        no_bootstrap = terminated if truncation_bootstraps else terminated | truncated
        updates = updates_due(step) - updates_due(step - num_envs)
        acts_next = random_steps <= step < total_steps
        stored = Step(obs, action, reward, next_obs, no_bootstrap)
        learner.learn(stored, observed=environments.obs, updates=updates, acts_next=acts_next)
        watch.updates += updates
        watch.steps += num_envs

        averages.add_episodes(episodes)
        if step - num_envs >= random_steps:
            averages.add_noise_scale(noise.scale_at(step - num_envs))
        progress.stepped(step, episodes)

        # The one boundary at which a run stops and goes on.
        outcome.step = step
        complete = step >= total_steps
        outcome.interrupted = stop() and not complete
        if crossed(schedule.log_every, step):
            record(step)
        evaluation_due = crossed(schedule.eval_every, step)
        if evaluation_due and not outcome.interrupted:
            run_evaluation(step)
            evaluation_due = outcome.interrupted
        if crossed(schedule.checkpoint_every, step) or complete or outcome.interrupted:
            save_checkpoint(step, evaluation_due=evaluation_due)
        if outcome.interrupted:
            return outcome

    # After the last checkpoint, since a run that was longer from the start would have neither.
    if not crossed(schedule.log_every, outcome.step):
        record(outcome.step)
    if not crossed(schedule.eval_every, outcome.step):
        run_evaluation(outcome.step)
    return outcome


def all_finite(tree: Any) -> bool:
    """Whether no number in dictionaries and lists of tensors, arrays and numbers is NaN or infinite."""
    if isinstance(tree, Mapping):
        return all(map(all_finite, tree.values()))
    if isinstance(tree, list | tuple):
        return all(map(all_finite, tree))
    if isinstance(tree, torch.Tensor):
        return bool(tree.isfinite().all())
    return not isinstance(tree, np.ndarray | float) or bool(np.isfinite(tree).all())


def _restore(
    learner: Learner,
    environments: Environments,
    noise: Noise,
    outcome: Outcome,
    start: Sequence[Loaded],
) -> bool:
    """Go on from checkpoints, one a member; whether an evaluation is due.

    Raises:
        Exception: a state has another form than what it is to be put into.
    """
    algorithm, replay, averages = learner.algorithm, learner.replay, learner.averages
    states = [loaded.state for loaded in start]
    anything: dict[str, Any] = {}  # a generator of another device has a state of another length
    for member, state in enumerate(states):
        own = {
            "algorithm": algorithm.state(member) | {"random": anything},
            "noise": noise.state(member),
            "replay": replay.state(member) | {"random": anything},
            "environments": environments.state(member) | {"simulators": {}},
            "averages": {},
            "evaluations": {},
            "evaluation_due": False,
            "files": {},
            "random": global_random_state(),
        }
        check_form(own, state, f"seed {environments.seeds[member]}")
        if state["replay"] | {"random": None} != states[0]["replay"] | {"random": None}:
            raise ValueError("the seeds have not stored the same number of transitions")
    outcome.step = start[0].step
    outcome.evaluations = [[(int(step), float(mean)) for step, mean in state["evaluations"]] for state in states]
    algorithm.load_state([state["algorithm"] for state in states])
    replay.load_state([state["replay"] for state in states], [loaded.transitions.parts() for loaded in start])
    noise.load_state([state["noise"] for state in states])
    averages.load_state([state["averages"] for state in states])
    learner.restored()
    anew = environments.load_state([state["environments"] for state in states], outcome.step)
    if anew.any():
        noise.reset(anew)
    set_global_random_state(states[0]["random"])
    return bool(states[0]["evaluation_due"])


def seed_global_random_state(seed: int) -> None:
    """Nothing here draws from the global generators, but an environment may, and a seed is then still one run."""
    number = integer(seed, Purpose.GLOBAL)
    torch.default_generator.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002
    random.seed(number)


def global_random_state() -> dict[str, Any]:
    """Of the global generators."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [kind, keys, *rest],
        "python": [version, list(numbers), gauss],
    }


def set_global_random_state(state: Mapping[str, Any]) -> None:
    """Go on from `global_random_state()`."""
    if not 0 <= state["numpy"][2] <= len(state["numpy"][1]):  # which NumPy does not check
        raise ValueError("not a state of a random generator")
    torch.set_rng_state(state["torch"])
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
