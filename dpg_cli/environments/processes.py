"""Environments in worker processes, seen from the main process; `worker.py` is the other side."""

import atexit
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np

from dpg_cli.environments.group import Env, Kind, Stepped
from dpg_cli.environments.pool import Renewal, close
from dpg_cli.environments.worker import CALL, DONE, IGNORED, NOTHING, STEP, Part, Reply, Report, serve
from dpg_cli.errors import SimulatorError

PATIENCE = 2.0  # seconds that `close` waits for unfinished steps


class EnvProcessError(SimulatorError):
    """A worker process ended, and its environments with it."""


class Worker(NamedTuple):
    """A worker process, seen from the main process."""

    process: BaseProcess
    connection: Connection


class EnvProcesses:
    """Steps environments in worker processes, with the results of a plain loop.

    Each worker has a contiguous part of the environments of each kind. Arrays are in shared memory. A byte to a worker
    starts a step, and a byte back ends it.

    Args:
        make: makes one environment; it is pickled.
        example: one environment made by `make`; it is closed with the others.
        sizes: number of environments of each kind.
        count: number of worker processes.
        renewal: what evaluations do with their environments before they start.

    Attributes:
        groups: the environments of each kind.
    """

    def __init__(
        self,
        make: Callable[[], Env],
        example: Env,
        sizes: Mapping[Kind, int],
        count: int,
        *,
        renewal: Renewal = "put back",
    ):
        self.example = example
        self._closed = False
        context = get_context("spawn")  # CUDA does not survive a fork
        row = _row(example)
        shared = {kind: context.RawArray("b", row.itemsize * size) for kind, size in sizes.items()}
        bounds = {kind: [size * part // count for part in range(count + 1)] for kind, size in sizes.items()}
        self.groups = {kind: ProcessEnvs(self, kind, shared[kind], row, bounds[kind]) for kind in sizes}
        self._workers: list[Worker] = []
        atexit.register(self.close)  # runs before multiprocessing waits for its processes
        try:
            with _inherited_by_workers():
                for number in range(count):
                    parts = {kind: Part(shared[kind], row, *bounds[kind][number : number + 2]) for kind in sizes}
                    ours, theirs = context.Pipe()
                    arguments = theirs, make, parts, renewal
                    process = context.Process(target=serve, args=arguments, name=f"environments {number}")
                    process.start()
                    theirs.close()  # so that the worker's end is the end of the file
                    self._workers.append(Worker(process, ours))
            self.receive(range(count))
        except BaseException:
            self.close()
            raise

    def send(self, number: int, message: bytes, call: tuple[Any, ...] | None = None) -> None:
        """Send a byte to a worker, and the call that follows it, if any.

        Raises:
            EnvProcessError: the worker has ended.
        """
        connection = self._workers[number].connection
        try:
            os.write(connection.fileno(), message)
            if call is not None:
                connection.send(call)
        except OSError:
            raise self._ended(number) from None

    def receive(self, numbers: Sequence[int]) -> list[Any]:
        """Wait for workers' answers and handle their log records.

        Returns:
            Each worker's result; after a step, a `Report`, or None if there is nothing to report.

        Raises:
            BaseException: the first error of a call.
            EnvProcessError: a worker has ended.
        """
        replies = [self._receive(number) for number in numbers]
        for reply in replies:
            if reply.error is not None:
                raise reply.error
        return [reply.result for reply in replies]

    def _receive(self, number: int) -> Reply:
        connection = self._workers[number].connection
        try:
            if os.read(connection.fileno(), 1) == DONE:
                return NOTHING
            reply: Reply = connection.recv()
        except (OSError, EOFError):
            raise self._ended(number) from None
        for record in reply.records:
            if (logger := logging.getLogger(record.name)).isEnabledFor(record.levelno):
                logger.handle(record)
        return reply

    def close(self) -> None:
        """Close every environment and end the workers; kill a worker whose environment hangs."""
        workers, self._workers = self._workers, []
        atexit.unregister(self.close)
        if self._closed:
            return
        self._closed = True
        for worker in workers:
            worker.connection.close()
        try:
            end = time.monotonic() + PATIENCE
            for worker in workers:
                worker.process.join(max(end - time.monotonic(), 0.0))
        finally:
            for worker in workers:
                worker.process.kill()
            for worker in workers:
                worker.process.join()
                worker.process.close()
        close(self.example)

    def _ended(self, number: int) -> EnvProcessError:
        process = self._workers[number].process
        process.join(PATIENCE)
        code = process.exitcode
        if code is None:
            how = "no longer answers"
        else:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        name = type(self.example.unwrapped).__name__
        return EnvProcessError(f"process {number + 1} of {len(self._workers)} that steps {name} {how}")


class ProcessEnvs:
    """The environments of one kind in worker processes, an `EnvGroup`.

    Args:
        processes: the workers.
        kind: what the environments are for.
        shared: memory for N rows.
        row: type of a row.
        bounds: first position of each worker's part, and N.
    """

    def __init__(self, processes: EnvProcesses, kind: Kind, shared: Any, row: np.dtype[Any], bounds: Sequence[int]):
        self._processes = processes
        self._kind = kind
        self._bounds = bounds
        self._workers = [number for number in range(len(bounds) - 1) if bounds[number] < bounds[number + 1]]
        self._rows = np.frombuffer(shared, row)
        self._stepped = Stepped(*(self._rows[name] for name in Stepped._fields))
        self._reports: list[Report] = []

    @property
    def example(self) -> Env:
        """One environment, in this process."""
        return self._processes.example

    def __len__(self) -> int:
        """The number of environments."""
        return self._bounds[-1]

    def reset(self, seeds: Sequence[int], obs: np.ndarray) -> None:
        """Start an episode in every environment."""
        self._call("reset", lambda first, after: (seeds[first:after],))
        obs[...] = self._rows["obs"]

    def step(self, action: np.ndarray, stepped: Stepped, running: np.ndarray | None = None) -> None:
        """Step the environments."""
        self._rows["action"] = action
        self._rows["running"] = True if running is None else running
        workers = self._workers
        if running is not None:
            workers = [n for n in workers if running[self._bounds[n] : self._bounds[n + 1]].any()]
        for number in workers:
            self._processes.send(number, STEP[self._kind])
        self._reports = [report for report in self._processes.receive(workers) if report is not None]
        for report in self._reports:
            if report.in_step is not None:
                raise report.in_step
        stepping = slice(None) if running is None else running
        for array, own in zip(stepped, self._stepped, strict=True):
            array[stepping] = own[stepping]

    def unstable(self) -> int | None:
        """The first position whose simulation became unstable; else None."""
        return next((report.unstable for report in self._reports if report.unstable is not None), None)

    def infos(self, positions: Sequence[int]) -> list[dict[str, float]]:
        """The numbers in `info` at positions where the last step ended an episode."""
        found = {position: info for report in self._reports for position, info in report.infos.items()}
        return [found.get(position, {}) for position in positions]

    def restart(self, positions: Sequence[int], obs: np.ndarray) -> None:
        """Fetch the first observations of the new episodes, which the workers started after the step."""
        for report in self._reports:
            if report.in_restart is not None:
                raise report.in_restart
        obs[positions] = self._rows["first_obs"][positions]

    def get_states(self, positions: range) -> list[Any]:
        """States of the simulators at some positions."""

        def own(first: int, after: int) -> tuple[range]:
            return (range(max(positions.start - first, 0), max(min(positions.stop, after) - first, 0)),)

        return self._call("get_states", own)

    def set_states(self, states: Sequence[Any], seeds: Sequence[int], obs: np.ndarray) -> list[str | None]:
        """Restore the simulators' states, or start new episodes."""
        self._rows["obs"] = obs
        reasons = self._call("set_states", lambda first, after: (states[first:after], seeds[first:after]))
        obs[...] = self._rows["obs"]
        return reasons

    def close(self) -> None:
        """Close every environment, also those of the other kind."""
        self._processes.close()

    def _call(self, method: str, arguments: Callable[[int, int], tuple[Any, ...]]) -> list[Any]:
        """Call a method in every worker with arguments for its part, and join the returned lists."""
        for number in self._workers:
            own = arguments(*self._bounds[number : number + 2])
            self._processes.send(number, CALL, (self._kind, method, own))
        return [item for items in self._processes.receive(self._workers) for item in items or ()]


def _row(example: Env) -> np.dtype[Any]:
    """The type of an environment's row in shared memory."""
    space = example.observation_space
    obs = (space.dtype, space.shape)
    action = (np.float64, example.action_space.shape)
    numbers = [("action", *action), ("obs", *obs), ("first_obs", *obs), ("reward", np.float64)]
    flags = [(name, np.bool_) for name in ("terminated", "truncated", "running")]
    return np.dtype([*numbers, *flags], align=True)


@contextlib.contextmanager
def _inherited_by_workers() -> Iterator[None]:
    """Processes started in this context compute in one thread, and no signal ends them while they import."""
    resource_tracker.ensure_running()  # else it starts with the first process and unblocks signals
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    main = sys.modules["__main__"]
    names: dict[str, Any] = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    vars(main).update(dict.fromkeys(names))  # else workers import it, and a script without a guard runs again
    try:
        yield
    finally:
        vars(main).update(names)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
