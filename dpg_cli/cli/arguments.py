"""Plain `key=value` arguments and exit codes of commands and scripts without Hydra, and what all commands share."""

import contextlib
import difflib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dpg_cli.errors import DiskError, DivergedError, ExportError, SimulatorError, UserError, one_line

PICTURES = (".svg", ".png", ".pdf")


def parse(
    arguments: Sequence[str], known: Sequence[str], required: Sequence[str], bare: str | None = None
) -> dict[str, str]:
    """The values of a command line, by key.

    Args:
        arguments: as given on the command line.
        known: all valid keys.
        required: the keys that must be given.
        bare: the key of a path that may be given as a bare word; a path that exists may hold a `=`.

    Raises:
        UserError: an argument is not key=value, or a key is unknown, repeated or missing.
    """
    values: dict[str, str] = {}
    for argument in arguments:
        check_home(argument)
        key, equals, value = argument.partition("=")
        if bare is not None and (os.path.exists(argument) if equals else not argument.startswith("-")):
            key, value = bare, argument
        elif not equals:
            raise UserError(f"{argument}: not of the form key=value")
        if key not in known:
            raise UserError(f"{key}: unknown key{_hint(key, known)}")
        if key in values:
            raise UserError(f"{key}: given twice")
        values[key] = value
    for key in required:
        if not values.get(key):
            raise UserError(f"{key}: missing")
    return values


def check_home(argument: str) -> None:
    """Reject `key=~/path`: shells only expand a `~` at the beginning of a word, or do so for some keys and not others.

    Raises:
        UserError: shows the right form.
    """
    key, equals, value = argument.partition("=")
    if equals and (value == "~" or value.startswith("~/")):
        raise UserError(f"{argument}: ~ is not expanded; write {key}=$HOME{value[1:]}")


def print_versions() -> None:
    """Print the versions of dpg-cli and of what a run's numbers depend on."""
    from dpg_cli.storage.run_dir import versions

    found = dict(versions())
    with readable():
        for name, version in {"dpg-cli": found.pop("dpg_cli"), **found}.items():
            print(name, version)


def whole(values: Mapping[str, str], key: str, default: int, minimum: int) -> int:
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


def _hint(key: str, known: Sequence[str]) -> str:
    from dpg_cli.config.names_elsewhere import counterpart

    found = counterpart(key)
    if found is not None and set(found.keys) <= set(known):
        return f"; use {' and '.join(found.keys)}"
    close = difflib.get_close_matches(key, known, n=1)
    names = f"the keys are {', '.join(known)}" if known else "there are no keys"
    return f"; did you mean {close[0]}?" if close else f"; {names}"


def true_or_false(values: Mapping[str, str], key: str) -> bool:
    """The value of a switch; false if it is not given.

    Raises:
        UserError: the value is neither `true` nor `false`.
    """
    value = values.get(key, "false")
    if value not in ("true", "false"):
        raise UserError(f"{key}={value}: should be true or false")
    return value == "true"


def output_file(values: Mapping[str, str], key: str, default: str, suffixes: Sequence[str]) -> Path:
    """The file that a command or script writes; its folder is created. An existing file stays as it is.

    Args:
        values: the command line, by key.
        key: of the file.
        default: the file, if none is given.
        suffixes: the valid ends of its name.

    Raises:
        UserError: it is a folder, the name has another end, or the file cannot be written.
    """
    given, ends = values.get(key, default), " or ".join(suffixes)
    path = Path(given)
    if not given or os.path.isdir(path):  # a name that is too long raises in Path.is_dir
        what = "is a folder; name a file in it" if given else "is empty; name a file"
        raise UserError(f"{key}={given}: {what} that ends in {ends}")
    if path.suffix not in suffixes:
        raise UserError(f"{key}={path}: must end in {ends}")
    if path.is_symlink() and not path.exists():
        raise UserError(f"{key}={path}: is a link to nothing")
    try:
        _make_folder(path.parent)
        new = not path.exists()
        path.open("ab").close()
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"{key}={path}: {error.strerror}") from error
    return path


_made: list[Path] = []  # folders of output files


def _make_folder(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _made.extend(path.absolute() for path in missing)


def remove_empty_folders() -> None:
    """Remove the folders that `output_file` created and that hold nothing, since the file was not written."""
    for folder in sorted(_made, reverse=True):  # the deepest first
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()
    _made.clear()


def output_folder(values: Mapping[str, str], key: str, default: str) -> Path:
    """The folder that a script writes to, which is created.

    Raises:
        UserError: it cannot be created, or no file can be created in it.
    """
    path = Path(values.get(key, default))
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"{key}={path}: {error.strerror}") from error
    return path


def run_command(name: str, text: str, command: Callable[[Sequence[str]], int]) -> None:
    """Run a console script and exit. Without arguments it prints its help.

    The exit code is that of the command, of its error, which is printed in one line, or of a signal.

    Args:
        name: of the console script.
        text: its help.
        command: given the command line; returns the exit code.
    """
    from dpg_cli.cli.machine import require_posix
    from dpg_cli.cli.signals import StopAtOnce

    try:
        with StopAtOnce():
            require_posix()
            code = _run(sys.argv[1:], text, command)
        sys.exit(code)
    except UserError as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        known = isinstance(error, DiskError | DivergedError | ExportError | SimulatorError)
        print(f"{name}: failed: {one_line(error if known else f'{type(error).__name__}: {error}')}", file=sys.stderr)
        sys.exit(1)
    finally:
        remove_empty_folders()


def _run(arguments: Sequence[str], text: str, command: Callable[[Sequence[str]], int]) -> int:
    if not arguments or "-h" in arguments or "--help" in arguments:
        with readable():
            print(text, end="")
        return 0
    if "--version" in arguments:
        print_versions()
        return 0
    return command(arguments)


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """End without a message if nobody reads what this context prints any more, as in `dpg-train --help | head -1`."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
        sys.stdout.flush()
    finally:
        signal.signal(signal.SIGPIPE, before)


def run_script(name: str, main: Callable[[], None]) -> None:
    """Run a script's `main`; `--help` prints the docstring of its module instead.

    A `UserError` is printed in one line, with exit code 2.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        with readable():
            print((sys.modules[main.__module__].__doc__ or "").strip())
        return
    try:
        main()
    except UserError as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        remove_empty_folders()
