"""The two ways in which a run ends badly on purpose."""


class UserError(Exception):
    """The user's mistake: names the key, its value and what would be right. Exit code 2."""


class DivergedError(Exception):
    """A quantity that must be finite is not. Exit code 1."""
