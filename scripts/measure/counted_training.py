#!/usr/bin/env python
"""`dpg-train`, which counts its steps in a file: what benchmark.py and revisions.py measure.

    python scripts/measure/counted_training.py COUNTER TREE OVERRIDE...

COUNTER holds one int64; TREE is the checkout whose dpg_cli must be the one that is imported. This
script only imports what earlier revisions have too.
"""

import sys
from pathlib import Path

import numpy as np

import dpg_cli
from dpg_cli.cli.job import Watcher
from dpg_cli.cli.train import main


def count_steps(path: str) -> None:
    """From here on, the step that a training has reached stands in the file."""
    counter, stepped = np.memmap(path, np.int64, "r+"), Watcher.stepped

    def counted(self: Watcher, step: int, *args: object) -> None:
        counter[0] = step
        stepped(self, step, *args)  # type: ignore[arg-type]

    Watcher.stepped = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    count_steps(sys.argv.pop(1))
    if not Path(dpg_cli.__file__).is_relative_to(tree := sys.argv.pop(1)):
        sys.exit(f"{dpg_cli.__file__} was imported, not {tree}")
    main()
