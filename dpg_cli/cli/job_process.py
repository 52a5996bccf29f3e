"""A job's process and the main process of its sweep: the programs, the document and the messages between them.

This module must not import torch: it is imported before the process of a job has one.
"""

import contextlib
import json
import os
import select
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dpg_cli.cli import here
from dpg_cli.sweeps.lifeline import Lifeline

# -P: the working directory must not take the place of installed modules.
JOB_PROGRAM = (sys.executable, "-P", "-m", "dpg_cli.cli.sweep_job")
SIZES_PROGRAM = (sys.executable, "-P", "-m", "dpg_cli.cli.env_sizes")
LOG = "output.log"  # in the folder of a job: all that it prints


class Reports:
    """Messages to the main process of the sweep, one JSON object a line. They are dropped once it has ended.

    Args:
        descriptor: of the pipe.
    """

    def __init__(self, descriptor: int):
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._room = select.poll()  # unlike select.select, it takes descriptors above 1,023
        self._room.register(descriptor, select.POLLOUT)

    def send(self, kind: str, **values: Any) -> None:
        """Send a message."""
        text = (json.dumps({"kind": kind, **values}) + "\n").encode()
        with contextlib.suppress(OSError):
            while text:
                text = text[os.write(self._descriptor, text) :]

    def offer(self, kind: str, **values: Any) -> None:
        """Send a message unless the pipe is full, as it is while the main process is suspended."""
        if self._room.poll(0):
            self.send(kind, **values)


def surroundings() -> Mapping[str, Any]:
    """The part of a document that makes its process find the same files and modules as this one."""
    return {"here": str(here.here()), "path": sys.path}


def connect(request_stop: Callable[[], object]) -> tuple[Reports, Lifeline]:
    """The pipe for messages and the lifeline, from the command line.

    Args:
        request_stop: called in another thread when the main process has ended.
    """
    return Reports(int(sys.argv[1])), Lifeline(int(sys.argv[2]), request_stop)


def receive() -> Mapping[str, Any]:
    """Wait for the document. If there is none, the process ends."""
    text = sys.stdin.buffer.read()
    if not text:  # the sweep needs no further process, or has ended
        sys.exit()
    document: dict[str, Any] = json.loads(text)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.chdir(document["here"])
    here.remember()
    sys.path[:] = document["path"]
    return document
