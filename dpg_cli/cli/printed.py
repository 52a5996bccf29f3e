"""What simulators print to stdout while a panel is on the terminal, also from C and from worker processes."""

import contextlib
import ctypes
import fcntl
import os
import re
import sys
import tempfile
from types import TracebackType
from typing import Self, TextIO

CODES = re.compile(r"\x1b(\[[\d;?]*[A-Za-z]|.)")  # which move the cursor or clear the screen
LARGE = 2**20  # bytes after which the file is emptied


class Printed:
    """While active, stdout is a temporary file, whose lines can be read, and `terminal` is what stdout was.

    A pipe could fill up and block a simulator that holds Python's lock; a file cannot. Stderr stays what it is, since
    the last words of a process that crashes must not be lost.

    Attributes:
        terminal: to write to.
    """

    terminal: TextIO

    def __enter__(self) -> Self:
        """Redirect stdout."""
        sys.stdout.flush()
        self._file = tempfile.TemporaryFile(buffering=0)
        fcntl.fcntl(self._file, fcntl.F_SETFL, os.O_APPEND)  # so that writing continues at the start of an emptied file
        self._stdout = os.dup(1)
        self.terminal = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")
        os.dup2(self._file.fileno(), 1)
        self._read, self._rest = 0, b""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore stdout."""
        with contextlib.suppress(OSError):  # of a full disk
            sys.stdout.flush()
        os.dup2(self._stdout, 1)
        os.close(self._stdout)
        self._file.close()
        with contextlib.suppress(OSError):  # of a closed terminal
            self.terminal.close()

    def lines(self, *, rest: bool = False) -> list[str]:
        """The lines since the last call; with `rest`, also one without an end."""
        _flush_c()
        found = os.pread(self._file.fileno(), LARGE, self._read)
        self._read += len(found)
        if self._read >= LARGE and len(found) < LARGE:
            os.ftruncate(self._file.fileno(), 0)  # what another process writes at this moment is lost
            self._read = 0
        *lines, self._rest = (self._rest + found).replace(b"\r", b"\n").split(b"\n")
        if rest and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        return [CODES.sub("", line.decode(errors="replace")).expandtabs() for line in lines if line]


def _flush_c() -> None:
    """Write what C's stdout holds back in this process."""
    name = "__stdoutp" if sys.platform == "darwin" else "stdout"
    with contextlib.suppress(OSError, ValueError):  # another C library
        library = ctypes.CDLL(None)
        library.fflush(ctypes.c_void_p.in_dll(library, name))
