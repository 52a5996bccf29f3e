"""Notes that a run prints at its start: settings that are valid but probably not intended, and facts to know."""

from dpg_cli.captured_learner import CapturedLearner
from dpg_cli.cli.build import Training, sizes
from dpg_cli.cli.disk import disk_note
from dpg_cli.config import TrainConfig
from dpg_cli.environments.make import has_time_limit


def notes(config: TrainConfig, training: Training, copy_problem: str | None, thread_problem: str | None) -> list[str]:
    """The notes of a run, one line each.

    Args:
        config: of the run.
        training: the objects of the run.
        copy_problem: why the environment's state cannot be saved; None if it can.
        thread_problem: why the environment is not thread-safe; None if it is.
    """
    found = []
    if copy_problem is not None:
        found.append(
            f"{config.env.id}: its state cannot be saved in the middle of an episode ({copy_problem}). If this run is "
            "resumed, it starts a new episode there and is not the same bit for bit"
        )
    keys = ("env_processes", "env_threads")
    given = [f"{key}={value}" for key in keys if (value := getattr(config, key)) not in ("auto", 1)]
    if given and thread_problem is not None:
        found.append(f"{', '.join(given)}: {config.env.id} is stepped in a plain loop instead: {thread_problem}")
    if config.compile and not isinstance(training.learner, CapturedLearner):
        found.append("compile=true has no effect here: only work that is captured on a GPU is compiled")
    if not has_time_limit(training.evaluation_envs.example):
        found.append(f"{config.env.id} has no time limit of its own; env.max_episode_steps=1000 would set one")
    if (note := disk_note(config, *sizes(training.environments))) is not None:
        found.append(note)
    first = max(config.learning_starts, config.algo["batch_size"] - 1)
    if first >= config.total_steps:
        found.append(
            f"nothing will be learned: updates start after step {first:,}, total_steps is {config.total_steps:,}"
        )
    return found
