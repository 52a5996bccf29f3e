"""Threads that step environments, and whether an environment can be stepped in threads.

They save time because simulators such as MuJoCo release Python's global lock while they step.
"""

import contextlib
import hashlib
import json
import logging
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from dpg_cli.environments.state import CannotCopy, Env, encode, layers

log = logging.getLogger(__name__)

TRIALS = 12  # vector steps in each way before the faster way is kept
PATIENCE = 1.0  # seconds that `close` waits for unfinished steps
KNOWN_PACKAGES = {"abc", "builtins", "dpg_cli", "gymnasium", "mujoco", "numpy", "typing"}  # their state is not compared

Work = Callable[[Sequence[Any]], object]  # steps some environments in order and stops at the first error
Task = tuple[int, Work, Sequence[Any], SimpleQueue[tuple[int, BaseException | None]]]


class EnvThreads:
    """Steps environments in threads or in a plain loop, with the same results.

    The threads are daemons. `concurrent.futures` would wait for a hanging environment at the end of the process.

    Args:
        count: number of threads, including the calling thread; 1 is a plain loop.
        measured: whether to alternate between both ways at first and then keep the faster one.
        clock: returns seconds.
    """

    def __init__(self, count: int = 1, *, measured: bool = False, clock: Callable[[], float] = time.perf_counter):
        self.count = count
        self._measured = measured
        self._clock = clock
        self._seconds: dict[str, tuple[list[float], list[float]]] = {}  # by kind: plain loop, threads
        self._threads_are_faster: dict[str, bool] = {}  # by kind
        self._queues: list[SimpleQueue[Task | None]] = [SimpleQueue() for _ in range(count - 1)]
        self._threads = [Thread(target=_serve, args=(queue,), daemon=True) for queue in self._queues]
        for thread in self._threads:
            thread.start()

    def run(self, kind: str, work: Work, steps: Sequence[Any]) -> None:
        """Call `work` with all steps, or in each thread with a contiguous part of them.

        Args:
            kind: what the environments are for; the faster way is measured for each kind.
            work: makes steps.
            steps: one for each environment, in order.

        Raises:
            BaseException: the first error in the order of the environments.
        """
        if self.count == 1 or len(steps) == 1:
            work(steps)
        elif self._measured and kind not in self._threads_are_faster:
            self._try(kind, work, steps)
        elif self._threads_are_faster.get(kind, True):
            self._run_in_threads(work, steps)
        else:
            work(steps)

    def close(self) -> bool:
        """End the threads.

        Returns:
            Whether all have ended; otherwise an environment is still being stepped and cannot be closed.
        """
        for queue in self._queues:
            queue.put(None)
        end = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _run_in_threads(self, work: Work, steps: Sequence[Any]) -> None:
        count = min(self.count, len(steps))
        bounds = [len(steps) * part // count for part in range(count + 1)]
        outcomes: SimpleQueue[tuple[int, BaseException | None]] = SimpleQueue()
        for part in range(1, count):
            self._queues[part - 1].put((part, work, steps[bounds[part] : bounds[part + 1]], outcomes))
        work(steps[: bounds[1]])  # an error here is the first in order, so there is no need to wait for the others
        errors = dict(outcomes.get() for _ in range(1, count))
        for part in range(1, count):
            if (error := errors[part]) is not None:
                raise error

    def _try(self, kind: str, work: Work, steps: Sequence[Any]) -> None:
        plain, threads = self._seconds.setdefault(kind, ([], []))
        start = self._clock()
        if len(plain) == len(threads):
            work(steps)
            plain.append(self._clock() - start)
        else:
            self._run_in_threads(work, steps)
            threads.append(self._clock() - start)
        if len(threads) == TRIALS:
            alone, together = 1e3 * statistics.median(plain), 1e3 * statistics.median(threads)
            self._threads_are_faster[kind] = together < alone
            way = f"in {self.count} threads" if together < alone else "one after another"
            figures = f"{together:.3f} ms per vector step in threads, {alone:.3f} ms one after another"
            log.info("%s environments are stepped %s: %s", kind, way, figures)


PLAIN_LOOP = EnvThreads()


def _serve(tasks: SimpleQueue[Task | None]) -> None:
    while (task := tasks.get()) is not None:
        part, work, steps, outcomes = task
        try:
            work(steps)
        except BaseException as error:  # a simulator's SystemExit too; the calling thread raises it
            outcomes.put((part, error))
        else:
            outcomes.put((part, None))


class ThreadSafety:
    """Tests whether environments of one kind can be stepped in threads, or in several processes.

    Attributes:
        problem: why they cannot; None if no reason was found.
    """

    def __init__(self) -> None:
        self.problem: str | None = "it could not be tried"

    @contextlib.contextmanager
    def watch(self, env: Env) -> Iterator[None]:
        """Compare the state that environments share before and after the steps in this context."""
        before = _shared_state(env)
        yield
        after = _shared_state(env)
        changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        self.problem = f"its steps or resets change {min(changed)}" if changed else None
        if not all(layer.metadata.get("thread_safe", True) for layer in layers(env)):
            self.problem = "its metadata says that it is not thread-safe"


def _digest(value: Any, name: str) -> str:
    """A digest of plain data, which may be large.

    Raises:
        CannotCopy: the value is not plain data.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        about = f"{value.dtype.str}{value.shape}".encode()
        return hashlib.sha256(about + hashlib.sha256(np.ascontiguousarray(value).data).digest()).hexdigest()
    tree = json.dumps(encode(value, name), default=lambda array: _digest(array, name))
    return hashlib.sha256(tree.encode()).hexdigest()


def _shared_state(env: Env) -> dict[str, str]:
    """Digests, by name, of the global random generators and of plain data in an environment's classes and modules."""
    shared: dict[str, Any] = {
        "NumPy's global random generator": np.random.get_state(legacy=True),  # noqa: NPY002
        "Python's global random generator": random.getstate(),
    }
    if (torch := sys.modules.get("torch")) is not None:  # not imported here: worker processes do not need it
        shared["torch's global random generator"] = torch.get_rng_state().numpy()
    for cls in {cls for layer in layers(env) for cls in type(layer).__mro__}:
        if cls.__module__.partition(".")[0] not in KNOWN_PACKAGES:
            shared |= {f"the class attribute {cls.__qualname__}.{name}": value for name, value in vars(cls).items()}
            module = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
            shared |= {f"the global {cls.__module__}.{name}": value for name, value in module.items()}
    digests = {}
    for name, value in shared.items():
        if name.endswith("__"):  # Python's own, such as the record of a module's warnings
            continue
        with contextlib.suppress(CannotCopy, RecursionError):  # it is not plain data
            digests[name] = _digest(value, name)
    return digests
