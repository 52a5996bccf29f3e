"""Captured learning, by a CPU's stand-in for graphs: the same numbers as the ordinary loop, and nothing waits."""

import json

import numpy as np
import pytest
import torch
from test_trainer import Run, composed

from dpg_cli.capture import CaptureError, capture
from dpg_cli.cli import build, learners
from dpg_cli.learner import AHEAD, CapturedLearner, Learner
from dpg_cli.replay import DeviceReplay, Replay

# A batch of 16 and one action: a CPU draws such noise in one block as it does one by one.
ALIKE = ["algo.batch_size=16", "precision=float64", "learning_starts=0", "total_steps=120", "checkpoint.every=45"]


class ChoosingAsOnADevice(Replay):
    """The ordinary replay, but for how the numbers of its generators choose a batch."""

    def sample(self, batch_size):
        numbers = [
            torch.empty(batch_size, dtype=torch.int64).random_(0, DeviceReplay.NUMBERS, generator=g) % self.size
            for g in self.generators
        ]
        parts = self._gather(self._members, torch.stack(numbers))
        return build_batch(*parts)


def build_batch(obs, action, reward, next_obs, terminated):
    from dpg_cli.algorithms import Batch

    return Batch(obs, action, reward.squeeze(-1), next_obs, terminated.squeeze(-1))


CASES = [
    ["algo=td3"],
    ["algo=td3", "num_seeds=2", "num_envs=3", "algo.normalize_obs=true"],
    ["algo=td3", "algo.policy_delay=3", "updates_per_step=2", "buffer_size=50"],
    ["algo=ddpg", "num_seeds=2", "noise=ou", "updates_per_step=0.5"],
    ["algo=td3", "algo.policy_delay=1", "algo.policy_noise=0", "random_steps=70"],
]


def evaluations(run):
    return [run.lines("evaluations.jsonl", member) for member in range(len(run.folders))]


def metrics(run):
    timeless = [{k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")} for line in run.lines("metrics.jsonl")]
    return timeless


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_it_learns_what_the_ordinary_loop_learns(tmp_path, monkeypatch, overrides):
    with monkeypatch.context() as patch:
        patch.setattr(learners, "Replay", ChoosingAsOnADevice)
        expected = Run(tmp_path / "ordinary", *ALIKE, *overrides)
    assert type(expected.training.learner) is Learner
    new = build.new_learner
    monkeypatch.setattr(build, "new_learner", lambda *args, captured: new(*args, captured=True))
    run = Run(tmp_path / "captured", *ALIKE, *overrides)
    assert type(run.training.learner) is CapturedLearner
    assert evaluations(run) == evaluations(expected)
    assert metrics(run) == metrics(expected)
    for own, other in zip(run.training.algorithm.static_tensors(), expected.training.algorithm.static_tensors(), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
