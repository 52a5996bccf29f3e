"""Checkpoints: folders that are written whole. They hold only safetensors and JSON files, which cannot run code.

In `checkpoints/`, a folder such as `step_000050000/` holds `manifest.json`, `policy.safetensors` (the policy), and
`state.json` with `state.safetensors` (everything else that an exact resume needs). `best_000045000/` holds the policy
of the best evaluation. `latest` and `best` are relative links. The transitions are in `replay/`, beside `checkpoints/`,
in shards that are written once and never changed: `rows_000000010000_000000020000.npy` holds transitions 10,000 to
19,999 since the start. The manifest names every file and every shard with its size and SHA-256.
"""

import contextlib
import errno
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from dpg_cli.errors import UserError
from dpg_cli.storage import shards as transitions_on_disk
from dpg_cli.storage.atomic import Disk, explaining, remove_leftovers
from dpg_cli.storage.checkpoint_folder import (
    DAMAGED,
    check_file,
    damaged,
    damaged_policy,
    folder_name,
    link,
    read_file,
    read_manifest,
    saved_folders,
    step_of,
    write_folder,
)
from dpg_cli.storage.checkpoint_folder import find as find
from dpg_cli.storage.policy_file import POLICY, with_metadata
from dpg_cli.storage.shards import Transitions, bounds, shards_in
from dpg_cli.storage.state_tree import pack, unpack

TREE, TENSORS = "state.json", "state.safetensors"
FORMAT = 2  # of what a resume needs; 1: the replay did not know where episodes end


class NoReplayError(UserError):
    """A checkpoint is whole, but its transitions are not on the disk, so the run cannot be resumed.

    Args:
        message: names the run folder and the reason.
        step: of the checkpoint.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class OldFormatError(UserError):
    """Another version wrote a checkpoint, which this one cannot resume."""


class NoTransitionsError(UserError):
    """A checkpoint is whole, but has no transitions that can be read."""


class Loaded(NamedTuple):
    """A member's saved state."""

    step: int
    state: dict[str, Any]
    transitions: Transitions  # all in the buffer
    best: int | None
    versions: dict[str, str]
    shards: dict[str, Any]

    @property
    def rows(self) -> np.ndarray:
        """Every transition in the buffer, oldest first."""
        return self.transitions.all()


class Checkpoints:
    """Writes the checkpoints of one member.

    Args:
        run: the run folder.
        versions: of the software.
        keep: number of newest checkpoints to keep.
        disk: to write to.
        start: the checkpoint that the run resumes from; None for a new run.
        keep_replay: whether to write the transitions. Without them, the run cannot be resumed.
        metadata: what `policy_file.metadata` returned, so that the policy can be used alone; None: it is left out.
    """

    def __init__(
        self,
        run: Path,
        versions: Mapping[str, str],
        keep: int,
        disk: Disk | None = None,
        start: Loaded | None = None,
        *,
        keep_replay: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ):
        self._run, self._root, self._replay = run, run / "checkpoints", run / "replay"
        self._versions, self._keep, self._keep_replay = versions, keep, keep_replay
        self._disk = disk or Disk()
        self._shards: dict[str, Any] = {} if start is None else dict(start.shards)
        self._best = None if start is None else start.best
        self._metadata = metadata

    @property
    def stored(self) -> int:
        """Number of transitions since the start that are or were in shards, or need not be."""
        if not self._keep_replay:
            return sys.maxsize
        return max((bounds(name)[1] for name in self._shards), default=0)

    def save(
        self, step: int, policy: Mapping[str, Tensor], state: Mapping[str, Any], rows: np.ndarray, oldest: int
    ) -> None:
        """Write the checkpoint of a step, point `latest` at it, and remove what no kept checkpoint needs.

        Args:
            step: of the checkpoint.
            policy: the policy's tensors, by name.
            state: all the rest except the transitions: nested dictionaries and lists of numbers, strings and tensors.
            rows: the transitions since `stored` that the buffer still holds.
            oldest: number since the start of the oldest transition in the buffer.

        Raises:
            DiskError: a write fails; the previous checkpoint is untouched, and nothing of this one remains.
        """
        what = f"cannot write a checkpoint with {rows.nbytes:,} bytes of new transitions, "
        if saved_steps(self._run):
            what += "the previous one is intact, "
        with explaining(self._run, what):
            self._save(step, policy, state, rows, oldest)

    def _save(
        self, step: int, policy: Mapping[str, Tensor], state: Mapping[str, Any], rows: np.ndarray, oldest: int
    ) -> None:
        shards = {name: about for name, about in self._shards.items() if bounds(name)[1] > oldest}
        if not self._keep_replay:
            shards = {}
        elif len(rows):
            first = max(self.stored, oldest)
            shards |= transitions_on_disk.write(self._replay, first, rows, self._disk)
        tree, tensors = pack(state)
        files = {
            POLICY: self._policy_file(step, policy),
            TREE: json.dumps(tree).encode(),
            TENSORS: save_tensors(tensors),
        }
        about = {"format": FORMAT, "shards": shards, "best": self._best}
        folder = write_folder(self._root, "step", step, files, self._versions, about, self._disk)
        try:
            for name in files:  # read back before older ones are removed
                read_file(folder, name, read_manifest(folder))
        except Exception as error:
            self._disk.remove(folder)
            raise OSError(errno.EIO, f"differs from what was written ({error})", str(folder)) from error
        self._shards = shards
        link(self._root, "latest", folder.name, self._disk)
        for old in saved_folders(self._root, "step")[: -self._keep]:
            self._disk.remove(old)
        self._drop_unneeded()

    def save_best(self, step: int, policy: Mapping[str, Tensor]) -> None:
        """Write the policy of the best evaluation so far and point `best` at it.

        The previous one is kept as long as a checkpoint refers to it, since a run may resume from that checkpoint.

        Raises:
            DiskError: a write fails.
        """
        with explaining(self._run):
            self._save_best(step, policy)

    def _save_best(self, step: int, policy: Mapping[str, Tensor]) -> None:
        files = {POLICY: self._policy_file(step, policy)}
        write_folder(self._root, "best", step, files, self._versions, {}, self._disk)
        link(self._root, "best", folder_name("best", step), self._disk)
        self._best = step
        self._drop_unneeded()

    def _policy_file(self, step: int, policy: Mapping[str, Tensor]) -> bytes:
        data = save_tensors({name: tensor.contiguous() for name, tensor in policy.items()})
        if self._metadata is None:
            return data
        return with_metadata(data, {**self._metadata, "step": step, "dpg_cli": self._versions.get("dpg_cli")})

    def _drop_unneeded(self) -> None:
        """Remove shards and best policies that belong to no kept checkpoint."""
        needed, best = set(self._shards), {self._best}
        for path in saved_folders(self._root, "step"):
            with contextlib.suppress(Exception):  # a damaged one needs nothing
                manifest = read_manifest(path)
                needed |= set(manifest["shards"])
                best.add(manifest["best"])
        for shard in shards_in(self._replay):
            if shard.name not in needed:
                self._disk.remove(shard)
        for folder in saved_folders(self._root, "best"):
            if step_of(folder) not in best:
                self._disk.remove(folder)


def saved_steps(run: Path) -> list[int]:
    """The steps of all checkpoints, in order, including damaged ones."""
    return [step_of(folder) for folder in saved_folders(run / "checkpoints", "step")]


def valid_steps(run: Path) -> tuple[list[int], dict[int, str]]:
    """The steps from which a run can resume, in order, and the problem of each other step."""
    good, bad = [], {}
    for step in saved_steps(run):
        try:
            load(run, step)
            good.append(step)
        except UserError as error:
            bad[step] = str(error)
    return good, bad


def newest(runs: Sequence[Path], most: int = sys.maxsize) -> tuple[list[Loaded], list[str]]:
    """Load the highest step at which every member has an intact checkpoint.

    Args:
        runs: the members' run folders.
        most: the most bytes that a member's state can have.

    Returns:
        The state of each member, or an empty list if there is no such step; and the problems of later checkpoints.

    Raises:
        NoReplayError: a checkpoint lacks all of its transitions. Returning to one from before the first transition
            would repeat the whole run.
        OldFormatError: another version wrote a checkpoint.
    """
    problems: list[str] = []
    for step in sorted(set.intersection(*(set(saved_steps(run)) for run in runs)), reverse=True):
        found = []
        for run in runs:
            try:
                found.append(load(run, step, most))
            except (NoReplayError, OldFormatError):
                raise
            except UserError as error:
                reason = str(error).rpartition(DAMAGED)[2]
                problems.append(f"{run}: the checkpoint of step {step:,} is damaged ({reason})")
        if len(found) == len(runs):
            return found, problems
    return [], problems


def load(run: Path, step: int, most: int = sys.maxsize) -> Loaded:
    """Load a member's state.

    Args:
        run: the member's run folder.
        step: of the checkpoint.
        most: the most bytes that the state, or the policy, can have.

    Raises:
        NoReplayError: none of its transitions is there.
        OldFormatError: another version wrote it.
        UserError: a file is missing, damaged or has other content.
    """
    folder = run / "checkpoints" / folder_name("step", step)
    try:
        manifest, state = _manifest_and_state(folder, most)
        _check_format(run, manifest)
        added, size = state["replay"]["added"], state["replay"]["size"]
        if not (type(added) is type(size) is int and 0 <= size <= added):
            raise ValueError(f"{size} of {added} transitions")
        if size and not any((run / "replay" / name).exists() for name in manifest["shards"]):
            reason = f"{run / 'replay'} is missing" if manifest["shards"] else "checkpoint.replay=false kept no replay"
            raise NoReplayError(f"{run}: cannot be resumed: {reason}; {_uses(run)}", step)
        transitions = transitions_on_disk.check(run / "replay", manifest["shards"], added, size)
    except (NoReplayError, OldFormatError):
        raise
    except Exception as error:
        raise damaged(folder, error) from error
    return Loaded(step, state, transitions, manifest["best"], manifest["versions"], manifest["shards"])


def check_format(run: Path) -> None:
    """Check that this version can resume a member's run, as far as the newest manifest that can be read says.

    Raises:
        OldFormatError: another version wrote it.
    """
    for folder in reversed(saved_folders(run / "checkpoints", "step")):
        try:
            manifest = read_manifest(folder)
        except Exception:  # damaged; the run itself will tell
            continue
        _check_format(run, manifest)
        return


def _check_format(run: Path, manifest: Mapping[str, Any]) -> None:
    if manifest.get("format", 1) != FORMAT:
        version = f"a version of dpg-cli {_other_version(manifest)}"
        raise OldFormatError(f"{run}: cannot be resumed: {version}; {_uses(run)}")


def _uses(run: Path) -> str:
    """What can be done with a run that cannot be resumed."""
    return f"it can still be evaluated, exported and reported, and init={run} starts a new run with its networks"


def _other_version(manifest: Mapping[str, Any]) -> str:
    """Which version wrote a checkpoint of another format, for a sentence about it."""
    if manifest.get("format", 1) != 1:
        return "after this one wrote it"
    return "before this one wrote it: its replay does not know where episodes end"


def newest_algorithm(run: Path, most: int) -> tuple[int, Mapping[str, Any], list[str]]:
    """Load the algorithm's state from the newest checkpoint that is whole, whether or not the replay is there.

    Args:
        run: a member's run folder.
        most: the most bytes that the state, or the policy, can have.

    Returns:
        The step, the state, and the problems of later checkpoints.

    Raises:
        UserError: there is no such checkpoint.
    """
    root, problems = run / "checkpoints", list[str]()
    for folder in reversed([] if root.is_symlink() else saved_folders(root, "step")):
        try:
            _, state = _manifest_and_state(folder, most)
            if not isinstance(state["algorithm"], dict):
                raise ValueError("the algorithm has no state")
        except Exception as error:
            problems.append(str(damaged(folder, error)))
        else:
            return step_of(folder), state["algorithm"], problems
    if not problems and saved_folders(root, "best"):
        problems = ["only the policy of the best evaluation, which lacks the critics"]
    raise UserError("there is no whole checkpoint" + (f": {problems[0]}" if problems else ""))


class Stored(NamedTuple):
    """The transitions of a member's run, without the rest of its state."""

    step: int
    transitions: Transitions
    first: int  # number of the first transition since the start
    cuts: list[int]  # numbers of the transitions after which a resumed run started a new episode
    problems: list[str]  # of later checkpoints


def newest_transitions(run: Path, most: int) -> Stored:
    """The transitions of the newest whole checkpoint of a member's run, which may come from a stranger.

    Args:
        run: a member's run folder.
        most: the most bytes that its shards can have.

    Raises:
        OldFormatError: another version wrote it.
        UserError: there is no whole checkpoint, or none with transitions, or they have more bytes.
    """
    root, problems = run / "checkpoints", list[str]()
    for folder in reversed([] if root.is_symlink() else saved_folders(root, "step")):
        try:
            manifest = read_manifest(folder)
            if manifest.get("format", 1) != FORMAT:
                raise OldFormatError(f"a version of dpg-cli {_other_version(manifest)}")
            check_file(folder, POLICY, manifest)
            check_file(folder, TENSORS, manifest)
            replay = json.loads(read_file(folder, TREE, manifest))["replay"]
            added, size, cuts = replay["added"], replay["size"], replay["cuts"]
            if not (type(added) is type(size) is int and 0 <= size <= added and isinstance(cuts, list)):
                raise ValueError(f"{size} of {added} transitions")
            if not all(type(number) is int and added - size <= number < added for number in cuts):
                raise ValueError("a cut is not at a stored transition")
            if size == 0:
                raise NoTransitionsError("its newest whole checkpoint has no transitions")
            if not manifest["shards"]:
                raise NoTransitionsError("checkpoint.replay=false kept no replay")
            if (run / "replay").is_symlink():
                raise ValueError("replay is a link")
            total = sum(int(shard["size"]) for shard in manifest["shards"].values())
            if total > most:
                raise NoTransitionsError(f"its replay has {total / 2**30:,.1f} GiB; {most / 2**30:,.1f} GiB are free")
            found = transitions_on_disk.check(run / "replay", manifest["shards"], added, size)
        except (NoTransitionsError, OldFormatError):
            raise
        except Exception as error:
            problems.append(str(damaged(folder, error)))
        else:
            return Stored(step_of(folder), found, added - size, cuts, problems)
    raise UserError("there is no whole checkpoint" + (f": {problems[0]}" if problems else ""))


def _manifest_and_state(folder: Path, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest of a checkpoint and the state in it, after checking every file.

    Raises:
        Exception: a file is missing, damaged or has other content.
    """
    manifest = read_manifest(folder)
    _, tree, tensors = (read_file(folder, name, manifest, most) for name in (POLICY, TREE, TENSORS))
    return manifest, unpack(json.loads(tree), load_tensors(tensors))


def rewind(run: Path, start: Loaded, disk: Disk) -> None:
    """Remove everything later than a checkpoint, and leftovers of a crash, so that the run can resume there."""
    root, replay = run / "checkpoints", run / "replay"
    for folder in (run, root, replay):
        remove_leftovers(disk, folder)
    best = -1 if start.best is None else start.best
    for folder in saved_folders(root, "step"):
        if step_of(folder) > start.step:
            disk.remove(folder)
    for folder in saved_folders(root, "best"):  # also those of an evaluation that comes again, or that was the last
        if step_of(folder) > best:
            disk.remove(folder)
    for shard in shards_in(replay):
        if shard.name not in start.shards and bounds(shard.name)[1] > start.state["replay"]["added"]:
            disk.remove(shard)
    link(root, "latest", folder_name("step", start.step), disk)
    if start.best is not None:
        link(root, "best", folder_name("best", start.best), disk)


def policy_tensors(folder: Path, most: int = sys.maxsize) -> tuple[dict[str, Tensor], int]:
    """The tensors of one member's policy in a checkpoint, after checking its files against the manifest.

    Args:
        folder: of the checkpoint.
        most: the most bytes that the policy can have.

    Returns:
        The tensors by name, all finite, and the step they were saved at.

    Raises:
        UserError: a file is missing, damaged or not a policy.
    """
    try:
        tensors = load_tensors(read_file(folder, POLICY, read_manifest(folder), most))
        if not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("the policy holds a number that is not finite")
    except Exception as error:
        raise damaged_policy(folder, error) from error
    return tensors, step_of(folder)
