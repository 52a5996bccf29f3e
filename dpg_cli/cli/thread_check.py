"""Warn when one thread is faster than `threads=auto`, as on a machine whose cores are busy.

Threads that share a product wait for the slowest one. The rule of `threads=auto` still depends on nothing that is
measured, because the number of threads changes the last digits of results.
"""

import logging
import time
from collections.abc import Callable

import torch

from dpg_cli.cli.learners import largest_product
from dpg_cli.config import TrainConfig
from dpg_cli.precision import PRECISIONS

log = logging.getLogger(__name__)

SECONDS = 0.1  # of matrix products with each number of threads
MARGIN = 1.2  # smaller differences are noise of so short a measurement
DROP = 3.0  # factor of the best speed


class ThreadCheck:
    """Compares one thread with the chosen number when a run starts, and again whenever its speed drops to a third.

    Args:
        threads: the chosen number, more than one.
        measure: the products per second with a number of threads.
        tell: prints a line. It is called once at most.
    """

    def __init__(self, threads: int, measure: Callable[[int], float], tell: Callable[[str], None]):
        self._threads, self._measure, self._tell = threads, measure, tell
        self._best = 0.0
        self._told = False

    def compare(self) -> None:
        """Measure, and suggest one thread if it is faster."""
        one, several = self._measure(1), self._measure(self._threads)
        figures = f"{one:,.0f} matrix products per second with one thread, {several:,.0f} with {self._threads}"
        log.info("threads: %s", figures)
        if one > MARGIN * several and not self._told:
            self._told = True
            self._tell(
                f"note: threads=auto uses {self._threads} threads, and one would be faster now: {figures}. Other "
                "programs are using the cores; threads=1 avoids waiting for them, and changes the last digits of "
                "results"
            )

    def watch(self, speed: float) -> None:
        """Measure again if the speed of the training has dropped to a third of its best since the last time."""
        self._best = max(self._best, speed)
        if speed < self._best / DROP:
            self._best = speed
            self.compare()


def products_per_second(config: TrainConfig, obs_dim: int) -> Callable[[int], float]:
    """A function that measures the largest product of a run's updates with a number of threads."""
    inputs, outputs = largest_product(config, obs_dim)
    dtype = PRECISIONS[config.precision].products
    left = torch.ones(config.num_seeds, config.algo["batch_size"], inputs, dtype=dtype)
    right = torch.ones(config.num_seeds, inputs, outputs, dtype=dtype)

    def measure(threads: int) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            left @ right  # wakes the threads
            start, count = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - start) < SECONDS:
                left @ right
                count += 1
        finally:
            torch.set_num_threads(before)
        return count / elapsed

    return measure
