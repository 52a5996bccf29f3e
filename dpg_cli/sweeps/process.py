"""A process of its own for one job: a fresh interpreter, started before its job is known."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

PIECE = 65536  # bytes read at once
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of rusage's ru_maxrss


class Exit(NamedTuple):
    """How a process ended.

    Attributes:
        code: the exit code; minus the signal if one killed it; None if another part of this program waited for it.
        peak: most bytes of memory that it, or one of its children, had at once.
    """

    code: int | None
    peak: int = 0


class Process:
    """A fresh interpreter in a session of its own. It waits on stdin for a JSON document and sends JSON lines back.

    What it prints before it has redirected its output goes to a temporary file.

    Args:
        command: the program. Two numbers are added: the file descriptors for its messages and of the lifeline.
        lifeline: the end for reading of a pipe whose other end only this process holds.
        folder: its working directory.
        environ: its environment variables.

    Attributes:
        reports: file descriptor of its messages.
        finished: whether it has closed its end of `reports`.
    """

    def __init__(self, command: Sequence[str], lifeline: int, folder: Path, environ: Mapping[str, str]):
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115, until `close`
        self._text = b""
        self._exit: Exit | None = None
        self.finished = False
        self.reports, theirs = os.pipe()
        try:
            os.set_blocking(self.reports, False)
            self._process = subprocess.Popen(
                [*command, str(theirs), str(lifeline)],
                stdin=subprocess.PIPE,
                stdout=self._printed,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs, lifeline),
                start_new_session=True,
                cwd=folder,
                env=environ,
            )
        except BaseException:
            os.close(self.reports)
            self._printed.close()
            raise
        finally:
            os.close(theirs)
        self.pid = self._process.pid

    def give(self, document: Mapping[str, Any]) -> None:
        """Send the document, after which stdin is closed."""
        text = json.dumps(document).encode()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:  # `ended` will say why
            stdin.write(text)

    def messages(self) -> list[dict[str, Any]]:
        """The messages since the last call."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.reports, PIECE):
                self._text += piece
            self.finished = True
        *lines, self._text = self._text.split(b"\n")
        messages = []
        for line in lines:
            with contextlib.suppress(ValueError):  # a simulator may write to any file
                messages.append(json.loads(line))
        return [message for message in messages if isinstance(message, dict) and "kind" in message]

    def send(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ended(self) -> Exit | None:
        """How the process ended; None if it still runs."""
        if self._exit is not None:
            return self._exit
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:
            self._exit = Exit(None)
        else:
            if pid == 0:
                return None
            self._exit = Exit(os.waitstatus_to_exitcode(status), usage.ru_maxrss * RSS_UNIT)
        self._process.returncode = self._exit.code or 0  # else it complains when it is deleted
        return self._exit

    def printed(self) -> str:
        """The last line that it printed before it redirected its output."""
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """Close the files of an ended process."""
        assert self._process.stdin is not None
        if not self._printed.closed:
            self._printed.close()
            os.close(self.reports)
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


def in_session(session: int) -> list[int]:
    """The processes of a session, by their ids."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # it has ended
            if os.getsid(pid) == session:
                found.append(pid)
    return found


def kill_session(session: int) -> None:
    """Kill every process of a session, except the caller."""
    for pid in in_session(session):
        if pid != os.getpid():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
