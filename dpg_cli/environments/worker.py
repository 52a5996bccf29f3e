"""A worker process that steps environments, and the messages between it and the main process.

Neither this module nor what it imports may import torch, which would cost each worker seconds and memory.
"""

import contextlib
import io
import logging
import logging.handlers
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import numpy as np

from dpg_cli.environments.group import Env, Kind, LocalEnvs, Stepped
from dpg_cli.environments.pool import Renewal

AGAIN = 0.2  # seconds between calls that ignore the signals
IGNORED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}  # the main process handles them
KINDS: tuple[Kind, ...] = ("training", "evaluation")
STEP = {kind: bytes([number]) for number, kind in enumerate(KINDS)}
CALL, DONE, REPLY = b"c", b".", b"r"  # a pickled object follows CALL and REPLY


class Report(NamedTuple):
    """What happened in a worker's step besides its results.

    Attributes:
        in_step: an error. Errors are in the order in which a plain loop would notice them.
        unstable: the position of a simulation that became unstable.
        in_restart: an error.
        infos: the numbers in `info` where an episode ended, by position.
    """

    in_step: BaseException | None = None
    unstable: int | None = None
    in_restart: BaseException | None = None
    infos: Mapping[int, dict[str, float]] = {}


class Reply(NamedTuple):
    """A worker's answer."""

    result: Any = None
    error: BaseException | None = None
    records: Sequence[logging.LogRecord] = ()


NOTHING = Reply()


class Part(NamedTuple):
    """One worker's environments of a kind: rows `first` to `after` - 1 of the shared memory."""

    shared: Any
    dtype: np.dtype[Any]
    first: int
    after: int


def _end_with_the_main_process() -> None:
    """End this process when the main one ends, even if an environment hangs."""
    if (main := parent_process()) is not None:
        main.join()
        os._exit(1)


def serve(connection: Connection, make: Callable[[], Env], parts: Mapping[Kind, Part], renewal: Renewal) -> None:
    """Make environments and answer messages until the main process closes the connection or ends."""
    Thread(target=_end_with_the_main_process, daemon=True).start()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # it is a file while there is a panel
    install = signal.signal

    def ignore_signals() -> None:
        for number in IGNORED:
            install(number, signal.SIG_IGN)

    def signal_instead(number: int, handler: Any) -> Any:
        """In place of `signal.signal`, for simulators, as in the main process."""
        return signal.getsignal(number) if number in IGNORED else install(number, handler)

    ignore_signals()
    signal.signal = signal_instead  # type: ignore[assignment]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    logging.root.addHandler(logging.handlers.QueueHandler(records))
    logging.root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    rows = {kind: np.frombuffer(part.shared, part.dtype)[part.first : part.after] for kind, part in parts.items()}
    envs: dict[Kind, LocalEnvs] = {}

    def make_all() -> None:
        for kind, part in parts.items():
            if made := [make() for _ in range(part.first, part.after)]:
                envs[kind] = LocalEnvs(made, kind, first=part.first, create=make, renewal=renewal)

    def answer(function: Callable[..., Any], *arguments: Any) -> None:
        result = error = None
        try:
            result = function(*arguments)
        except BaseException as raised:  # a simulator's SystemExit too
            error = portable(raised)
        said = [records.get() for _ in range(records.qsize())]
        if result is None and error is None and not said:
            os.write(connection.fileno(), DONE)
        else:
            os.write(connection.fileno(), REPLY)
            connection.send(Reply(result, error, said))

    ignored = time.monotonic()
    with contextlib.suppress(OSError, EOFError):  # the main process has ended
        answer(make_all)
        while message := os.read(connection.fileno(), 1):
            if time.monotonic() - ignored > AGAIN:
                ignored = time.monotonic()
                ignore_signals()  # also those that a simulator has handled from C since
            if message == CALL:
                kind, method, arguments = connection.recv()
                obs = () if method == "get_states" else (rows[kind]["obs"],)
                answer(getattr(envs[kind], method), *arguments, *obs)
            else:
                kind = KINDS[message[0]]
                answer(_step, envs[kind], rows[kind], kind == "training", parts[kind].first)
    for group in envs.values():
        group.close()


def _step(envs: LocalEnvs, rows: np.ndarray, restarts: bool, first: int) -> Report | None:
    """Step environments, and start new episodes where some ended; None if there is nothing to report."""
    stepped = Stepped(*(rows[name] for name in Stepped._fields))
    try:
        envs.step(rows["action"], stepped, rows["running"])
    except BaseException as error:
        return Report(in_step=portable(error))
    if (position := envs.unstable()) is not None:
        return Report(unstable=position)
    ended = np.flatnonzero((stepped.terminated | stepped.truncated) & rows["running"]).tolist()
    infos = {first + position: info for position, info in zip(ended, envs.infos(ended), strict=True) if info}
    if restarts:
        try:
            envs.restart(ended, rows["first_obs"])
        except BaseException as error:
            return Report(in_restart=portable(error))
    return Report(infos=infos) if infos else None


def portable(error: BaseException) -> BaseException:
    """The error with its traceback as a note; a RuntimeError that names it if pickling changes it."""
    trace = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
        same = type(copy) is type(error) and str(copy) == str(error)
    except Exception:
        same = False
    sent = error if same else RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(trace)
    return sent
