"""The page of a report: one HTML file that loads nothing from elsewhere."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from dpg_cli.errors import one_line, printable
from dpg_cli.report.contents import Contents
from dpg_cli.report.groups import text
from dpg_cli.report.problems import never_learned
from dpg_cli.report.runs import Run
from dpg_cli.report.scores import DEFINITIONS, last10
from dpg_cli.report.tables import MARK, as_published, bounds, cells_of, number, with_deviation

MAX_COMMANDS = 50  # shown; runs.csv names every folder
GENERATOR = '<meta name="generator" content="dpg-report">'  # tells a report from other pages


def page(
    contents: Contents, svgs: Mapping[str, str], profiles: Mapping[str, str], command: Sequence[str], when: str
) -> str:
    """The HTML.

    Args:
        contents: of the report.
        svgs: a figure for each environment.
        profiles: figures of the performance profiles, by the name of the aggregate.
        command: that made the report.
        when: it was made.
    """
    template = resources.files("dpg_cli.report").joinpath("data/page.html").read_text(encoding="utf-8")
    env = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    env.globals |= {
        "number": number,
        "bounds": bounds,
        "with_deviation": with_deviation,
        "cells_of": cells_of,
        "text": text,
        "median": _median,
        "as_published": as_published,
    }
    rows = {(row.env, row.group): row for row in contents.rows}
    return env.from_string(template).render(
        contents=contents,
        generator=Markup(GENERATOR),
        rows=rows,
        svgs={name: Markup(svg) for name, svg in svgs.items()},
        profiles={name: Markup(svg) for name, svg in profiles.items()},
        definitions=DEFINITIONS,
        runs=_runs(contents),
        settings=_settings(contents),
        provenance=_provenance(contents.runs),
        datasets=counted([run.dataset for run in contents.runs if run.dataset]),
        commands=_commands(contents.runs),
        command=printable(shlex.join(command)),
        where=printable(str(Path.cwd())),
        when=when,
        mark=MARK,
        anchors={env_id: f"env-{place}" for place, env_id in enumerate(contents.by_env)},
    )


def _median(value: float) -> str:
    return "not reached" if value == float("inf") else f"{value:,.0f}" if value >= 100 else number(value)


def _runs(contents: Contents) -> list[dict[str, Any]]:
    found = []
    for group in contents.groups:
        lost, scores = never_learned(group), dict(zip(group.seeds, last10(group), strict=True))
        for run in group.runs:
            note = "not learned" if run.seed in lost else ""
            found.append(
                {"group": group, "run": run, "folder": one_line(run.folder), "score": scores[run.seed], "note": note}
            )
        found += [
            {
                "group": group,
                "run": left.run,
                "folder": one_line(left.run.folder),
                "score": float("nan"),
                "note": one_line(f"not in the numbers: {left.reason}"),
            }
            for left in group.left_out
        ]
    return found


def _settings(contents: Contents) -> dict[str, list[tuple[str, str]]]:
    """By group, the settings that differ between groups."""
    found = {}
    for group in contents.groups:
        found[f"{group.env_id}, {group.name}"] = [(key, text(value)) for key, value in group.settings.items()]
    return {name: settings for name, settings in found.items() if settings}


def _provenance(runs: Sequence[Run]) -> dict[str, list[tuple[str, int]]]:
    """Versions, revisions and machines, each with the number of runs."""
    names = ("python", "torch", "gymnasium", "mujoco", "numpy", "dpg_cli")
    found = {name: counted([_of(run, "versions", name) for run in runs]) for name in names}
    found["git revision"] = counted([_revision(run) for run in runs])
    found["machine"] = counted([_machine(run) for run in runs])
    return found


def _revision(run: Run) -> str:
    return _of(run, "git", "revision")[:12] + (" with changes" if _of(run, "git", "dirty") == "True" else "")


def _machine(run: Run) -> str:
    cores, device = _of(run, "machine", "cpus"), _of(run, "device", "name")
    return f"{_of(run, 'machine', 'host')}, {_of(run, 'machine', 'platform')}, {cores} cores, device {device}"


def counted(values: Sequence[str]) -> list[tuple[str, int]]:
    """Each value once with how often it occurs, the most frequent first."""
    return Counter(values).most_common()


def _of(run: Run, part: str, key: str) -> str:
    content = run.record.get(part)
    value = content.get(key) if isinstance(content, dict) else None
    return "unknown" if value is None or isinstance(value, dict | list) else one_line(value)[:200]


def _commands(runs: Sequence[Run]) -> list[tuple[str, int]]:
    found = []
    for run in runs:
        command = run.record.get("command")
        whole = isinstance(command, list) and all(isinstance(word, str) for word in command)
        found.append(printable(shlex.join(command)) if whole and command else "unknown")
    commands = counted(found)
    more = len(commands) - MAX_COMMANDS
    return commands[:MAX_COMMANDS] + ([(f"and {more} more", 0)] if more > 0 else [])
