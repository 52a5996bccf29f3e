"""The loop of offline learning: updates from a data set. The environments are used for evaluations only."""

from collections.abc import Callable, Sequence
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
from dpg_cli.errors import SimulatorError
from dpg_cli.learner import Learner
from dpg_cli.metrics import Recorder
from dpg_cli.storage.checkpoint import Checkpoints, Loaded
from dpg_cli.storage.shapes import check_form


def train_offline(
    learner: Learner,
    evaluation_envs: EnvGroup,
    strides: Strides,
    digest: str,
    seeds: Sequence[int],
    recorders: Sequence[Recorder],
    checkpoints: Sequence[Checkpoints],
    start: Sequence[Loaded] | None = None,
    *,
    progress: Progress,
    stop: Callable[[], bool],
) -> Outcome:
    """Train S members on one data set, each in its own folder. Every step is one update.

    Args:
        learner: learns; its replay holds the data set.
        evaluation_envs: one environment per episode of an evaluation, for each of the S members.
        strides: what is due when, in updates.
        digest: of the data set; kept in checkpoints.
        seeds: one per member.
        recorders: one per member.
        checkpoints: one per member.
        start: the checkpoint to resume from, one per member; None for a new run.
        progress: is told of updates and evaluations.
        stop: called after every update; True ends the training early, with a checkpoint. An evaluation is abandoned.

    Returns:
        All evaluations, and the update at which the training ended.

    Raises:
        DivergedError: an action, a reward, an observation or a loss is not finite.
        SimulatorError: an environment raised; a checkpoint of the last update is written.
        UserError: `start` does not fit this config.
        DiskError: a file cannot be written.
    """

    def state(member: int) -> dict[str, Any]:
        return {"replay": learner.replay.state(member), "dataset": digest}

    keeper = Bookkeeper(
        *(learner, evaluation_envs, seeds, strides, recorders, checkpoints, state, start),
        progress=progress,
        stop=stop,
        offline=True,
    )
    outcome = keeper.outcome
    learner.prepare()
    if start is None:
        seed_global_random_state(seeds[0])
    else:
        with keeper.restoring():
            _restore(learner, keeper, start, digest)
    keeper.begin()
    if outcome.interrupted:
        return outcome
    try:
        for update in range(outcome.step + 1, strides.total_steps + 1):
            learner.update_once()
            progress.stepped(update, ())
            if keeper.passed(update):
                return outcome
        keeper.end()
    except SimulatorError:
        if keeper.saved < outcome.step:
            keeper.save(outcome.step)
        raise
    return outcome


def _restore(learner: Learner, keeper: Bookkeeper, start: Sequence[Loaded], digest: str) -> None:
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
            "replay": own_replay | dict.fromkeys(own_replay.keys() & {"random", "lap"}, anything),
            "dataset": digest,
            "averages": {},
            "evaluations": {},
            "evaluation_due": False,
            "files": {},
            "random": global_random_state(),
        }
        check_form(own, state, f"member {member}")
    keeper.restore(states, start[0].step)
    algorithm.load_state([state["algorithm"] for state in states])
    replay.load_state([state["replay"] for state in states], ())
    averages.load_state([state["averages"] for state in states])
    learner.restored()
    set_global_random_state(states[0]["random"])
