"""Find run folders, and read what they recorded. Every folder may come from a stranger."""

import bisect
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from dpg_cli.errors import UserError, one_line
from dpg_cli.storage import untrusted

MAX_FILE = 200_000_000  # bytes of metrics.jsonl or evaluations.jsonl; a million steps take one or two million
MAX_DEPTH = 12  # of folders below the given ones
STATUSES = ("done", "running", "interrupted", "failed")
Value = str | int | float | bool | None | tuple[Any, ...]


@dataclass(frozen=True)
class Run:
    """One seed's run.

    Attributes:
        folder: that holds it.
        part: `trial` or `validation` in the folder of a study, else empty.
        env_id: of the environment.
        algo: the algorithm's name.
        seed: of the run.
        settings: the config, flat: `algo.tau` to 0.005.
        record: `run.json`; empty if it is missing.
        steps: of the evaluations, rising, `(T,)`.
        returns: mean return of each evaluation, `(T,)`.
        hours: of training until each evaluation, `(T,)`; NaN where the run does not tell.
        untrained: returns of the episodes of the evaluation before the first step; empty if there is none.
        evaluated: False if the run made no evaluations; the points are then means of its last ten training episodes.
        saturation: mean of the last ten records of `policy/saturation`; NaN if there is none.
        not_finite: the step of the first evaluation whose return is not finite, before which the curve ends; None if
            all are.
    """

    folder: Path
    part: str
    env_id: str
    algo: str
    seed: int
    settings: Mapping[str, Value]
    record: Mapping[str, Any]
    steps: np.ndarray
    returns: np.ndarray
    hours: np.ndarray
    untrained: np.ndarray
    evaluated: bool
    saturation: float
    not_finite: int | None

    @property
    def status(self) -> str:
        """`done`, `running`, `interrupted` or `failed`; `unknown` if run.json does not tell."""
        found = self.record.get("status")
        return found if found in STATUSES else "unknown"

    @property
    def offline(self) -> bool:
        """Whether the run learned from a data set. Its steps are then updates."""
        return self.settings.get("dataset") is not None

    @property
    def dataset(self) -> str:
        """What `run.json` says about the data set of an offline run; empty if it says nothing."""
        found = self.record.get("dataset")
        if not isinstance(found, dict):
            return ""
        sources, sizes = found.get("sources"), [found.get(key) for key in ("transitions", "episodes")]
        if not isinstance(sources, list) or not all(type(size) is int for size in sizes):
            return ""
        returns = [found.get(key) for key in ("return_mean", "return_std")]
        known = all(_is_number(value) for value in returns)
        scored = f" with return {returns[0]:.1f} ± {returns[1]:.1f}" if known else ""
        named = "; ".join(map(str, sources))
        return one_line(f"{sizes[0]:,} transitions, {sizes[1]:,} complete episodes{scored}, from {named}")

    @property
    def error(self) -> str:
        """Why the run failed, in one line; empty if it did not."""
        found = self.record.get("error")
        return one_line(found) if isinstance(found, str) else ""


def find(roots: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The run folders at or below the given ones, each once, with the part of a study that they belong to.

    Neither links nor hidden folders are followed. The parent folder of several seeds is not a run of its own.

    Args:
        roots: run folders, sweeps, or folders above them.

    Raises:
        UserError: one of `roots` is not a folder.
    """
    seen = set()
    for root in roots:
        if not os.path.isdir(root):  # a name that is too long raises in Path.is_dir
            raise UserError(f"{root}: no such folder")
        for where, folders, files in os.walk(root):
            path = Path(where)
            is_run = "config.yaml" in files and bool({"evaluations.jsonl", "run.json"} & set(files))
            if is_run:
                folders[:] = [name for name in folders if name.startswith("seed_")]
            elif len(path.parts) - len(root.parts) >= MAX_DEPTH:
                folders.clear()
            links = {"tensorboard"} if "sweep.json" in files else set()  # links, or copies where links were followed
            folders[:] = sorted(
                (name for name in folders if not name.startswith(".") and name not in links), key=_order
            )
            if is_run and not folders and (resolved := path.resolve()) not in seen:
                seen.add(resolved)
                yield path, _part_of_study(path, root)


def read(folder: Path, part: str, completed: Callable[[Mapping[str, Value]], dict[str, Value]]) -> Run:
    """Read a run.

    Args:
        folder: the run folder.
        part: of a study, as `find` gives it.
        completed: adds the keys that a config of an earlier version of dpg-cli lacks, with today's defaults.

    Raises:
        UserError: a required part is missing, damaged or too large.
    """
    config = flat(untrusted.read_yaml(folder / "config.yaml"))
    env_id, algo, seed = config.get("env.id"), config.get("algo.name"), config.get("seed")
    for key, value, kind in (("env.id", env_id, str), ("algo.name", algo, str), ("seed", seed, int)):
        if type(value) is not kind or not 0 < len(str(value)) <= 200:
            raise UserError(f"{folder / 'config.yaml'}: has no valid {key}")
    record = untrusted.run_file(folder)
    config = completed(config)
    metrics = _metrics(folder)
    steps, returns, untrained, not_finite = _evaluations(folder)
    if not len(steps) and not_finite is not None:
        raise UserError(f"{folder}: its evaluation at step {not_finite:,} is not a finite number")
    evaluated = bool(len(steps)) or not metrics.episodes
    if not evaluated:
        steps, returns = (np.array(column) for column in zip(*metrics.episodes.items(), strict=True))
    if not len(steps):
        raise UserError(f"{folder}: has no evaluations" + _because(record))
    return Run(
        folder=folder,
        part=part,
        env_id=one_line(env_id),
        algo=one_line(algo),
        seed=int(str(seed)),
        settings=config,
        record=record,
        steps=steps,
        returns=returns,
        hours=_hours(record, metrics.times, steps),
        untrained=untrained,
        evaluated=evaluated,
        saturation=float(np.mean(metrics.saturation[-10:])) if metrics.saturation else math.nan,
        not_finite=not_finite,
    )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested mappings as one: `{"algo": {"tau": 0.005}}` to `{"algo.tau": 0.005}`. Lists become tuples."""
    found: dict[str, Value] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[one_line(f"{prefix}{key}")] = _frozen(value)
    return found


def _frozen(value: Any) -> Value:
    if isinstance(value, Mapping):
        return tuple((str(key), _frozen(own)) for key, own in value.items())
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _order(name: str) -> tuple[str, int, str]:
    """Job 2 before job 10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :][:18] or 0), name


def _part_of_study(path: Path, root: Path) -> str:
    for folder in itertools.islice((path, *path.parents), MAX_DEPTH):
        if (folder / "study.yaml").is_file():
            return "validation" if "validation" in path.relative_to(folder).parts else "trial"
        if folder == root.parent:
            break
    return ""


def _because(record: Mapping[str, Any]) -> str:
    error = record.get("error")
    return f" ({one_line(error)})" if isinstance(error, str) else ""


def _check_size(path: Path) -> None:
    if (size := path.lstat().st_size) > MAX_FILE:
        raise UserError(f"{path}: has {size:,} bytes, more than the {MAX_FILE:,} allowed")


def _evaluations(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, int | None]:
    """Steps, mean returns, the episodes of the evaluation at step 0, and the first step that is not finite."""
    path = folder / "evaluations.jsonl"
    if not path.is_file():
        return np.empty(0, int), np.empty(0), np.empty(0), None
    _check_size(path)
    steps: list[int] = []
    means: list[float] = []
    untrained = np.empty(0)
    for step, returns in untrusted.evaluations(folder):
        if not 0 <= step < 2**53 or (steps and step <= steps[-1]):
            raise UserError(f"{path}: step {one_line(step)} is out of order")
        mean = float(np.mean(returns))
        if not math.isfinite(mean):
            return np.array(steps, int), np.array(means), untrained, step
        if step == 0:
            untrained = np.array(returns)
        steps.append(step)
        means.append(mean)
    return np.array(steps, int), np.array(means), untrained, None


@dataclass(frozen=True)
class _Metrics:
    """What a report needs of `metrics.jsonl`.

    Attributes:
        times: of the last record at a step, in seconds, by step.
        episodes: mean return of the last ten training episodes, by step; only of runs without evaluations.
        saturation: every record of `policy/saturation`.
    """

    times: dict[int, float]
    episodes: dict[int, float]
    saturation: list[float]


def _metrics(folder: Path) -> _Metrics:
    found = _Metrics({}, {}, [])
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return found
    _check_size(path)
    last = -1
    for record in untrusted.records(path):
        step = record["step"]
        if not max(last, 0) <= step < 2**53:
            raise UserError(f"{path}: step {one_line(step)} is out of order")
        last = step
        if _is_number(when := record.get("time")):
            found.times[step] = float(when)
        if _is_number(value := record.get("train/last_10_returns")):
            found.episodes[step] = float(value)
        if _is_number(value := record.get("policy/saturation")):
            found.saturation.append(float(value))
    return found


def _is_number(value: Any) -> TypeGuard[int | float]:
    return type(value) in (int, float) and abs(value) < 1e300


def _hours(record: Mapping[str, Any], times: Mapping[int, float], steps: np.ndarray) -> np.ndarray:
    """Hours of training until each step, `(T,)`, without the time between an interruption and the resumption."""
    starts = sorted(when for when in map(_seconds, _starts(record)) if when is not None)
    elapsed: dict[int, float] = {}
    before, latest, session = 0.0, 0.0, -1
    for step, when in times.items():
        started = bisect.bisect_right(starts, when) - 1
        if started < session:  # the clock was turned back
            break
        if started > session:
            session, before = started, latest
        elapsed[step] = before + (when - starts[started] if started >= 0 else math.nan)
        latest = max(latest, elapsed[step])
    return np.array([elapsed.get(int(step), math.nan) for step in steps]) / 3600


def _starts(record: Mapping[str, Any]) -> Iterator[Any]:
    yield record.get("started")
    resumed = record.get("resumed")
    for again in resumed if isinstance(resumed, list) else []:
        yield again.get("time") if isinstance(again, dict) else None


def _seconds(when: Any) -> float | None:
    try:
        return datetime.fromisoformat(when).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return None
