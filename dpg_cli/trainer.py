"""The training loop."""

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
from dpg_cli.environments.processes import EnvProcessError
from dpg_cli.environments.rollout import Environments, Episode, collect
from dpg_cli.errors import DivergedError, SimulatorError, UserError
from dpg_cli.learner import Learner
from dpg_cli.metrics import Recorder
from dpg_cli.noise import Noise
from dpg_cli.replay import Step
from dpg_cli.seeding import Purpose, integer
from dpg_cli.storage.checkpoint import Checkpoints, Loaded
from dpg_cli.storage.shapes import check_form

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
class Schedule:
    """What happens when, in environment steps per seed.

    With E environments per seed, steps advance by E, and an event is due when its interval is crossed.

    Attributes:
        total_steps: length of the training.
        random_steps: steps with uniformly random actions at the start.
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
        """Exclude the time inside the block."""
        start = time.perf_counter()
        yield
        self._excluded += time.perf_counter() - start

    def rates(self) -> dict[str, float]:
        """Steps and updates per second."""
        seconds = time.perf_counter() - self._start - self._excluded
        return {
            "perf/steps_per_second": self.steps / seconds,
            "perf/updates_per_second": self.updates / seconds,
        }


def train(
    learner: Learner,
    environments: Environments,
    evaluation_envs: EnvGroup | None,
    noise: Noise,
    schedule: Schedule,
    recorders: Sequence[Recorder],
    checkpoints: Sequence[Checkpoints],
    start: Sequence[Loaded] | None = None,
    *,
    progress: Progress,
    stop: Callable[[], bool],
) -> Outcome:
    """Train S members, each in its own environments and folder.

    All steps are environment steps per seed. With E environments per seed, the updates of a vector step come after it.

    Args:
        learner: learns and acts; its replay is empty.
        environments: to train in.
        evaluation_envs: one environment per episode of an evaluation, for each of the S members. None: the last ten
            training episodes take the place of an evaluation, without those that end while actions are random.
        noise: exploration noise.
        schedule: what happens when.
        recorders: one per member.
        checkpoints: one per member.
        start: the checkpoint to resume from, one per member; None for a new run.
        progress: is told of steps and evaluations.
        stop: called after every step; True ends the training early, with a checkpoint. An evaluation is abandoned.

    Returns:
        All evaluations, and the step at which the training ended.

    Raises:
        DivergedError: an action, a reward, an observation or a loss is not finite.
        SimulatorError: an environment raised; a checkpoint of the last complete step is written.
        UserError: `start` does not fit this config.
        DiskError: a file cannot be written.
    """
    seeds = environments.seeds
    num_envs = environments.num_envs
    algorithm, replay, averages = learner.algorithm, learner.replay, learner.averages
    first_update = max(schedule.learning_starts, algorithm.batch_size - 1)
    outcome = Outcome([[] for _ in seeds], evaluated=evaluation_envs is not None)
    last_returns: list[deque[float]] = [deque(maxlen=LAST_EPISODES) for _ in seeds]
    watch = Stopwatch()
    saved = -1 if start is None else start[0].step  # the step of the last checkpoint
    training_lost = True  # where an environment raises, unless that was in an evaluation

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

    def evaluations_at(step: int) -> list[Evaluation]:
        if evaluation_envs is None:
            return [Evaluation(list(returns), [], None) for returns in last_returns]
        act = learner.act_to_evaluate
        return evaluate(algorithm, evaluation_envs, seeds, step, stop, act, progress.evaluating)

    def run_evaluation(step: int) -> None:
        nonlocal training_lost
        with watch.paused():
            try:
                evaluations = evaluations_at(step)
            except StopRequested:
                outcome.interrupted = True
                return
            except SimulatorError:
                training_lost = False
                raise
            for member, evaluation in enumerate(evaluations):
                if not evaluation.returns:  # no training episode has ended
                    continue
                mean = float(np.mean(evaluation.returns))
                if evaluation_envs is None:
                    recorders[member].scalars(step, {"train/last_10_returns": mean})
                else:
                    recorders[member].evaluation(step, evaluation)
                outcome.evaluations[member].append((step, mean))
                if outcome.best(member)[0] == step:
                    checkpoints[member].save_best(step, algorithm.policy_state(member))
            if all(evaluation.returns for evaluation in evaluations):
                progress.evaluated(step, evaluations)

    def save_checkpoint(step: int, *, evaluation_due: bool) -> None:
        nonlocal saved
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
                if evaluation_envs is None:
                    state["last_returns"] = list(last_returns[member])
                rows, oldest = replay.rows(member, writer.stored), replay.added - replay.size
                writer.save(step, algorithm.policy_state(member), state, rows, oldest)
        saved = step

    learner.prepare()
    if start is None:
        seed_global_random_state(seeds[0])
        environments.reset()
        algorithm.observe(environments.obs)
        save_checkpoint(0, evaluation_due=True)
        evaluation_due = True
    else:
        try:
            evaluation_due = _restore(learner, environments, noise, outcome, last_returns, start)
        except torch.OutOfMemoryError:  # says nothing about the checkpoint
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise UserError(f"the checkpoint of step {start[0].step} cannot be resumed: {error}") from error
        for reason in environments.restarts:
            progress.restarted(reason)
    progress.started(outcome.step, outcome.evaluations)
    if evaluation_due:
        run_evaluation(outcome.step)
    if outcome.interrupted:  # the checkpoint at the start already says that it is due
        return outcome
    # At `total_steps` the loop below makes no step, so it does not save this evaluation.
    if start is not None and evaluation_due and outcome.step >= schedule.total_steps:
        save_checkpoint(outcome.step, evaluation_due=False)

    total_steps, random_steps = schedule.total_steps, schedule.random_steps
    try:
        for step, transition, episodes in collect(
            learner, environments, noise, step=outcome.step, total_steps=total_steps, random_steps=random_steps
        ):
            updates = updates_due(step) - updates_due(step - num_envs)
            acts_next = random_steps <= step < total_steps
            learner.learn(
                Step(*transition), observed=environments.obs, updates=updates, acts_next=acts_next, ended=episodes
            )
            watch.updates += updates
            watch.steps += num_envs

            averages.add_episodes(episodes)
            if step - num_envs >= random_steps:
                averages.add_noise_scale(noise.scale_at(step - num_envs))
                for episode in episodes:
                    last_returns[episode.member].append(episode.episode_return)
            progress.stepped(step, episodes)

            # A run stops and resumes only here.
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

        # After the last checkpoint, so that a resumed and extended run equals one that was longer from the start.
        if not crossed(schedule.log_every, outcome.step):
            record(outcome.step)
        if not crossed(schedule.eval_every, outcome.step):
            run_evaluation(outcome.step)
    except SimulatorError as error:  # the networks are those of the last complete step
        if saved < outcome.step:
            environments.copyable &= not (training_lost or isinstance(error, EnvProcessError))
            save_checkpoint(outcome.step, evaluation_due=evaluation_due)
        raise
    return outcome


def all_finite(tree: Any) -> bool:
    """Whether all numbers in nested dictionaries and lists of tensors, arrays and numbers are finite."""
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
    last_returns: Sequence[deque[float]],
    start: Sequence[Loaded],
) -> bool:
    """Load checkpoints, one per member; returns whether an evaluation is due.

    Raises:
        Exception: a state does not have the form of the object that it belongs to.
    """
    algorithm, replay, averages = learner.algorithm, learner.replay, learner.averages
    states = [loaded.state for loaded in start]
    anything: dict[str, Any] = {}
    for member, state in enumerate(states):
        own_replay = replay.state(member)
        own = {
            # A generator's state has another length on another device.
            "algorithm": algorithm.state(member) | {"random": anything},
            "noise": noise.state(member),
            # Priorities are as many as transitions.
            "replay": own_replay | dict.fromkeys(own_replay.keys() & {"random", "lap"}, anything),
            "environments": environments.state(member) | {"simulators": {}},
            "averages": {},
            "evaluations": {},
            "evaluation_due": False,
            "files": {},
            "random": global_random_state(),
        }
        if not outcome.evaluated:
            own["last_returns"] = anything
        check_form(own, state, f"seed {environments.seeds[member]}")
        if any(state["replay"][name] != states[0]["replay"][name] for name in ("added", "size")):
            raise ValueError("the seeds have not stored the same number of transitions")
    outcome.step = start[0].step
    outcome.evaluations = [[(int(step), float(mean)) for step, mean in state["evaluations"]] for state in states]
    for returns, state in zip(last_returns, states, strict=True):
        returns.extend(map(float, state.get("last_returns", ())))
    algorithm.load_state([state["algorithm"] for state in states])
    replay.load_state([state["replay"] for state in states], [loaded.transitions.parts() for loaded in start])
    noise.load_state([state["noise"] for state in states])
    averages.load_state([state["averages"] for state in states])
    learner.restored()
    anew = environments.load_state([state["environments"] for state in states], outcome.step)
    if anew.any():
        noise.reset(anew)
        replay.cut(anew)
    set_global_random_state(states[0]["random"])
    return bool(states[0]["evaluation_due"])


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
