"""The end of a sweep's main process, as its jobs notice it: a pipe of which only that process holds the other end."""

import os
import time
from collections.abc import Callable
from threading import Thread

from dpg_cli.sweeps.process import kill_session

GRACE = 9.0  # seconds for a checkpoint


def hold(lifeline: int, request_stop: Callable[[], object]) -> None:
    """Watch the lifeline in a thread. When it ends, request a stop, and kill this session after `GRACE`.

    Args:
        lifeline: file descriptor of the end for reading.
        request_stop: called in that thread.
    """

    def watch() -> None:
        os.read(lifeline, 1)  # nothing is ever written
        request_stop()
        time.sleep(GRACE)
        kill_session(os.getsid(0))

    os.set_inheritable(lifeline, False)
    Thread(target=watch, daemon=True).start()
