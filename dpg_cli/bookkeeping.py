"""What every training does at its strides: records, evaluations and checkpoints; and what it comes to."""

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from dpg_cli.environments.evaluation import Evaluation, StopRequested, evaluate
from dpg_cli.environments.group import EnvGroup
from dpg_cli.environments.rollout import Episode
from dpg_cli.errors import DivergedError, SimulatorError, UserError
from dpg_cli.learner import Learner
from dpg_cli.metrics import Recorder
from dpg_cli.seeding import Purpose, integer
from dpg_cli.storage.checkpoint import Checkpoints, Loaded

LAST_EPISODES = 10  # training episodes that make a score where there are no evaluations


class Progress(Protocol):
    """Is told how a training progresses."""

    def started(self, step: int, evaluations: Sequence[Sequence[tuple[int, float]]]) -> None:
        """Called before the first step.

        Args:
            step: environment steps made before, per seed; 0 for a new run.
            evaluations: those before, as in `Outcome`.
        """

    def stepped(self, step: int, episodes: Sequence[Episode]) -> None:
        """Called after each vector step; `step` counts environment steps per seed."""

    def restarted(self, reason: str) -> None:
        """Called where a resumed run starts a new episode, before the first step."""

    def evaluating(self, steps: int) -> None:
        """Called after each step of an evaluation, with the steps of its longest episode so far."""

    def evaluated(self, step: int, evaluations: Sequence[Evaluation]) -> None:
        """Called after each evaluation, with one result per member."""


@dataclass
class Outcome:
    """The result of a training.

    Without evaluation environments, the last training episodes of each member take the place of its evaluation.

    Attributes:
        evaluations: by member, the step and mean return of each evaluation.
        evaluated: whether they are evaluations, not training episodes.
        step: environment steps made per seed.
        interrupted: whether `stop` ended it.
    """

    evaluations: list[list[tuple[int, float]]]
    evaluated: bool = True
    step: int = 0
    interrupted: bool = False

    def final(self, member: int) -> float:
        """Mean return of the last evaluation; NaN without any."""
        return self.evaluations[member][-1][1] if self.evaluations[member] else math.nan

    def best(self, member: int) -> tuple[int, float]:
        """Step and mean return of the best evaluation; the first of equals; NaN without any."""
        return max(self.evaluations[member], key=lambda evaluation: evaluation[1], default=(self.step, math.nan))

    def scores(self) -> list[float]:
        """Mean of the last ten evaluations, or training episodes, of each member; NaN without any."""
        if not self.evaluated:
            return [self.final(member) for member in range(len(self.evaluations))]
        return [float(np.mean([mean for _, mean in own[-10:]])) if own else math.nan for own in self.evaluations]

    def score(self) -> float:
        """Mean of the last ten evaluations, or training episodes, over all members; NaN without any."""
        last = 10 if self.evaluated else 1
        means = [mean for member in self.evaluations for _, mean in member[-last:]]
        return float(np.mean(means)) if means else math.nan


@dataclass(frozen=True, kw_only=True)
class Strides:
    """When a training does what besides learning, in environment steps per seed; offline, in updates.

    An event is due when its interval is crossed.

    Attributes:
        total_steps: length of the training.
        eval_every: steps between evaluations.
        checkpoint_every: steps between checkpoints.
        log_every: steps between records.
    """

    total_steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int


class Stopwatch:
    """Speed since the last record, evaluations and checkpoints excluded.

    Args:
        updates: made so far.

    Attributes:
        steps: of the environments, which the loop counts.
    """

    def __init__(self, updates: float):
        self.steps = 0
        self._updates = updates
        self._excluded = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside the block."""
        start = time.perf_counter()
        yield
        self._excluded += time.perf_counter() - start

    def rates(self, updates: float) -> dict[str, float]:
        """Steps and updates per second, with `updates` made by now."""
        seconds = time.perf_counter() - self._start - self._excluded
        return {
            "perf/steps_per_second": self.steps / seconds,
            "perf/updates_per_second": (updates - self._updates) / seconds,
        }


class Bookkeeper:
    """Writes records, evaluations and checkpoints of S members, each when it is due.

    Args:
        learner: learns and acts.
        evaluation_envs: one environment per episode of an evaluation, for each of the S members. None: the last
            training episodes in `last_returns` take the place of an evaluation.
        seeds: one per member.
        strides: what is due when.
        recorders: one per member.
        checkpoints: one per member.
        state: the part of a member's checkpoint that only its training loop knows.
        start: the checkpoint to resume from, one per member; None for a new run.
        progress: is told of the start and of evaluations.
        stop: called after every step and between its updates; True ends the training early, with a checkpoint. An
            evaluation is abandoned.
        stride: steps that are made at once.
        offline: whether steps are updates, made without training environments.

    Attributes:
        outcome: what the training has come to.
        last_returns: of each member's last training episodes.
        watch: measures the speed.
        saved: the step of the last checkpoint.
        evaluation_due: whether the evaluation of the last step is still to be made.
        training_lost: False once an environment has raised in an evaluation, which leaves the training's intact.
    """

    def __init__(
        self,
        learner: Learner,
        evaluation_envs: EnvGroup | None,
        seeds: Sequence[int],
        strides: Strides,
        recorders: Sequence[Recorder],
        checkpoints: Sequence[Checkpoints],
        state: Callable[[int], dict[str, Any]],
        start: Sequence[Loaded] | None,
        *,
        progress: Progress,
        stop: Callable[[], bool],
        stride: int = 1,
        offline: bool = False,
    ):
        self.outcome = Outcome([[] for _ in seeds], evaluated=evaluation_envs is not None)
        self.last_returns: list[deque[float]] = [deque(maxlen=LAST_EPISODES) for _ in seeds]
        self.watch = Stopwatch(0)
        self.saved = -1 if start is None else start[0].step
        self.evaluation_due = start is None
        self.training_lost = True
        self._learner, self._evaluation_envs, self._seeds, self._strides = learner, evaluation_envs, seeds, strides
        self._recorders, self._checkpoints, self._state, self._start = recorders, checkpoints, state, start
        self._progress, self._stop, self._stride = progress, stop, stride
        self._offline, self._step = offline, "update" if offline else "step"

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Explain what `start` does not fit. In the block, everything is restored.

        Raises:
            UserError: it does not fit this config.
        """
        assert self._start is not None
        try:
            yield
        except torch.OutOfMemoryError:  # says nothing about the checkpoint
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            where = f"{self._step} {self._start[0].step}"
            raise UserError(f"the checkpoint of {where} cannot be resumed: {error}") from error

    def restore(self, states: Sequence[Mapping[str, Any]], step: int) -> None:
        """Restore its own part of checkpoints, one per member.

        Raises:
            ValueError: a number of the learner is not finite.
        """
        for state in states:
            for name, part in state["algorithm"].items():
                if not all_finite(part):
                    raise ValueError(f"{name} is not finite")
        self.outcome.step = step
        self.outcome.evaluations = [[(int(at), float(mean)) for at, mean in state["evaluations"]] for state in states]
        for returns, state in zip(self.last_returns, states, strict=True):
            returns.extend(map(float, state.get("last_returns", ())))
        self.evaluation_due = bool(states[0]["evaluation_due"])

    def begin(self) -> None:
        """Save a new run and make its first evaluation, or do what an interruption has left to do."""
        outcome = self.outcome
        if self._start is None:
            self.save(0)
        self.watch = Stopwatch(self._learner.algorithm.updates)
        self._progress.started(outcome.step, outcome.evaluations)
        unfinished, due = self._learner.unfinished, self.evaluation_due
        if unfinished:
            self._learner.catch_up(self._stop)
            outcome.interrupted = self._learner.unfinished
            if not outcome.interrupted and self._crossed(self._strides.log_every, outcome.step):
                self._record(outcome.step)
        if due and not outcome.interrupted:
            self._evaluate(outcome.step)
        self.evaluation_due = due and outcome.interrupted
        if outcome.interrupted and not unfinished:  # the checkpoint at the start already says that it is due
            return
        # At `total_steps` no step follows that would save this.
        complete = outcome.step >= self._strides.total_steps
        if outcome.interrupted or (self._start is not None and (due or unfinished) and complete):
            self.save(outcome.step)

    def passed(self, step: int) -> bool:
        """Do what is due after a step; where a stop has left some of its updates, only save.

        Returns:
            Whether the training ends early.
        """
        outcome, strides = self.outcome, self._strides
        outcome.step = step
        unfinished = self._learner.unfinished
        complete = step >= strides.total_steps
        outcome.interrupted = unfinished or (self._stop() and not complete)
        if self._crossed(strides.log_every, step) and not unfinished:
            self._record(step)
        self.evaluation_due = self._crossed(strides.eval_every, step)
        if self.evaluation_due and not outcome.interrupted:
            self._evaluate(step)
            self.evaluation_due = outcome.interrupted
        if self._crossed(strides.checkpoint_every, step) or complete or outcome.interrupted:
            self.save(step)
        return outcome.interrupted

    def end(self) -> None:
        """Record and evaluate at the end, unless that was due anyway.

        It comes after the last checkpoint, so that a resumed and extended run equals one that was longer from the
        start.
        """
        step = self.outcome.step
        if not self._crossed(self._strides.log_every, step):
            self._record(step)
        if not self._crossed(self._strides.eval_every, step):
            self._evaluate(step)

    def save(self, step: int) -> None:
        """Write a checkpoint of every member.

        Raises:
            DivergedError: a number of the learner is not finite.
            DiskError: a file cannot be written.
        """
        learner = self._learner
        algorithm, replay, averages = learner.algorithm, learner.replay, learner.averages
        with self.watch.paused(), learner.saving():
            for member, writer in enumerate(self._checkpoints):
                learned = algorithm.state(member)
                averaged = averages.state(member)
                for name, part in {**learned, "average": averaged}.items():
                    if not all_finite(part):
                        seed = self._seeds[member]
                        raise DivergedError(f"seed {seed}, {self._step} {step}: {name} is not finite")
                state = {
                    "algorithm": learned,
                    **self._state(member),
                    "averages": averaged,
                    "evaluations": self.outcome.evaluations[member],
                    "evaluation_due": self.evaluation_due,
                    "files": self._recorders[member].sizes(),
                    "random": global_random_state(),
                }
                if self._evaluation_envs is None:
                    state["last_returns"] = list(self.last_returns[member])
                rows, oldest = replay.rows(member, writer.stored), replay.added - replay.size
                writer.save(step, algorithm.policy_state(member), state, rows, oldest)
        self.saved = step

    def _crossed(self, every: int, step: int) -> bool:
        return step // every > (step - self._stride) // every

    def _record(self, step: int) -> None:
        updates = self._learner.algorithm.updates
        rates = self.watch.rates(updates)
        if self._offline:
            del rates["perf/steps_per_second"]
        for recorder, seed, values in zip(self._recorders, self._seeds, self._learner.averages.take(), strict=True):
            for tag, value in values.items():
                if not math.isfinite(value):
                    raise DivergedError(f"seed {seed}, {self._step} {step}: {tag} is not finite")
            recorder.scalars(step, values | rates)
        self.watch = Stopwatch(updates)

    def _evaluations_at(self, step: int) -> list[Evaluation]:
        if self._evaluation_envs is None:
            return [Evaluation(list(returns), [], None) for returns in self.last_returns]
        algorithm, act = self._learner.algorithm, self._learner.act_to_evaluate
        told = self._progress.evaluating
        return evaluate(algorithm, self._evaluation_envs, self._seeds, step, self._stop, act, told, counted=self._step)

    def _evaluate(self, step: int) -> None:
        outcome, algorithm = self.outcome, self._learner.algorithm
        with self.watch.paused():
            try:
                evaluations = self._evaluations_at(step)
            except StopRequested:
                outcome.interrupted = True
                return
            except SimulatorError:
                self.training_lost = False
                raise
            for member, evaluation in enumerate(evaluations):
                if not evaluation.returns:  # no training episode has ended
                    continue
                mean = float(np.mean(evaluation.returns))
                if self._evaluation_envs is None:
                    self._recorders[member].scalars(step, {"train/last_10_returns": mean})
                else:
                    self._recorders[member].evaluation(step, evaluation)
                outcome.evaluations[member].append((step, mean))
                if outcome.best(member)[0] == step:
                    self._checkpoints[member].save_best(step, algorithm.policy_state(member))
            if all(evaluation.returns for evaluation in evaluations):
                self._progress.evaluated(step, evaluations)


def all_finite(tree: Any) -> bool:
    """Whether all numbers in nested dictionaries and lists of tensors, arrays and numbers are finite."""
    if isinstance(tree, Mapping):
        return all(map(all_finite, tree.values()))
    if isinstance(tree, list | tuple):
        return all(map(all_finite, tree))
    if isinstance(tree, torch.Tensor):
        return bool(tree.isfinite().all())
    return not isinstance(tree, np.ndarray | float) or bool(np.isfinite(tree).all())


def seed_global_random_state(seed: int) -> None:
    """Seed the global generators. The project does not use them, but an environment may."""
    number = integer(seed, Purpose.GLOBAL)
    torch.default_generator.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002
    random.seed(number)


def global_random_state() -> dict[str, Any]:
    """The state of the global generators of torch, NumPy and Python."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [kind, keys, *rest],
        "python": [version, list(numbers), gauss],
    }


def set_global_random_state(state: Mapping[str, Any]) -> None:
    """Restore `global_random_state()`.

    Raises:
        ValueError: it is not such a state.
    """
    if not 0 <= state["numpy"][2] <= len(state["numpy"][1]):  # NumPy does not check this
        raise ValueError("not a state of a random generator")
    torch.set_rng_state(state["torch"])
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
