"""Read a run folder that may come from a stranger.

None of its content is executed, no link is followed, only regular files are opened, and no more is read than a valid
file can hold. The callers check what the content means.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from dpg_cli.errors import UserError, first_line

MAX_LINE = 1_000_000  # bytes of a line of metrics.jsonl or evaluations.jsonl
MAX_RUN_FILE = 1_000_000  # bytes of run.json
MAX_CONFIG = 100_000  # bytes of a config.yaml; a hostile file could take gigabytes
LINKS = re.compile(r"latest|best|\.(latest|best)\.\d+")  # in checkpoints/; a crash leaves those with a number


def check_kinds(folder: Path) -> None:
    """Reject what leads out of a run folder or blocks a reader: links, pipes, devices, files with a second name.

    A resumed run appends to its files and removes leftovers. Neither may affect files elsewhere.

    Raises:
        UserError: there is such a file; the message names it.
    """
    for where, _, _ in os.walk(folder, onerror=_refuse):
        with os.scandir(where) as entries:
            for entry in entries:
                about = entry.stat(follow_symlinks=False)
                if stat.S_ISLNK(about.st_mode):
                    if Path(where).name != "checkpoints" or not LINKS.fullmatch(entry.name):
                        raise UserError(f"{entry.path}: is a link; the only links in a run folder are latest and best")
                elif stat.S_ISREG(about.st_mode):
                    if about.st_nlink > 1:
                        raise UserError(f"{entry.path}: has a second name (a hard link); resume a copy of the folder")
                elif not stat.S_ISDIR(about.st_mode):
                    raise UserError(f"{entry.path}: is neither a file nor a folder")


def check_sweep(folder: Path, jobs: Iterable[str]) -> None:
    """Reject links, pipes and devices where a sweep keeps its own files and the folders of its jobs.

    Args:
        folder: of the sweep.
        jobs: the folder of each job, relative to it.

    Raises:
        UserError: there is one; the message names it.
    """
    wheres = [PurePosixPath(job) for job in jobs]
    paths = {folder / part for where in wheres for part in (where, *where.parents)} - {folder}
    for path in {*paths, *folder.iterdir()}:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(mode):
            raise UserError(f"{path}: is a link; a sweep's folder holds none")
        if not stat.S_ISDIR(mode) and (path in paths or not stat.S_ISREG(mode)):
            raise UserError(f"{path}: is not a folder" if path in paths else f"{path}: is neither a file nor a folder")


def opened(path: Path) -> BufferedReader:
    """Open a file for reading, but never a link, a pipe or a device.

    Raises:
        UserError: it is missing or not a file.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "is a link" if path.is_symlink() else error.strerror
        raise UserError(f"{path}: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is not a file")
    return os.fdopen(descriptor, "rb")


def read(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises:
        UserError: it is missing, not a file, or larger.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UserError(f"{path}: has {size:,} bytes, more than the {most:,} allowed")
        return file.read(size)


def read_json(path: Path, most: int) -> Any:
    """The parsed content of a JSON file of at most `most` bytes.

    Raises:
        UserError: it is missing, not a file, larger, or not JSON.
    """
    return _parsed(read(path, most), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain data from a YAML file, which may be untrusted.

    Raises:
        UserError: the file cannot be read, or `load_yaml` rejects it.
    """
    return load_yaml(read(path, MAX_CONFIG), str(path))


def load_yaml(text: str | bytes, where: str) -> dict[str, Any]:
    """A mapping of plain data from YAML: no tags, no aliases, at most `MAX_CONFIG` bytes.

    Args:
        text: the YAML.
        where: the name of its file, for messages.

    Raises:
        UserError: it is not such a mapping.
    """
    import yaml

    def whole(loader: Any, node: Any) -> int:
        value: int = loader.construct_yaml_int(node)
        if abs(value) >= 10**18:  # Python refuses to print thousands of digits
            raise yaml.YAMLError("a number that is too large")
        return value

    class Plain(yaml.SafeLoader):
        """No dates, no sets and no aliases: with aliases, a small file can expand to gigabytes."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not allowed")
            return super().compose_node(parent, index)

    Plain.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Plain.yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }
    Plain.add_constructor("tag:yaml.org,2002:int", whole)
    if len(text) > MAX_CONFIG:
        raise UserError(f"{where}: has {len(text):,} bytes, too many for a config")
    try:
        tree = yaml.load(text, Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an invalid number; lists nested too deeply
        raise UserError(f"{where}: {first_line(error)}") from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{where}: must be a mapping")
    return tree


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of `metrics.jsonl` or `evaluations.jsonl`, without an incomplete last line.

    Raises:
        UserError: the file is missing, or a line is not a record; the message gives its number.
    """
    with opened(path) as file:
        number = 0
        while (line := file.readline(MAX_LINE)).endswith(b"\n"):
            number += 1
            record = _parsed(line, f"{path}: line {number}")
            if not isinstance(record, dict) or type(record.get("step")) is not int:
                raise UserError(f"{path}: line {number} is not a record")
            yield record
        if len(line) == MAX_LINE:  # a shorter line without an end is still being written, or cut by a crash
            raise UserError(f"{path}: line {number + 1} is too long")


def evaluations(run: Path) -> list[tuple[int, list[float]]]:
    """Step and returns of every evaluation of a run.

    Raises:
        UserError: `evaluations.jsonl` is missing or damaged.
    """
    found = []
    for number, record in enumerate(records(run / "evaluations.jsonl"), 1):
        try:
            returns = [float(value) for value in record["returns"] if type(value) in (int, float)]
            if len(returns) != len(record["returns"]) or not returns:
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{run / 'evaluations.jsonl'}: line {number} is not an evaluation") from error
        found.append((record["step"], returns))
    return found


def run_file(run: Path) -> Mapping[str, Any]:
    """The content of `run.json`; empty if it cannot be read."""
    try:
        content = read_json(run / "run.json", MAX_RUN_FILE)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from error


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}")
