"""The working directory in which a command was started. An environment may change it later."""

from pathlib import Path

_started_in = Path.cwd()


def remember() -> None:
    """Note the working directory, before any environment is created."""
    global _started_in
    _started_in = Path.cwd()


def here() -> Path:
    """That directory."""
    return _started_in


def below_here(path: Path) -> Path:
    """A path relative to that directory if it is inside, else unchanged."""
    return path.relative_to(_started_in) if path.is_relative_to(_started_in) else path
