"""What a terminal shows after a program has written to it, and a terminal to run programs in."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

CODES = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")


class Screen:
    """The lines of a terminal, without an upper end. It knows only what rich writes, and rejects anything else.

    Args:
        columns: where lines wrap.
    """

    def __init__(self, columns):
        self._columns = columns
        self._lines, self._row, self._column = [""], 0, 0

    def write(self, text):
        while text:
            if match := CODES.match(text):
                self._control(match[1], match[2])
                text = text[match.end() :]
            else:
                self._put(text[0])
                text = text[1:]

    def lines(self):
        """Without spaces at their ends and without empty lines at the end."""
        return "\n".join(line.rstrip() for line in self._lines).rstrip().splitlines()

    def _put(self, character):
        if character == "\n":
            self._row += 1
        elif character == "\r":
            self._column = 0
        else:
            assert character.isprintable(), character
            if self._column == self._columns:  # terminals wrap before the next character, not after the last one
                self._row, self._column = self._row + 1, 0
            line = self._line().ljust(self._column)
            self._lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1
        self._line()

    def _line(self):
        self._lines += [""] * (self._row + 1 - len(self._lines))
        return self._lines[self._row]

    def _control(self, numbers, kind):
        if (numbers, kind) == ("2", "K"):
            self._lines[self._row] = ""
        elif kind == "A":
            self._row = max(0, self._row - int(numbers or 1))
        else:
            assert kind in "mhl", (numbers, kind)  # colours; to show and hide the cursor


class Terminal:
    """A program that runs in the foreground of a terminal of its own.

    Args:
        command: and its arguments.
        columns: of the terminal.
        more: for `subprocess.Popen`.
    """

    def __init__(self, command, columns, **more):
        self.written, self._columns = b"", columns
        self._end, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY),
            **more,
        )
        os.close(other)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._end)

    def read_until(self, condition, seconds=60.0):
        """Read until `condition()`; what was written is in `written`."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.lines()
            if select.select([self._end], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # its other end is closed
                    self.written += os.read(self._end, 65536)

    def type(self, keys):
        os.write(self._end, keys)

    def wait(self):
        """Its exit code."""
        self.read_until(lambda: self.process.poll() is not None)
        with contextlib.suppress(OSError):
            while piece := os.read(self._end, 65536):
                self.written += piece
        return self.process.returncode

    def lines(self):
        """What the terminal shows."""
        screen = Screen(self._columns)
        screen.write(self.written.decode(errors="ignore"))
        return screen.lines()
