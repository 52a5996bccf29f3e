"""The records of a run: averages between log points, TensorBoard, `metrics.jsonl` and `evaluations.jsonl`."""

import contextlib
import json
import logging
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from dpg_cli.environments.evaluation import Evaluation, mean_info
from dpg_cli.environments.rollout import Episode
from dpg_cli.errors import UserError
from dpg_cli.storage.atomic import explaining
from dpg_cli.storage.untrusted import MAX_LINE, records

log = logging.getLogger(__name__)
F = TypeVar("F", TextIO, "EventFile")

METRICS, EVALUATIONS, EVENTS = "metrics.jsonl", "evaluations.jsonl", "events.out.tfevents.*"

OFFLINE = "Every step on the x axis is one update, not an environment step."

# TensorBoard's Custom Scalars tab, with related scalars side by side.
LAYOUT = {
    "return": {
        "evaluation": ["Multiline", ["eval/return_mean"]],
        "evaluation, spread over episodes": ["Multiline", ["eval/return_std"]],
        "training episodes": ["Multiline", ["train/episode_return", "train/last_10_returns"]],
        "episode length": ["Multiline", ["eval/episode_length", "train/episode_length"]],
    },
    "value": {
        "Q and its target": ["Multiline", ["value/q_mean", "value/target_mean"]],
        "bias": ["Multiline", ["value/bias"]],
        "targets beyond v_min and v_max": ["Multiline", ["value/clipped_targets"]],
    },
    "learning": {
        "losses": ["Multiline", ["loss/critic", "loss/actor", "loss/encoder"]],
        "behaviour cloning": ["Multiline", ["loss/behavior_cloning"]],
        "gradient norms": ["Multiline", ["grad/critic_norm", "grad/actor_norm", "grad/encoder_norm"]],
    },
    "policy": {
        "saturation": ["Multiline", ["policy/saturation"]],
        "noise": ["Multiline", ["noise/scale"]],
    },
    "speed": {
        "per second": ["Multiline", ["perf/steps_per_second", "perf/updates_per_second"]],
    },
}


class Averages:
    """Means of scalars since the last `take()`. Scalars of updates stay on the device until then.

    Args:
        num_seeds: S.
        device: of the updates.
    """

    def __init__(self, num_seeds: int, device: torch.device | str = "cpu"):
        self._num_seeds, self._device = num_seeds, device
        self._totals: dict[str, Tensor] = {}  # never replaced, so that the sums can be captured in a graph
        self._counts: dict[str, int] = {}
        self._clear()

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Add the scalars of one update, each `(S,)`."""
        self.sum_up(scalars)
        self.count(scalars)

    def sum_up(self, scalars: Mapping[str, Tensor]) -> None:
        """The part of `add` that runs on the device."""
        for tag, value in scalars.items():
            if tag not in self._totals:
                self._totals[tag] = self._zeros(value)
            self._totals[tag].add_(value)

    def count(self, tags: Iterable[str]) -> None:
        """The part of `add` that runs on the host."""
        for tag in tags:
            self._counts[tag] = self._counts.get(tag, 0) + 1

    def static_tensors(self) -> list[Tensor]:
        """The sums, for `capture.Static`."""
        return list(self._totals.values())

    def add_noise_scale(self, scale: float) -> None:
        """Add the scale of the exploration noise at one step, which all members share."""
        self._noise_scales.append(scale)

    def add_episodes(self, episodes: Sequence[Episode]) -> None:
        """Add finished training episodes."""
        for episode in episodes:
            self._episodes[episode.member].append(episode)

    def take(self) -> list[dict[str, float]]:
        """The means by tag, for each member, without tags that had no values. Starts new averages."""
        records: list[dict[str, float]] = [{} for _ in range(self._num_seeds)]
        for tag, count in self._counts.items():
            for record, value in zip(records, (self._totals[tag] / count).tolist(), strict=True):
                record[tag] = value
        for record, episodes in zip(records, self._episodes, strict=True):
            if self._noise_scales:
                record["noise/scale"] = float(np.mean(self._noise_scales))
            if episodes:
                record["train/episode_return"] = float(np.mean([e.episode_return for e in episodes]))
                record["train/episode_length"] = float(np.mean([e.length for e in episodes]))
                record |= {f"train/info/{key}": mean for key, mean in mean_info(e.info for e in episodes).items()}
        self._clear()
        return records

    def state(self, member: int) -> dict[str, Any]:
        """The sums and counts of one member."""
        return {
            "totals": {tag: [self._totals[tag][member], count] for tag, count in self._counts.items()},
            "noise_scales": self._noise_scales,
            "episodes": [[e.episode_return, e.length, [*e.info.items()]] for e in self._episodes[member]],
        }

    def load_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore `state()`, one per member."""
        self._clear()
        for tag, (_, count) in states[0]["totals"].items():
            total = torch.stack([state["totals"][tag][0].reshape(()) for state in states])
            self._totals.setdefault(tag, self._zeros(total)).copy_(total)
            self._counts[tag] = int(count)
        self._noise_scales += map(float, states[0]["noise_scales"])
        for member, state in enumerate(states):
            for value, length, *info in state["episodes"]:  # older checkpoints have no `info`
                numbers = {str(key): float(number) for key, number in (info[0] if info else ())}
                self._episodes[member].append(Episode(member, float(value), int(length), numbers))

    @torch.inference_mode(False)  # inference tensors could not be changed outside that mode
    def _zeros(self, like: Tensor) -> Tensor:
        return torch.zeros(like.shape, dtype=like.dtype, device=self._device)

    def _clear(self) -> None:
        for total in self._totals.values():
            total.zero_()
        self._counts.clear()
        self._noise_scales: list[float] = []
        self._episodes: list[list[Episode]] = [[] for _ in range(self._num_seeds)]


class EventFile:
    """A run's single TensorBoard file, written record by record.

    torch's SummaryWriter starts a new file, named by the clock, at every start, and writes from its own thread. Curves
    of a resumed run would be torn, and errors of a full disk would not reach the caller.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path):
        known = sorted(folder.glob(EVENTS))
        self.path = known[0] if known else folder / f"events.out.tfevents.{int(time.time())}.{platform.node()}"
        self.file = self.path.open("ab")
        self._records = RecordWriter(self.file)
        if self.file.tell() == 0:
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, content: Any, step: int | None = None, when: float | None = None) -> None:
        """Write one summary, at an environment step and a time in seconds (default: now)."""
        self._write(Event(wall_time=time.time() if when is None else when, step=step, summary=content))

    def flush(self) -> None:
        """Flush to the file."""
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


class Recorder:
    """Writes one member's scalars into its run folder.

    Args:
        folder: the run folder.
        config: the resolved config, for the HParams tab and as text.
        name: of the run in the HParams tab, where runs with the same name would share a row.
        sizes: `sizes()` at the checkpoint to resume from; everything written later is cut. None for a new run.
        dataset: description of an offline run's data set. TensorBoard shows it and says that steps are updates.

    Raises:
        UserError: `sizes` or a curve is invalid.
        DiskError: a file cannot be read or written.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        name: str,
        sizes: Mapping[str, int] | None = None,
        *,
        dataset: str | None = None,
    ):
        self._folder, self._dataset = folder, dataset
        self._files: list[TextIO | EventFile] = []
        try:
            with explaining(folder):
                events_lost = sizes is not None and cut(folder, sizes)
                self._metrics = self._opened((folder / METRICS).open("a", encoding="utf-8"))
                self._evaluations = self._opened((folder / EVALUATIONS).open("a", encoding="utf-8"))
                self._events = self._opened(EventFile(folder))
            if sizes is None or events_lost:
                self._write_config(config, name)
            if events_lost:
                for record in records(folder / METRICS):
                    step, when = record.pop("step"), float(record.pop("time", 0.0))
                    self._add_scalars(step, when, {tag: value for tag, value in record.items() if type(value) is float})
        except BaseException:
            self.close()
            raise

    def sizes(self) -> dict[str, int]:
        """The bytes of every file by name, after writing them to the disk.

        Raises:
            DiskError: the disk is full or failing.
        """
        for file in (self._events.file, self._metrics, self._evaluations):
            with explaining(Path(file.name)):
                os.fsync(file.fileno())
        paths = [*self._folder.glob(EVENTS), self._folder / METRICS, self._folder / EVALUATIONS]
        return {path.name: path.stat().st_size for path in paths}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one record: scalars by tag at an environment step.

        Raises:
            DiskError: the disk is full or failing.
        """
        now = time.time()
        _append(self._metrics, {"step": step, "time": now, **values})
        self._add_scalars(step, now, values)

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Write one evaluation: its episodes to `evaluations.jsonl`, its scalars as a record.

        Raises:
            DiskError: the disk is full or failing.
        """
        returns, lengths = evaluation.returns, evaluation.lengths
        _append(self._evaluations, {"step": step, "returns": returns, "lengths": lengths})
        values = {
            "eval/return_mean": float(np.mean(returns)),
            "eval/return_std": float(np.std(returns)),
            "eval/episode_length": float(np.mean(lengths)),
        }
        if evaluation.value_bias is not None:
            values["value/bias"] = evaluation.value_bias
        values |= {f"eval/info/{key}": mean for key, mean in evaluation.info.items()}
        self.scalars(step, values)

    def close(self) -> None:
        """Close every file."""
        for file in self._files:
            with contextlib.suppress(OSError):  # a full disk; no checkpoint counts on the lost bytes
                file.close()

    def _opened(self, file: F) -> F:
        self._files.append(file)
        return file

    def _add_scalars(self, step: int, when: float, values: Mapping[str, float]) -> None:
        with explaining(self._events.path):
            for tag, value in values.items():
                self._events.add(summary.scalar(tag, value), step, when)  # type: ignore[no-untyped-call]
            self._events.flush()

    def _write_config(self, config: Mapping[str, Any], name: str) -> None:
        # Only the summary of this run's hyperparameters: add_hparams would make a sub-run. There is no experiment
        # summary, since the first run's would set the columns for all runs. Without it, the tab shows all columns.
        text = "".join(f"    {line}\n" for line in json.dumps(config, indent=2).splitlines())
        with explaining(self._events.path):
            self._events.add(hparams_pb(_flat(config), trial_id=name))
            self._events.add(summary.text("config", text), 0)  # type: ignore[no-untyped-call]
            layout = {f"{title} (over updates)": own for title, own in LAYOUT.items()} if self._dataset else LAYOUT
            self._events.add(summary.custom_scalars(layout), 0)  # type: ignore[no-untyped-call]
            if self._dataset:
                self._events.add(summary.text("offline", f"{self._dataset}\n\n{OFFLINE}"), 0)  # type: ignore[no-untyped-call]
            self._events.flush()


def cut(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Cut a run's files to their sizes at a checkpoint, so that resumed curves continue without a seam.

    Args:
        folder: the run folder.
        sizes: from `Recorder.sizes()`, stored in the checkpoint.

    Returns:
        Whether TensorBoard's file was damaged. It is then removed, and can be rewritten from `metrics.jsonl`.

    Raises:
        UserError: `sizes` or a curve is invalid.
    """
    if not isinstance(sizes, dict) or not {METRICS, EVALUATIONS} <= sizes.keys():
        raise UserError(f"{folder}: the checkpoint has no lengths of {METRICS} and {EVALUATIONS}")
    if not all(type(size) is int and size >= 0 for size in sizes.values()):
        raise UserError(f"{folder}: the checkpoint has an invalid length: {sizes}")
    for name in (METRICS, EVALUATIONS):
        path = folder / name
        path.touch()
        if (size := path.stat().st_size) < sizes[name]:
            log.warning("%s has lost %d bytes at its end", path, sizes[name] - size)
        with path.open("r+b") as file:
            file.seek(max(0, min(size, sizes[name]) - MAX_LINE))
            before = file.tell()
            last = file.read(min(size, sizes[name]) - before)
            if before and b"\n" not in last:
                raise UserError(f"{path}: has a line of more than {MAX_LINE:,} bytes")
            file.truncate(before + last.rfind(b"\n") + 1)
    events = {path: path.stat().st_size for path in folder.glob(EVENTS)}
    known = {path: size for path, size in events.items() if path.name in sizes}
    whole = len(known) == 1 and all(size >= sizes[path.name] for path, size in known.items())
    for path in events:
        if whole and path in known:
            os.truncate(path, sizes[path.name])
        else:
            path.unlink()
    return not whole


def _append(file: TextIO, record: Mapping[str, Any]) -> None:
    with explaining(Path(file.name)):
        file.write(json.dumps(record) + "\n")
        file.flush()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested keys joined with dots; values that the HParams tab cannot hold become JSON strings."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat
