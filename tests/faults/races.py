"""Processes that start, or resume a folder, in the same moment."""

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from case import Case
from oracle import differences
from trainings import HERE, RESUME, TINY

from dpg_cli.storage import run_dir


def starts(case: Case) -> None:
    """Many processes claim their folders in the same moment, each its own or all one."""
    number, repetition = (2, 8, 32)[case.number // 5], case.number % 5
    one = repetition >= 3
    case.note(f"{number} processes, {'one folder' if one else 'folders by the time'}")
    arguments = [*TINY, HERE] if one else TINY
    codes = together(case, [arguments] * number, run_dir, "claim")
    runs = [case.run] if one else [path.parent for path in case.folder.glob("outputs/*/*/*/config.yaml")]
    assert sorted(code for code, _ in codes) == ([0] + [2] * (number - 1) if one else [0] * number), codes
    assert sum("already exists" in err for _, err in codes) == (number - 1 if one else 0)
    assert len(runs) == (1 if one else number)
    for run in runs:
        assert not differences(run, case.reference("tiny")), run


def resumes(case: Case) -> None:
    """Two processes resume one folder in the same moment."""
    shutil.copytree(case.reference("Pendulum-v1"), case.run, symlinks=True)
    codes = together(case, [[*RESUME, "total_steps=260"]] * 2, run_dir, "locked")
    assert sorted(code for code, _ in codes) == [0, 2], codes
    assert sum("is being trained by another process" in err for _, err in codes) == 1, codes
    found = differences(case.run, case.reference("longer"))
    assert not found, f"differs: {found}"


def together(case: Case, commands: Sequence[Sequence[str]], owner: Any, name: str) -> list[tuple[int, str]]:
    """Run commands that all wait for each other before a function: their codes and what they complained."""
    folder, number = case.folder / "waiting", len(commands)
    folder.mkdir()

    def prepare() -> None:
        function = getattr(owner, name)

        def waiting(*arguments: Any, **named: Any) -> Any:
            (folder / str(os.getpid())).touch()
            while len(list(folder.iterdir())) < number:
                time.sleep(0.001)
            setattr(owner, name, function)
            return function(*arguments, **named)

        setattr(owner, name, waiting)

    with contextlib.ExitStack() as stack:
        processes = []
        for index, arguments in enumerate(commands):
            log = case.folder / f"err_{index}"

            def redirected(log: Path = log) -> None:
                os.dup2(os.open(log, os.O_RDWR | os.O_CREAT), 2)
                prepare()

            processes.append(stack.enter_context(case.command(*arguments, prepare=redirected)))
        codes = [process.wait() for process in processes]
    return [(code, (case.folder / f"err_{index}").read_text()) for index, code in enumerate(codes)]
