#!/usr/bin/env python
"""Run every command of docs/tutorial.md in an empty folder and compare what it prints with the page.

    python scripts/tutorial.py
    python scripts/tutorial.py write=true      # put this run's output and picture into the page
    python scripts/tutorial.py install=true    # install into a new environment as the page does (downloads packages)

A block `sh` holds commands, and the block `text` after it what they print; there, `...` stands for any lines and `^C`
for a Ctrl-C. Blocks in other languages are files, which their first line names. Output is compared without what
depends on the machine: returns, times, and the lines that only slow or busy machines print.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from dpg_cli.cli.arguments import parse, run_script, true_or_false

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
PICTURE = ROOT / "docs" / "images" / "tutorial.png"
ANY, INTERRUPT = "...", "^C"
# Progress between two evaluations, which comes once in a minute, and the note that other programs use the cores.
OF_SLOW_MACHINES = re.compile(r"last return \S+(  evaluating: .*)?$|note: threads=auto uses")


class Block(NamedTuple):
    """A fenced block of the page."""

    language: str
    mode: str  # what follows the language, such as `install`
    text: str
    start: int  # of the text in the page
    end: int


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page in turn."""
    for found in re.finditer(r"^```(\w+) ?(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield Block(found[1], found[2], found[3], found.start(3), found.end(3))


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a block."""
    return [shlex.split(line) for line in block.text.replace("\\\n", " ").splitlines()]


def write_file(block: Block, folder: Path) -> None:
    """Save a block under the name in its first line."""
    path = folder / block.text.splitlines()[0].removeprefix("# ")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")


def form(line: str) -> str:
    """A line without the width of its columns and its numbers, except those of `1,000 of 10,000 steps`."""
    without = re.sub(r"([\d,]+ of [\d,]+ steps)|-?\d[\d,.:_-]*|–", lambda found: found[1] or "0", line)
    return " ".join(without.split())


def filled(shown: Sequence[str], printed: Sequence[str]) -> list[str] | None:
    """The lines of the page with the numbers that were printed; nothing if the output has another form."""
    lines, position, anything = [], 0, False
    for line in shown:
        if line == ANY:
            anything = True
            lines.append(line)
            continue
        while anything and position < len(printed) and form(printed[position]) != form(line):
            position += 1
        if position == len(printed) or form(printed[position]) != form(line):
            return None
        lines.append(printed[position])
        position, anything = position + 1, False
    return lines if anything or position == len(printed) else None


def execute(commands: str, shown: Sequence[str], folder: Path, environment: dict[str, str]) -> list[str]:
    """Run the commands of a block; the lines that they print.

    Raises:
        SystemExit: one fails.
    """
    before = list(shown[: shown.index(INTERRUPT)]) if INTERRUPT in shown else None
    shell = ["bash", "-euo", "pipefail", "-c", commands]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    printed: list[str] = []
    with subprocess.Popen(shell, cwd=folder, env=environment, text=True, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if OF_SLOW_MACHINES.search(line.rstrip()):
                    continue
                printed.append(line.rstrip())
                if before is not None and filled(before, printed) is not None:
                    if address := re.search(r"http://\S+", line):
                        urlopen(address[0]).close()
                    os.killpg(process.pid, signal.SIGINT)
                    printed.append(INTERRUPT)
                    before = None
        except BaseException:  # a signal too: no training may be left running
            os.killpg(process.pid, signal.SIGKILL)
            raise
    interrupted = INTERRUPT in printed
    if process.returncode not in ((0, 130) if interrupted else (0,)) or interrupted != (INTERRUPT in shown):
        sys.exit("\n".join([f"exit code {process.returncode}:", commands, *printed]))
    return printed


def follow(page: str, folder: Path, *, install: bool) -> tuple[str, list[str]]:
    """Do all that a page says, in an empty folder.

    Returns:
        The page with the numbers that were printed, and the outputs of another form than the page shows.

    Raises:
        SystemExit: a command fails.
    """
    environment = dict(os.environ)
    own = Path(sys.executable).parent
    if install:
        own = folder / ".venv" / "bin"
        environment.pop("PYTHONPATH", None)
    else:
        (folder / "dpg-cli").symlink_to(ROOT)
    environment["PATH"] = f"{own}{os.pathsep}{environment['PATH']}"
    found, replaced, others = list(blocks(page)), [], []
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language == "text":
            continue
        if block.language != "sh":
            write_file(block, folder)
            continue
        if block.mode == "install" and not install:
            continue
        shown = after.text.splitlines() if after is not None and after.language == "text" else [ANY]
        start = time.monotonic()
        print(block.text, end="", flush=True)
        printed = execute(block.text.replace("git clone URL", f"git clone {ROOT}"), shown, folder, environment)
        print(f"# {time.monotonic() - start:.0f} s", flush=True)
        lines = filled(shown, printed)
        if lines is None:
            others.append("\n".join([block.text, *printed]))
        elif after is not None and shown != [ANY]:
            replaced.append((after, "".join(f"{line}\n" for line in lines)))
    for block, text in reversed(replaced):
        page = page[: block.start] + text + page[block.end :]
    return page, others


def main() -> None:
    values = parse(sys.argv[1:], ("write", "install"), ())
    write, install = true_or_false(values, "write"), true_or_false(values, "install")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs in the background
    page, start = PAGE.read_text(encoding="utf-8"), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        new, others = follow(page, Path(name), install=install)
        if write:
            PAGE.write_text(new, encoding="utf-8")
            shutil.copyfile(Path(name, "report", "figures", "Pendulum-v1.png"), PICTURE)
    print(f"every command succeeded, in {(time.monotonic() - start) / 60:.1f} minutes")
    if others:
        sys.exit("\n\n".join(["the page shows another output of:", *others]))


if __name__ == "__main__":
    run_script("tutorial", main)
