"""The scores of a sweep's jobs, read from their folders, wherever the jobs ran."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dpg_cli.cli.names import without_seed
from dpg_cli.errors import UserError
from dpg_cli.storage import untrusted
from dpg_cli.sweeps.record import Job

LAST = 10  # evaluations in a score


@dataclass(frozen=True)
class Scores:
    """What a job has scored so far.

    Attributes:
        means: by seed, the mean of its last ten evaluations or training episodes; NaN without any.
        evaluated: whether they are of evaluations, not of training episodes.
    """

    means: Sequence[float]
    evaluated: bool

    def mean(self) -> float:
        """Over all seeds; NaN without any."""
        known = [mean for mean in self.means if not math.isnan(mean)]
        return float(np.mean(known)) if known else math.nan


def scores_of(folder: Path) -> Scores | None:
    """The scores of a run folder; None if it has none.

    Args:
        folder: with several seeds, the parent of theirs.
    """
    seeds = sorted(folder.glob("seed_*"), key=lambda path: (len(path.name), path.name))
    found = [own for seed in seeds or [folder] if (own := _of_seed(seed)) is not None]
    return Scores([mean for mean, _ in found], all(evaluated for _, evaluated in found)) if found else None


def _of_seed(folder: Path) -> tuple[float, bool] | None:
    with contextlib.suppress(UserError):
        evaluations = untrusted.evaluations(folder)
        if evaluations:
            return float(np.mean([np.mean(returns) for _, returns in evaluations[-LAST:]])), True
        records = untrusted.records(folder / "metrics.jsonl")
        last = [record["train/last_10_returns"] for record in records if "train/last_10_returns" in record]
        return (float(last[-1]) if last else math.nan), False
    return None


def print_scores(console: Console, jobs: Sequence[tuple[Job, str, Scores | None]]) -> None:
    """Print a table of jobs, and one of means over seeds.

    Args:
        console: to print on.
        jobs: those that started, with the settings that differ and the scores.
    """
    scored = [scores.evaluated for _, _, scores in jobs if scores is not None]
    mixed = any(scored) and not all(scored)
    what = "" if mixed else " evaluations" if all(scored) else " training episodes"
    table = _table(["job", "settings that differ", f"mean of the last ten{what}"])
    over_seeds: dict[str, list[float]] = {}
    for job, differs, scores in jobs:
        table.add_row(str(job.number), differs, _score(job, scores, mixed=mixed))
        if job.state != "failed" and scores is not None and (means := list(_known(scores.means))):
            over_seeds.setdefault(without_seed(differs), []).extend(means)
    console.print(table)
    if any(len(means) > 1 for means in over_seeds.values()):
        console.print()
        table = _table(["seeds", "settings that differ", "mean ± spread over seeds"])
        for settings, means in over_seeds.items():
            table.add_row(str(len(means)), settings, f"{np.mean(means):.1f} ± {np.std(means):.1f}")
        console.print(table)


def _score(job: Job, scores: Scores | None, *, mixed: bool) -> str:
    if job.state == "failed":
        return "failed"
    score = "–" if scores is None or math.isnan(scores.mean()) else f"{scores.mean():.1f}"
    if mixed and scores is not None:
        score += " (evaluations)" if scores.evaluated else " (training episodes)"
    return (
        score if job.state == "done" else f"{score}, {'still running' if job.state == 'running' else 'stopped early'}"
    )


def _known(means: Sequence[float]) -> Iterator[float]:
    return (mean for mean in means if not math.isnan(mean))


def _table(headers: Sequence[str]) -> Table:
    """A table of a number, settings and a score."""
    table = Table(box=None, header_style="", pad_edge=False)
    number, settings, score = headers
    table.add_column(number, justify="right")
    table.add_column(settings, overflow="fold")
    table.add_column(score, justify="right")
    return table
