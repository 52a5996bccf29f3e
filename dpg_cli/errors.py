"""The ways in which a run ends badly on purpose."""


class UserError(Exception):
    """The user's mistake: names the key, its value and what would be right. Exit code 2."""


class DivergedError(Exception):
    """A quantity that must be finite is not. Exit code 1."""


class DiskError(Exception):
    """The disk is full, read-only or failing: names the file and the space missing. Exit code 1."""
