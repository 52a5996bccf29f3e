"""The errors that end a run in one line, with their exit codes."""

LONGEST = 1_000  # characters of a message


class UserError(Exception):
    """A mistake of the user: names the key, its value and what is expected. Exit code 2."""


class CompileError(UserError):
    """`compile=true` cannot be used: what failed and what to do. Exit code 2."""


class DivergedError(Exception):
    """A quantity that must be finite is not. Exit code 1."""


class SimulatorError(Exception):
    """An environment raised during a run: names its class and what it raised. Exit code 1."""


class ExportError(Exception):
    """An exported file does not act as the policy. Exit code 1."""


class DiskError(Exception):
    """The disk is full, read-only or failing: names the file and the free space. Exit code 1."""


def one_line(error: object) -> str:
    r"""An error message for a terminal: one line, at most `LONGEST` characters, control characters as `\x1b`.

    A message may quote a stranger's file.
    """
    line = " ".join(str(error).split())
    if len(line) > LONGEST:
        line = f"{line[:LONGEST]}…"
    return printable(line)


def printable(text: str) -> str:
    r"""The text with control characters as `\x1b`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def to_install(extra: str) -> str:
    """How to install an extra: this package is installed from a clone of its repository."""
    return f"pip install -e '.[{extra}]' in the clone of dpg-cli"


def compiler_error(output: str) -> str:
    """The line of a compiler's output that says why it failed.

    The last one with `error:`, which clang follows with `1 error generated.`; else with `error`; else the last one.
    """
    lines = [line.strip() for line in reversed(output.splitlines()) if line.strip()]
    return next((line for mark in ("error:", "error", "") for line in lines if mark in line), "it printed nothing")


def first_line(error: object) -> str:
    """The first non-empty line of a message, or the name of the error's type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
