"""What `dpg-eval` prints and writes."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from dpg_cli import config as configs
from dpg_cli.cli.arguments import readable
from dpg_cli.cli.folder import load_config
from dpg_cli.cli.names import settings_that_differ
from dpg_cli.cli.notes import SEED_IGNORED
from dpg_cli.cli.play import Played, Settings, play
from dpg_cli.cli.progress import EvaluationProgress
from dpg_cli.cli.signals import finish
from dpg_cli.config import TrainConfig
from dpg_cli.errors import DivergedError, SimulatorError, UserError, one_line
from dpg_cli.report.statistics import interval
from dpg_cli.storage.atomic import Disk, explaining, write_whole
from dpg_cli.storage.run_dir import versions

NUMBERS = ("episode", "step", "return", "length")  # the columns of numbers

WIDE = 200  # columns, where there is no terminal


def evaluate_one(run: Path, config: TrainConfig, settings: Settings, out: Path | None) -> int:
    """Evaluate one run and print a table of its episodes; returns the exit code.

    Args:
        run: the run folder.
        config: of the run.
        settings: how to evaluate.
        out: a JSON file to write; None for none.
    """
    played = play(run, config, settings, EvaluationProgress("dpg-eval"))
    if out is not None:
        _write(out, _as_json(run, settings, played))
    with readable():
        _print(played, config, settings)
    return 0


def _print(played: Played, config: TrainConfig, settings: Settings) -> None:
    if played.ignores_seed:
        print(f"note: {played.env_id}: {SEED_IGNORED}")
    table = _table(["episode", "return", "length"])
    for episode, (value, length) in enumerate(zip(played.returns, played.lengths, strict=True)):
        table.add_row(str(episode), f"{value:.2f}", str(length))
    returns, console = played.returns, _console()
    console.print(table)
    number = f"{len(returns)} {'episode' if len(returns) == 1 else 'episodes'}"
    console.print(
        f"{played.env_id}, checkpoint {settings.checkpoint} ({config.step} {played.step:,}), {number}: "
        f"return {returns.mean():.2f} ± {returns.std():.2f}, length {played.lengths.mean():.1f}",
        soft_wrap=True,
    )
    if played.info:
        means = ", ".join(f"{one_line(key)} {mean:.4g}" for key, mean in played.info.items())
        console.print(f"info at the end of an episode: {means}", soft_wrap=True)
    if settings.video is not None:
        console.print(f"video: {settings.video}, {played.frames:,} frames", soft_wrap=True)


def evaluate_all(folder: Path, runs: Sequence[Path], trust: str, settings: Settings, out: Path | None) -> int:
    """Evaluate every run below a folder and print one table; returns the exit code.

    A run that cannot be evaluated does not end the others.

    Args:
        folder: that holds them.
        runs: the run folders.
        trust: as `load_config` takes it.
        settings: how to evaluate.
        out: a JSON file to write; None for none.

    Raises:
        UserError: none of the runs can be evaluated, because of mistakes of the user.
    """
    done: dict[Path, tuple[TrainConfig, Played]] = {}
    errors: dict[Path, Exception] = {}
    for number, run in enumerate(runs):
        if sys.stderr.isatty():
            print(f"{number + 1} of {len(runs)}: {one_line(run.relative_to(folder))}", file=sys.stderr)
        try:
            config = load_config("run", run, trust)
            done[run] = config, play(run, config, settings, EvaluationProgress("dpg-eval"))
        except Exception as error:
            errors[run] = error
    if not done and all(isinstance(raised, UserError) for raised in errors.values()):
        raise UserError(f"none of {len(runs)} runs can be evaluated; {runs[0]}: {errors[runs[0]]}")
    failed = {}
    for run, raised in errors.items():
        known = isinstance(raised, UserError | DivergedError | SimulatorError)
        failed[str(run)] = one_line(raised if known else f"{type(raised).__name__}: {raised}")
    if out is not None:
        played = [_as_json(run, settings, result) for run, (_, result) in done.items()]
        _write(out, {"runs": played, "failed": failed})
    with readable():
        _print_all(folder, runs, done)
    for where, reason in failed.items():
        print(f"dpg-eval: {one_line(shlex.quote(where))}: {reason}", file=sys.stderr)
    return 1 if errors else 0


def _print_all(folder: Path, runs: Sequence[Path], done: Mapping[Path, tuple[TrainConfig, Played]]) -> None:
    given = [configs.given(run) for run in runs]
    common = set.intersection(*map(set, given))
    differs = [settings_that_differ(overrides, common) for overrides in given]
    headers = ["run", "settings that differ", "algorithm", "environment", "step", "return", "length"]
    if not any(differs):
        headers.remove("settings that differ")
    table = _table(headers)
    means_of: dict[tuple[str, str], list[float]] = {}
    for run, own in zip(runs, differs, strict=True):
        names = [one_line(run.relative_to(folder)), *([one_line(own)] if any(differs) else [])]
        if run not in done:
            table.add_row(*names, "", "", "", "failed", "")
            continue
        config, played = done[run]
        algo, step = str(config.algo["name"]), f"{played.step:,}{' updates' if config.offline else ''}"
        value = f"{played.returns.mean():.2f} ± {played.returns.std():.2f}"
        means_of.setdefault((played.env_id, algo), []).append(float(played.returns.mean()))
        table.add_row(*names, algo, played.env_id, step, value, f"{played.lengths.mean():.1f}")
    console = _console()
    console.print(table)
    for (env_id, algo), means in means_of.items():
        if len(means) > 1:
            mean = f"{np.mean(means):.2f} ± {np.std(means):.2f}"
            console.print(f"{algo} on {env_id}, mean over {len(means)} runs: {mean}", soft_wrap=True)
    for env_id in {played.env_id for _, played in done.values() if played.ignores_seed}:
        console.print(f"note: {env_id}: {SEED_IGNORED}", soft_wrap=True)


def _as_json(run: Path, settings: Settings, played: Played) -> dict[str, Any]:
    returns = played.returns
    low, high = interval(returns).tolist() if len(returns) > 1 else (None, None)
    return {
        "run": str(run),
        "env_id": played.env_id,
        "checkpoint": settings.checkpoint,
        "step": played.step,
        "seed": settings.seed,
        "returns": returns.tolist(),
        "lengths": played.lengths.tolist(),
        "info": played.info,
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "low": low,
        "high": high,
        "versions": dict(versions()),
    }


def _write(out: Path, content: dict[str, Any]) -> None:
    finish()
    with explaining(out):
        write_whole(Disk(), out, (json.dumps(content, indent=2) + "\n").encode())


def _table(headers: Sequence[str]) -> Table:
    table = Table(box=None, header_style="", pad_edge=False)
    for header in headers:
        justify: Literal["right", "left"] = "right" if header in NUMBERS else "left"
        table.add_column(header, justify=justify, overflow="fold")
    return table


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else WIDE)
