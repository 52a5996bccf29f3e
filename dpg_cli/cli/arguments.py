"""Plain `key=value` arguments and exit codes, for commands and scripts that do not use Hydra."""

import difflib
import sys
from collections.abc import Callable, Sequence

from dpg_cli.errors import UserError, one_line


def parse(arguments: Sequence[str], known: Sequence[str], required: Sequence[str]) -> dict[str, str]:
    """The values of a command line, by key.

    Args:
        arguments: as given on the command line.
        known: all valid keys.
        required: the keys that must be given.

    Raises:
        UserError: an argument is not key=value, or a key is unknown, repeated or missing.
    """
    values: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument}: not of the form key=value")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; the keys are {', '.join(known)}"
            raise UserError(f"{key}: unknown key{hint}")
        if key in values:
            raise UserError(f"{key}: given twice")
        values[key] = value
    for key in required:
        if not values.get(key):
            raise UserError(f"{key}: missing")
    return values


def whole(values: dict[str, str], key: str, default: int, minimum: int) -> int:
    """The integer value of a key, or `default`; `1e3` and `1_000` are integers too.

    Raises:
        UserError: the value is not an integer, or is below `minimum`.
    """
    if key not in values:
        return default
    try:
        number = float(values[key])
    except ValueError:
        number = float("nan")
    if not number.is_integer() or number < minimum:
        raise UserError(f"{key}={values[key]}: should be a whole number, at least {minimum}")
    return int(number)


def run_script(name: str, main: Callable[[], None]) -> None:
    """Run a script's `main`. A `UserError` is printed in one line, with exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
