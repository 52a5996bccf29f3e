"""Deterministic policy gradient experiments from the command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpg_cli.policy import load_policy

__all__ = ["__version__", "load_policy"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load_policy` when it is asked for: the commands start faster without it."""
    if name == "load_policy":
        from dpg_cli.policy import load_policy

        return load_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
