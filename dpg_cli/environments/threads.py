"""Threads that step environments, and whether an environment can be stepped in threads.

They save time because simulators such as MuJoCo release Python's global lock while they step.
"""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

log = logging.getLogger(__name__)

TRIALS = 12  # vector steps in each way before the faster way is kept
PATIENCE = 1.0  # seconds that `close` waits for unfinished steps

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
