"""The training loop."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dpg_cli.bookkeeping import (
    Bookkeeper,
    Outcome,
    Progress,
    Strides,
    global_random_state,
    seed_global_random_state,
    set_global_random_state,
)
from dpg_cli.environments.group import EnvGroup
from dpg_cli.environments.processes import EnvProcessError
from dpg_cli.environments.rollout import Environments, collect
from dpg_cli.errors import SimulatorError
from dpg_cli.learner import Learner
from dpg_cli.metrics import Recorder
from dpg_cli.noise import Noise
from dpg_cli.replay import Step
from dpg_cli.storage.checkpoint import Checkpoints, Loaded
from dpg_cli.storage.shapes import check_form


@dataclass(frozen=True, kw_only=True)
class Schedule(Strides):
    """What happens when, in environment steps per seed.

    With E environments per seed, steps advance by E.

    Attributes:
        random_steps: steps with uniformly random actions at the start.
        learning_starts: steps before the first update. The first update never comes before one batch is stored.
        updates_per_step: updates for each step after `learning_starts`.
    """

    random_steps: int
    learning_starts: int
    updates_per_step: float


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
        stop: called after every step and between its updates; True ends the training early, with a checkpoint. An
            evaluation is abandoned.

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
    algorithm, averages = learner.algorithm, learner.averages
    first_update = max(schedule.learning_starts, algorithm.batch_size - 1)

    def state(member: int) -> dict[str, Any]:
        return {
            "noise": noise.state(member),
            "replay": learner.replay.state(member),
            "environments": environments.state(member),
        }

    keeper = Bookkeeper(
        *(learner, evaluation_envs, seeds, schedule, recorders, checkpoints, state, start),
        progress=progress,
        stop=stop,
        stride=num_envs,
    )
    outcome = keeper.outcome

    def updates_due(step: int) -> int:
        return math.floor(max(step - first_update, 0) * schedule.updates_per_step)

    learner.prepare()
    if start is None:
        seed_global_random_state(seeds[0])
        environments.reset()
        algorithm.observe(environments.obs)
    else:
        with keeper.restoring():
            _restore(learner, environments, noise, keeper, start)
        for reason in environments.restarts:
            progress.restarted(reason)
    keeper.begin()
    if outcome.interrupted:
        return outcome

    total_steps, random_steps = schedule.total_steps, schedule.random_steps
    try:
        for step, transition, episodes in collect(
            learner, environments, noise, step=outcome.step, total_steps=total_steps, random_steps=random_steps
        ):
            updates = updates_due(step) - updates_due(step - num_envs)
            acts_next = random_steps <= step < total_steps
            learner.learn(
                Step(*transition),
                observed=environments.obs,
                updates=updates,
                acts_next=acts_next,
                ended=episodes,
                stop=stop,
            )
            keeper.watch.steps += num_envs

            averages.add_episodes(episodes)
            if step - num_envs >= random_steps:
                averages.add_noise_scale(noise.scale_at(step - num_envs))
                for episode in episodes:
                    keeper.last_returns[episode.member].append(episode.episode_return)
            progress.stepped(step, episodes)
            if keeper.passed(step):
                return outcome
        keeper.end()
    except SimulatorError as error:  # the networks are those of the last complete step
        if keeper.saved < outcome.step:
            environments.copyable &= not (keeper.training_lost or isinstance(error, EnvProcessError))
            keeper.save(outcome.step)
        raise
    return outcome


def _restore(
    learner: Learner,
    environments: Environments,
    noise: Noise,
    keeper: Bookkeeper,
    start: Sequence[Loaded],
) -> None:
    """Load checkpoints, one per member.

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
        if not keeper.outcome.evaluated:
            own["last_returns"] = anything
        check_form(own, state, f"seed {environments.seeds[member]}")
        if any(state["replay"][name] != states[0]["replay"][name] for name in ("added", "size")):
            raise ValueError("the seeds have not stored the same number of transitions")
    keeper.restore(states, start[0].step)
    algorithm.load_state([state["algorithm"] for state in states])
    replay.load_state([state["replay"] for state in states], [loaded.transitions.parts() for loaded in start])
    noise.load_state([state["noise"] for state in states])
    averages.load_state([state["averages"] for state in states])
    learner.restored()
    anew = environments.load_state([state["environments"] for state in states], start[0].step)
    if anew.any():
        noise.reset(anew)
        replay.cut(anew)
    set_global_random_state(states[0]["random"])
