"""What a run says about itself: averages between log points, TensorBoard, `metrics.jsonl`, `evaluations.jsonl`."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dpg_cli.rollout import Episode, Evaluation

EVENTS = "events.out.tfevents.*"

# TensorBoard's Custom Scalars tab: what belongs together, side by side.
LAYOUT = {
    "return": {
        "evaluation": ["Multiline", ["eval/return_mean"]],
        "evaluation, spread over episodes": ["Multiline", ["eval/return_std"]],
        "training episodes": ["Multiline", ["train/episode_return"]],
        "episode length": ["Multiline", ["eval/episode_length", "train/episode_length"]],
    },
    "value": {
        "Q and its target": ["Multiline", ["value/q_mean", "value/target_mean"]],
        "bias": ["Multiline", ["value/bias"]],
    },
    "learning": {
        "losses": ["Multiline", ["loss/critic", "loss/actor"]],
        "gradient norms": ["Multiline", ["grad/critic_norm", "grad/actor_norm"]],
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
    """Means of scalars since they were last taken. Those of updates stay on the device until then.

    Args:
        num_seeds: S.
    """

    def __init__(self, num_seeds: int):
        self._num_seeds = num_seeds
        self._clear()

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Take in one update's scalars, each `(S,)`."""
        for tag, value in scalars.items():
            total, count = self._totals.get(tag, (torch.zeros_like(value), 0))
            self._totals[tag] = (total + value, count + 1)

    def add_noise_scale(self, scale: float) -> None:
        """Take in the exploration noise's scale at one step, the same for every member."""
        self._noise_scales.append(scale)

    def add_episodes(self, episodes: Sequence[Episode]) -> None:
        """Take in finished training episodes."""
        for episode in episodes:
            self._episodes[episode.member].append(episode)

    def take(self) -> list[dict[str, float]]:
        """The means by tag, for each member; a tag of which nothing came is absent. Starts anew."""
        records: list[dict[str, float]] = [{} for _ in range(self._num_seeds)]
        for tag, (total, count) in self._totals.items():
            for record, value in zip(records, (total / count).tolist(), strict=True):
                record[tag] = value
        for record, episodes in zip(records, self._episodes, strict=True):
            if self._noise_scales:
                record["noise/scale"] = float(np.mean(self._noise_scales))
            if episodes:
                record["train/episode_return"] = float(np.mean([e.episode_return for e in episodes]))
                record["train/episode_length"] = float(np.mean([e.length for e in episodes]))
        self._clear()
        return records

    def state(self, member: int) -> dict[str, Any]:
        """What has been taken in of one member."""
        return {
            "totals": {tag: [total[member], count] for tag, (total, count) in self._totals.items()},
            "noise_scales": self._noise_scales,
            "episodes": [[e.episode_return, e.length] for e in self._episodes[member]],
        }

    def load_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from `state()`, one a member."""
        self._clear()
        for tag, (_, count) in states[0]["totals"].items():
            self._totals[tag] = (torch.stack([state["totals"][tag][0] for state in states]), count)
        self._noise_scales += states[0]["noise_scales"]
        for member, state in enumerate(states):
            self._episodes[member] = [Episode(member, value, length) for value, length in state["episodes"]]

    def _clear(self) -> None:
        self._totals: dict[str, tuple[Tensor, int]] = {}
        self._noise_scales: list[float] = []
        self._episodes: list[list[Episode]] = [[] for _ in range(self._num_seeds)]


class Recorder:
    """Writes one member's scalars into its run folder.

    Args:
        folder: the run folder.
        config: the resolved config, for the HParams tab and as text.
        name: what the HParams tab calls this run; runs of one name would share a row.
        sizes: `sizes()` at the checkpoint that the run goes on from; what was written later is cut.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], name: str, sizes: Mapping[str, int] | None = None):
        self._folder = folder
        if sizes is not None:
            cut(folder, sizes)
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._evaluations = (folder / "evaluations.jsonl").open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(folder))
        if sizes is None:
            self._write_config(config, name)

    def sizes(self) -> dict[str, int]:
        """What is in every file by now."""
        self._writer.flush()
        return {path.name: path.stat().st_size for path in (*self._folder.glob(EVENTS), *self._folder.glob("*.jsonl"))}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One record: scalars by tag at an environment step."""
        now = time.time()
        _append(self._metrics, {"step": step, "time": now, **values})
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step, now)
        self._writer.flush()

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """One evaluation: its episodes into `evaluations.jsonl`, its scalars as a record."""
        returns, lengths = evaluation.returns, evaluation.lengths
        _append(self._evaluations, {"step": step, "returns": returns, "lengths": lengths})
        values = {
            "eval/return_mean": float(np.mean(returns)),
            "eval/return_std": float(np.std(returns)),
            "eval/episode_length": float(np.mean(lengths)),
        }
        if evaluation.value_bias is not None:
            values["value/bias"] = evaluation.value_bias
        self.scalars(step, values)

    def close(self) -> None:
        """Close every file."""
        self._writer.close()
        self._metrics.close()
        self._evaluations.close()

    def _write_config(self, config: Mapping[str, Any], name: str) -> None:
        # Of the HParams tab's summaries only this run's own: add_hparams would make a sub-run, and the columns of
        # the first run's experiment summary would be those of every run. Without one they are what any run has.
        start = hparams_pb(_flat(config), trial_id=name)
        self._writer._get_file_writer().add_summary(start)  # type: ignore[no-untyped-call]
        text = "".join(f"    {line}\n" for line in json.dumps(config, indent=2).splitlines())
        self._writer.add_text("config", text)
        self._writer.add_custom_scalars(LAYOUT)
        self._writer.flush()


def cut(folder: Path, sizes: Mapping[str, int]) -> None:
    """Bring a run's files back to what they were, so that their curves go on without a seam.

    Where TensorBoard's files are damaged, they are written anew from `metrics.jsonl`.
    """
    for path in (*folder.glob(EVENTS), *folder.glob("*.jsonl")):
        if path.name not in sizes:
            path.unlink()  # of a start after the checkpoint
        elif path.stat().st_size > sizes[path.name]:
            os.truncate(path, sizes[path.name])


def _append(file: Any, record: Mapping[str, Any]) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested keys joined with dots; what the HParams tab cannot hold becomes text."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat
