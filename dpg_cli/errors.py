"""The ways in which a run ends badly on purpose."""

LONGEST = 1_000  # characters of a message


class UserError(Exception):
    """The user's mistake: names the key, its value and what would be right. Exit code 2."""


class DivergedError(Exception):
    """A quantity that must be finite is not. Exit code 1."""


class DiskError(Exception):
    """The disk is full, read-only or failing: names the file and the space missing. Exit code 1."""


def one_line(error: object) -> str:
    r"""What went wrong, for a terminal: one line, not too long, control characters as `\x1b`.

    A message may hold what stands in a stranger's file.
    """
    line = " ".join(str(error).split())
    if len(line) > LONGEST:
        line = f"{line[:LONGEST]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
