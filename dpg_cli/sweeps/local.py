"""Run the jobs of a sweep on this machine: a process for each, never more at once than there are workers."""

import contextlib
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from dpg_cli.errors import DiskError, UserError, one_line
from dpg_cli.sweeps.process import Exit, Process, in_session, kill_session

TICK = 0.1  # seconds between looks at processes that say nothing
SHORT_TICK = 0.02  # seconds; for processes that are about to end
PATIENCE = 30.0  # seconds to stop with a checkpoint
SOON = 10.0  # seconds before its end, from which on a job's successor may start its interpreter
LEFTOVERS = 2.0  # seconds that processes may outlive the job that started them
REAPED = 5.0  # seconds to wait for a killed process

State = Literal["done", "failed", "pending"]


@dataclass(frozen=True)
class Worker:
    """A place in which one job runs at a time.

    Attributes:
        cores: those that its jobs may use; None for all.
        gpus: value of CUDA_VISIBLE_DEVICES; None to leave it unchanged.
    """

    cores: Sequence[int] | None = None
    gpus: str | None = None


class Events(Protocol):
    """Is told what happens to the jobs."""

    def started(self, number: int) -> None:
        """Called when a job gets its process."""

    def said(self, number: int, message: Mapping[str, Any]) -> None:
        """Called with each message of a job except its result."""

    def again(self, number: int, reason: str) -> None:
        """Called when a job is started again because its process was killed."""

    def ended(self, number: int, state: State, reason: str | None, result: Mapping[str, Any] | None) -> None:
        """Called when a job has ended, or will not be started.

        Args:
            number: of the job.
            state: `pending` if it was stopped.
            reason: why it failed or was stopped; None if this program stopped it.
            result: its last message; None if there was none.
        """

    def passed(self) -> None:
        """Called several times a second."""


@dataclass
class Running:
    """A job and its process.

    Attributes:
        number: of the job.
        worker: its place.
        document: for its process.
        process: of the job.
        starts: how often it was started.
        begun: whether it has sent a message.
        left: seconds that it will still take; None if unknown.
        result: its result.
        stopping: whether it says that it is stopping.
        deadline: when it is killed; None if it neither was asked to stop nor has sent its result.
        hung: whether it was killed because it did not stop.
    """

    number: int
    worker: Worker
    document: Mapping[str, Any]
    process: Process
    starts: int = 1
    begun: bool = False
    left: float | None = None
    stopping: bool = False
    result: Mapping[str, Any] | None = None
    deadline: float | None = None
    hung: bool = False


class Pool:
    """Processes that run jobs. Leaving its context kills whatever still runs.

    While jobs wait, a spare interpreter imports what the next job needs: one, or one for each job that will end soon.

    Args:
        command: the program of a job; see `Process`.
        workers: one job runs in each at a time.
        events: is told what happens.
        stop: whether a stop is requested. Every job then stops with a checkpoint, and no more are started. It is
            called several times a second, and may raise an exception to stop at once.
        retries: how often a job whose process was killed is started again.
        fail_fast: whether the first failure requests a stop.
        folder: the working directory of the processes.
        environ: environment variables of the processes.
        clock: in seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        workers: Sequence[Worker],
        events: Events,
        stop: Callable[[], bool],
        *,
        retries: int = 1,
        fail_fast: bool = False,
        folder: Path = Path(),
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._command, self._free, self._events, self._stop = command, list(workers), events, stop
        self._retries, self._fail_fast, self._folder, self._environ = retries, fail_fast, folder, environ
        self._clock = clock
        self._waiting: deque[int] = deque()
        self._running: list[Running] = []
        self._spares: list[Process] = []
        self._leftovers: dict[int, float] = {}  # sessions, and when they are killed
        self.stopping = False

    def __enter__(self) -> Self:
        """Open the lifeline."""
        self._lifeline, self._held = os.pipe()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill all processes."""
        for session in (*self._leftovers, *(process.pid for process in self._processes())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(session, signal.SIGKILL)
            kill_session(session)
        end = time.monotonic() + REAPED
        for process in self._processes():
            while process.ended() is None and time.monotonic() < end:
                time.sleep(SHORT_TICK)
            process.close()
        os.close(self._held)
        os.close(self._lifeline)
        for job in self._running:
            with contextlib.suppress(Exception):  # the first error counts
                self._events.ended(job.number, "pending", None, None)

    def run(self, numbers: Iterable[int], prepare: Callable[[int, Worker], Mapping[str, Any]]) -> None:
        """Run jobs until all have ended or stopped.

        Args:
            numbers: of the jobs, in the order in which they start.
            prepare: called when a job is about to start; returns the document for its process. If it raises an
                exception, the job has failed.
        """
        self._waiting.extend(numbers)
        while self._running or self._leftovers or (self._waiting and not self.stopping):
            if self._stop() and not self.stopping:
                self._stop_all()
            if not self.stopping:
                self._start_waiting(prepare)
            self._look()
            self._events.passed()

    def _processes(self) -> list[Process]:
        return [*(job.process for job in self._running), *self._spares]

    def _start_waiting(self, prepare: Callable[[int, Worker], Mapping[str, Any]]) -> None:
        soon = sum(job.result is not None or (job.left is not None and job.left < SOON) for job in self._running)
        if soon == 0 and self._running and all(job.begun for job in self._running):  # it would slow their start
            soon = 1
        wanted = min(len(self._waiting), len(self._free) + soon)
        with contextlib.suppress(OSError):  # no more processes: the job that needs one will say so
            while len(self._spares) < wanted:
                self._spares.append(self._new_process())
        while self._waiting and self._free and not self.stopping and not self._stop():
            number, worker = self._waiting.popleft(), self._free.pop(0)
            try:
                document = prepare(number, worker)
                self._running.append(Running(number, worker, document, self._given(document)))
            except Exception as error:
                self._free.insert(0, worker)
                kind = "" if isinstance(error, UserError | DiskError) else f"{type(error).__name__}: "
                self._end(number, "failed", one_line(f"{kind}{error}"), None)
                continue
            self._events.started(number)

    def _given(self, document: Mapping[str, Any]) -> Process:
        """A process that has been given this document."""
        process = None
        while self._spares and process is None:
            process = self._spares.pop(0)
            if process.ended() is not None:
                process.close()
                process = None
        process = process or self._new_process()
        process.give(document)
        return process

    def _new_process(self) -> Process:
        return Process(self._command, self._lifeline, self._folder, self._environ)

    def _look(self) -> None:
        """Wait a moment for messages, and see which processes have ended."""
        open_pipes = [job.process.reports for job in self._running if not job.process.finished]
        ending = len(open_pipes) < len(self._running)
        poll = select.poll()  # unlike select.select, it takes descriptors above 1,023
        for reports in open_pipes:
            poll.register(reports, select.POLLIN)
        poll.poll(1000 * (SHORT_TICK if ending else TICK))
        for job in list(self._running):
            self._read(job)
            if job.deadline is not None and self._clock() > job.deadline and not job.hung:
                job.hung = True
                kill_session(job.process.pid)
            if (how := job.process.ended()) is not None:
                self._read(job)  # what it sent last
                self._ended(job, how)
        for session, end in list(self._leftovers.items()):
            if not in_session(session):
                del self._leftovers[session]
            elif self._clock() > end:
                kill_session(session)
                del self._leftovers[session]

    def _read(self, job: Running) -> None:
        for message in job.process.messages():
            job.begun = True
            if message["kind"] == "result":
                job.result, job.deadline = message, self._clock() + PATIENCE
            elif message["kind"] == "stopping":
                job.stopping, job.deadline = True, self._clock() + PATIENCE
            else:
                job.left = message.get("left", job.left)
                self._events.said(job.number, message)

    def _ended(self, job: Running, how: Exit) -> None:
        """A process has ended: so has its job, unless it is started again."""
        if (processes := in_session(job.process.pid)) and job.result is None:
            kill_session(job.process.pid)
        elif processes:
            self._leftovers[job.process.pid] = self._clock() + LEFTOVERS
        before = "" if job.begun else job.process.printed()
        job.process.close()
        self._running.remove(job)
        if job.result is None and job.deadline is None and job.starts <= self._retries:
            again: Running | None = None
            with contextlib.suppress(OSError):  # no more processes
                process = self._given(job.document)
                again = Running(job.number, job.worker, job.document, process, job.starts + 1)
            if again is not None:
                self._running.append(again)
                self._events.again(job.number, _why(how, before))
                return
        self._free.insert(0, job.worker)
        if job.result is not None:
            state, reason = _state(job.result, self.stopping)
        elif job.hung:
            state, reason = "failed", f"did not stop within {PATIENCE:.0f} s of the request, and was killed"
        elif job.deadline is not None:
            state, reason = "pending", None if self.stopping else f"{_why(how, before)} while it stopped"
        else:
            state = "failed"
            reason = _why(how, before) + (f"; started {job.starts} times" if job.starts > 1 else "")
        self._end(job.number, state, reason, job.result)

    def _end(self, number: int, state: State, reason: str | None, result: Mapping[str, Any] | None) -> None:
        self._events.ended(number, state, reason, result)
        if state == "failed" and self._fail_fast and not self.stopping:
            self._stop_all()

    def _stop_all(self) -> None:
        """Ask every job to stop with a checkpoint."""
        self.stopping = True
        for process in self._spares:
            kill_session(process.pid)
        for job in self._running:
            if not job.stopping:  # some machines send a signal to all processes; a second one would stop it at once
                job.process.send(signal.SIGTERM)
                job.deadline = self._clock() + PATIENCE


def _state(result: Mapping[str, Any], stopping: bool) -> tuple[State, str | None]:
    """The state of a job that sent a result, and the reason."""
    if result["error"] is not None:
        return "failed", result["error"]
    if (code := result["exit_code"]) == 0:
        return "done", None
    return "pending", None if stopping else f"stopped by {_name(code - 128)}"


def _why(how: Exit, printed: str) -> str:
    """Why a process ended without a result."""
    if how.code is None:
        return "its process vanished"
    if how.code < 0:
        memory = f", probably out of memory; peak {how.peak / 1e9:.1f} GB" if how.code == -signal.SIGKILL else ""
        return f"killed by {_name(-how.code)}{memory}"
    return f"its process ended with {how.code} and no result" + (f": {one_line(printed)}" if printed else "")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
