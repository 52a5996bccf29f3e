"""Signals that end a run in order."""

import contextlib
import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any, Self

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
GRACE = 1.0  # seconds in which a repeated signal is the same request: a closing terminal sends two


class ForcedStop(SystemExit):
    """A second request: stop at once. The code is 128 + signal."""


class StopRequest:
    """While active, a first handled signal only asks to stop, and a later one raises `ForcedStop`.

    A signal that was ignored before, as by nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    def __enter__(self) -> Self:
        """Take over the handlers."""
        for number in HANDLED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._when = number, now
            say("dpg-train: stopping with a checkpoint; a second signal stops at once")
        elif now - self._when > GRACE:
            raise ForcedStop(128 + number)


def say(line: str) -> None:
    """A line on stderr, straight through, so that a handler may call it; nothing if there is no stderr any more."""
    if sys.stderr is None:  # closed at the start: 2 may be any file by now
        return
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="replace"))
