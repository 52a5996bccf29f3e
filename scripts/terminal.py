"""Draw the terminal during a training, from the real output of a command.

    python scripts/terminal.py [at=15000] [out=outputs/terminal.svg]
    python scripts/terminal.py out=docs/images/terminal.svg    # the picture in the README

at   the environment step of which the picture is taken, at most 30000
out  the picture, .svg
"""

import io
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from dpg_cli.cli.arguments import output_file, parse, run_script, whole
from dpg_cli.errors import UserError

COMMAND = ["dpg-train", "algo=td3", "env=InvertedPendulum-v4"]
TOTAL_STEPS = 30_000  # of that command
WIDTH, HEIGHT = 92, 12
# What rich writes before it draws its panel anew: to the start of the line, up, and clear, once a line.
REDRAW = re.compile(rb"(?:\r?\x1b\[2K(?:\x1b\[1A)?)+")
STEP = re.compile(r"([\d,]+) of [\d,]+ steps")
FONTS = re.compile(r"@font-face \{\{.*?\}\}\n", re.DOTALL)  # from a server; a viewer's own font will do


def main() -> None:
    """The script."""
    values = parse(sys.argv[1:], ("at", "out"), required=())
    at = whole(values, "at", 15_000, minimum=1)
    if at > TOTAL_STEPS:
        raise UserError(f"at={values['at']}: the training has {TOTAL_STEPS:,} steps")
    out = output_file(values, "out", "outputs/terminal.svg", (".svg",))
    if shutil.which(COMMAND[0]) is None:
        raise UserError(f"{COMMAND[0]}: not found; activate the environment that dpg-cli is installed in")
    out.write_text(picture(panel(at)), encoding="utf-8")
    print(f"-> {out}")


def picture(shown: Text) -> str:
    """The terminal as SVG: the command, and what is shown below it."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(f"$ {' '.join(COMMAND)}", highlight=False, markup=False)
    console.print(shown)
    svg_format = FONTS.sub("", CONSOLE_SVG_FORMAT)
    return console.export_svg(title=COMMAND[0], code_format=svg_format, unique_id="terminal")


def panel(at: int) -> Text:
    """What stands on the terminal once a training has made `at` steps, with its colours.

    Raises:
        UserError: the training ended before.
    """
    main_end, terminal_end = pty.openpty()
    size = {"COLUMNS": str(WIDTH), "LINES": str(HEIGHT), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with tempfile.TemporaryDirectory() as folder:
        command = [*COMMAND, f"hydra.run.dir={folder}/run"]
        process = subprocess.Popen(
            command, stdin=terminal_end, stdout=terminal_end, stderr=terminal_end, env=os.environ | size
        )
        os.close(terminal_end)
        written = b""
        try:
            for piece in pieces(main_end):
                written += piece
                *_, newest, _ = [b"", *REDRAW.split(written)]  # the last may be half drawn
                shown = text(newest)
                if (step := STEP.search(shown.plain)) and int(step[1].replace(",", "")) >= at:
                    return shown
        finally:
            process.send_signal(signal.SIGTERM)
            os.close(main_end)
            process.wait()
    raise UserError(f"the training ended before step {at:,}: {text(REDRAW.split(written)[-1]).plain}")


def pieces(terminal: int) -> Iterator[bytes]:
    """What is written to a terminal, until its other end is closed."""
    try:
        while piece := os.read(terminal, 4096):
            yield piece
    except OSError:  # how Linux reports the closed end
        return


def text(written: bytes) -> Text:
    r"""What a terminal shows of it. A terminal ends a line with `\r\n`, of which rich knows only `\n`."""
    return Text.from_ansi(written.decode(errors="ignore").replace("\r\n", "\n").strip())


if __name__ == "__main__":
    run_script("terminal", main)
