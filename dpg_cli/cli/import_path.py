"""The import path of the commands."""

import os
import sys


def add_working_directory() -> None:
    """Let modules in the working directory be imported, as `python -m` does.

    Only for a command line that names a module itself, or says `trust=true`: a stranger's run folder that is the
    working directory must not run code. Installed modules win, so a file there cannot take the place of one of them.
    """
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)
