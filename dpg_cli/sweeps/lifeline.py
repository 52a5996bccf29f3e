"""The end of a sweep's main process, as its jobs notice it: a pipe of which only that process holds the other end."""

import os
import signal
import time
from collections.abc import Callable
from threading import Event, Thread

from dpg_cli.sweeps.process import kill_session

GRACE = 9.0  # seconds for a checkpoint


class Lifeline:
    """Watches the pipe in a thread. When it ends, a stop is requested; after `GRACE`, this session is killed.

    Args:
        descriptor: of the end for reading.
        request_stop: called in that thread.
    """

    def __init__(self, descriptor: int, request_stop: Callable[[], object]):
        self._descriptor, self._request_stop = descriptor, request_stop
        self._ended = Event()
        os.set_inheritable(descriptor, False)
        Thread(target=self._watch, daemon=True).start()

    def leave(self) -> None:
        """Called when this process is about to end: if the main process cannot end its leftovers, this one does."""
        if self._ended.is_set():
            kill_session(os.getsid(0))

    def _watch(self) -> None:
        os.read(self._descriptor, 1)  # nothing is ever written
        self._ended.set()
        try:
            self._request_stop()
            time.sleep(GRACE)
            kill_session(os.getsid(0))
        finally:  # without memory, for example
            os.kill(os.getpid(), signal.SIGKILL)
