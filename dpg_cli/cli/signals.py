"""Signals: they stop a training with a checkpoint, and every other command at once."""

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
AGAIN = 0.2  # seconds between installations of the handlers: each costs as much as a step of a simple environment
GRACE = 1.0  # seconds in which a repeated signal counts as one request: a closing terminal sends two


install = signal.signal  # which `StopRequest` replaces for everybody else
_ignored: set[int] | None = None
_outlasts = False
_active: "StopRequest | None" = None


def remember() -> None:
    """Note which signals are ignored, before any environment is created: by nohup, then, and not by a simulator."""
    global _ignored
    _ignored = _ignored_now()


def _ignored_now() -> set[int]:
    return {number for number in HANDLED if signal.getsignal(number) is signal.SIG_IGN}


def outlast() -> None:
    """From here on, a second signal does not stop a training at once: SLURM repeats them, and ends with SIGKILL."""
    global _outlasts
    _outlasts = True


def request_stop() -> bool:
    """Ask the training of this process to stop with a checkpoint, as SIGTERM would; returns whether there is one."""
    if _active is None:
        return False
    _active._handle(signal.SIGTERM, None)
    return True


class ForcedStop(SystemExit):
    """A second request: stop at once. The code is 128 + signal."""


class StopRequest:
    """While active, the first signal of `HANDLED` requests a stop, and a later one raises `ForcedStop`.

    A signal that was ignored at the start, for example by nohup, stays ignored. A simulator may install handlers of its
    own: those that it installs from Python have no effect while this is active, and calls take back what it has
    installed otherwise, as robot middleware does. A request that an outer `StopRequest` has received counts here too.

    Args:
        notify: shows a line at once. It is called by a signal handler.
    """

    def __init__(self, notify: Callable[[str], None] = lambda line: say(line)) -> None:
        self.signal: int | None = None
        self._notify = notify
        self._when = self._installed = 0.0
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        if time.monotonic() - self._installed > AGAIN:
            self._installed = time.monotonic()
            for number in self._before:
                install(number, self._handle)
        return self.signal is not None

    def __enter__(self) -> Self:
        """Take over the handlers."""
        global _active
        _active, self._around = self, _active
        self._outer = signal.signal
        for number in set(HANDLED) - (_ignored_now() if _ignored is None else _ignored):
            before = self._before[number] = install(number, self._handle)
            outer = getattr(before, "__self__", None)
            if isinstance(outer, StopRequest) and self.signal is None:
                self.signal, self._when = outer.signal, outer._when
        signal.signal = self._instead  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the handlers."""
        global _active
        _active = self._around
        signal.signal = self._outer
        for number, handler in self._before.items():
            install(number, handler)

    def _instead(self, number: int, handler: Any) -> Any:
        """In place of `signal.signal`, for everybody else."""
        return signal.getsignal(number) if number in HANDLED else install(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._when = number, now
            self._notify("dpg-train: stopping with a checkpoint; a second signal stops at once")
        elif now - self._when > GRACE and not _outlasts:
            self._force(number)

    def _force(self, number: int) -> None:
        raise ForcedStop(128 + number)


class PolledStop(StopRequest):
    """Raises `ForcedStop` in a call, not wherever the second signal arrives, such as in the middle of drawing a table.

    For a loop that calls it several times a second. A third signal is raised at once.
    """

    _forced: int | None = None

    def __call__(self) -> bool:
        """Whether a stop was requested; raises `ForcedStop` at the second request."""
        if self._forced is not None:
            super()._force(self._forced)
        return super().__call__()

    def _force(self, number: int) -> None:
        if self._forced is not None:
            super()._force(number)
        self._forced = number


class StopAtOnce:
    """While active, a signal of `HANDLED` raises `ForcedStop`, so that unfinished files and environments do not stay.

    Some libraries turn an exception that is raised while they are imported into another; the end of this context turns
    it back. From then on signals are ignored until the process ends, so that the exit code fits the files. A signal
    that was ignored at the start, for example by nohup, stays ignored. At most one context is active.
    """

    _active: "StopAtOnce | None" = None

    def __init__(self) -> None:
        self._signal: int | None = None
        self._when = 0.0
        self._held = self._finishing = False

    def __enter__(self) -> Self:
        """Take over the handlers."""
        StopAtOnce._active = self
        for number in set(HANDLED) - _ignored_now():
            install(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise `ForcedStop` if there was a signal."""
        self._finishing = True
        StopAtOnce._active = None
        atexit.register(_ignore)  # Python restores the default handlers, but not where a signal is ignored
        if self._signal is not None and not isinstance(error, ForcedStop):
            raise ForcedStop(128 + self._signal) from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._finishing or (self._signal is not None and now - self._when < GRACE):
            return
        repeated = self._signal is not None
        self._signal, self._when = self._signal or number, now
        if repeated or not self._held:
            raise ForcedStop(128 + self._signal)


def _ignore() -> None:
    for number in HANDLED:
        install(number, signal.SIG_IGN)


def finish() -> None:
    """From here on, signals no longer stop the command: its file is about to appear."""
    if StopAtOnce._active is not None:
        StopAtOnce._active._finishing = True


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within this context, the first signal has no effect until the end: it would leave what cannot be cleaned up."""
    stop = StopAtOnce._active
    if stop is None:
        yield
        return
    stop._held = True
    try:
        yield
    finally:
        stop._held = False
    if stop._signal is not None:
        raise ForcedStop(128 + stop._signal)


def say(line: str) -> None:
    """Write a line to stderr without buffers, so that a signal handler may call it. A closed stderr is ignored."""
    if sys.stderr is None:  # closed at the start: descriptor 2 may be any other file by now
        return
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="replace"))
