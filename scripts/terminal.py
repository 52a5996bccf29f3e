"""Draw the terminal during a training, from the real output of a command.

    python scripts/terminal.py [at=15000] [out=outputs/terminal.svg]
    python scripts/terminal.py out=docs/images/terminal.svg    # the picture in the README

at   the environment step of which the picture is taken
out  where to write it
"""

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from dpg_cli.cli.arguments import parse, run_script, whole

COMMAND = ["dpg-train", "algo=td3", "env=InvertedPendulum-v4"]
WIDTH, HEIGHT = 92, 12
# What rich writes before it draws its panel anew: to the start of the line, up, and clear, once a line.
REDRAW = re.compile(rb"(?:\r?\x1b\[2K(?:\x1b\[1A)?)+")
STEP = re.compile(r"([\d,]+) of [\d,]+ steps")
FONTS = re.compile(r"@font-face \{\{.*?\}\}\n", re.DOTALL)  # from a server; a viewer's own font will do


def main() -> None:
    """The script."""
    values = parse(sys.argv[1:], ("at", "out"), required=())
    at = whole(values, "at", 15_000, minimum=1)
    out = Path(values.get("out", "outputs/terminal.svg"))
    out.parent.mkdir(parents=True, exist_ok=True)
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(f"$ {' '.join(COMMAND)}", highlight=False, markup=False)
    console.print(Text.from_ansi(panel(at)))
    svg_format = FONTS.sub("", CONSOLE_SVG_FORMAT)
    out.write_text(
        console.export_svg(title="dpg-train", code_format=svg_format, unique_id="terminal"), encoding="utf-8"
    )
    print(out)


def panel(at: int) -> str:
    """What stands on the terminal once a training has made `at` steps, with its colours."""
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
            while piece := os.read(main_end, 4096):
                written += piece
                _, *frames = REDRAW.split(written)
                shown = [frame.decode(errors="ignore").strip() for frame in frames[:-1]]  # the last may be half drawn
                steps = [int(step[1].replace(",", "")) for frame in shown[-1:] if (step := STEP.search(frame))]
                if steps and steps[0] >= at:
                    return shown[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            os.close(main_end)
            process.wait()
    raise RuntimeError(f"the training ended before step {at}")


if __name__ == "__main__":
    run_script("terminal", main)
