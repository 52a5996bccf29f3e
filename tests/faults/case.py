"""One case of a fault: its folder, its random moments, and how its run is compared."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from commands import lines, without_time
from oracle import differences, members, unsound
from trainings import HERE, RESUME, RUNS, Command


@dataclass
class Case:
    """One case of a row.

    Attributes:
        number: of the case.
        random: draws its moments.
        folder: its own, empty.
        references: of the runs that met no fault.
        drawn: what it says about itself.
    """

    number: int
    random: np.random.Generator
    folder: Path
    references: Path
    drawn: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    def note(self, text: str) -> None:
        """What was drawn or found."""
        self.drawn.append(text)

    def reference(self, name: str) -> Path:
        """The run that met no fault."""
        return self.references / name / "run"

    def command(self, *arguments: str, **options: Any) -> Command:
        """A training in this folder."""
        return Command(self.folder, arguments, **options)

    def expect(self, code: int, *arguments: str, **options: Any) -> Command:
        """A training that ends with a code."""
        with self.command(*arguments, **options) as command:
            ended = command.wait()
        assert ended == code, f"exit code {ended}, not {code}: {command.err()[-2000:]}"
        return command

    def resumed(self, name: str) -> None:
        """Resume the run, or begin it where not even its config was written, and compare."""
        self.expect(0, *self.again(name))
        if "Odd" in RUNS[name][0]:
            same_until_new_episode(self.run, self.reference(name))
        else:
            found = differences(self.run, self.reference(name))
            assert not found, f"differs: {found}"

    def again(self, name: str) -> list[str]:
        """The command that resumes the run."""
        if (self.run / "config.yaml").exists():
            return RESUME
        if self.run.exists():
            self.note("only the empty folder was there")
            shutil.rmtree(self.run)
        return [*RUNS[name], HERE]


def same_until_new_episode(run: Path, reference: Path) -> None:
    """All is equal up to the first checkpoint that was resumed from, and the run ends."""
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done"
    until = min((resumed["step"] for resumed in record.get("resumed", [])), default=record["last_step"])
    for name in ("evaluations.jsonl", "metrics.jsonl"):
        own, other = ([r for r in without_time(lines(path / name)) if r["step"] <= until] for path in (run, reference))
        assert own == other, f"{name} differs before step {until}"
        assert lines(run / name)[-1]["step"] == lines(reference / name)[-1]["step"]
    own, other = (np.concatenate([np.load(p) for p in sorted(path.glob("replay/*.npy"))]) for path in (run, reference))
    assert own[:until].tobytes() == other[:until].tobytes(), "transitions differ"
    assert not unsound(run), f"unsound: {unsound(run)}"


def records(run: Path) -> int:
    """How many records a run has by now."""
    try:
        return (members(run)[0] / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0
