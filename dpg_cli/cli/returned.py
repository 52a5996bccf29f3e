"""What a job of a sweep returns to Hydra's sweeper."""

import math
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig


class NoScoreError(Exception):
    """A job has no score for the sweeper. Raised only where the sweeper handles exceptions of jobs."""


def checked_score(score: float, sweeper: DictConfig, reason: str | None) -> float:
    """The score of a job, as it returns it.

    A job without a score returns NaN: after an exception Hydra's own sweeper would start no further batch of jobs.
    But hydra-optuna-sweeper 1.3.0 ends the search at NaN; it only counts a job as failed that raises an exception.

    Args:
        score: NaN without any.
        sweeper: the node `hydra.sweeper`.
        reason: why the job failed; None if it did not.

    Raises:
        NoScoreError: there is no score, and the sweeper is Optuna's.
    """
    if math.isnan(score) and is_optuna(sweeper):
        raise NoScoreError(reason or "no evaluation and no finished training episode")
    return score


def fill(done: JobReturn, score: float, sweeper: DictConfig, reason: str | None) -> None:
    """Complete the record of a job that ran in another process; the arguments are those of `checked_score`."""
    try:
        done.return_value, done.status = checked_score(score, sweeper, reason), JobStatus.COMPLETED
    except NoScoreError as error:
        done.return_value, done.status = error, JobStatus.FAILED


def is_optuna(sweeper: DictConfig | Any) -> bool:
    """Whether a node `hydra.sweeper` chooses hydra-optuna-sweeper."""
    return str(sweeper.get("_target_")).endswith(".OptunaSweeper")
