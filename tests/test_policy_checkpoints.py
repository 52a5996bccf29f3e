"""TD7 with policy checkpoints in whole trainings: it learns when episodes end, each seed at its own time."""

import numpy as np
import pytest
import torch
from test_combinations import networks, states
from test_learner import ALIKE, ChoosingAsOnADevice, evaluations
from test_trainer import Run, records

from dpg_cli.captured_learner import CapturedLearner
from dpg_cli.cli import build, learners
from dpg_cli.cli.learners import new_algorithm
from dpg_cli.separate_learner import SeparateLearner

TD7 = ["algo=td7", "algo.encoder_sizes=[8]", "algo.embedding_size=4", "algo.target_copy_every=10"]
KEYS = ["precision=float64", "algo.normalize_obs=true", "algo.n_steps=2"]


def changes(run, member=0):
    """The steps at whose records a seed had learned since the one before."""
    return [record["step"] for record in records(run, member) if "loss/critic" in record]


def test_updates_follow_the_end_of_an_episode(tmp_path):
    run = Run(tmp_path, *TD7, "log.every=1", "total_steps=60")
    ends = [record["step"] for record in records(run) if "train/episode_length" in record and record["step"] > 10]
    assert changes(run) == ends[: len(changes(run))] != []
    assert run.updates == ends[-1] - 10
    rates = {line["step"]: rate for line in run.lines("metrics.jsonl") if (rate := line.get("perf/updates_per_second"))}
    assert [*rates] == changes(run)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_seed_is_the_same_run_alone_and_beside_others(tmp_path, num_envs):
    given = [*TD7, *KEYS, f"num_envs={num_envs}"]
    together = Run(tmp_path / "together", *given, "num_seeds=2", "seed=4")
    assert isinstance(together.training.learner, SeparateLearner)
    for member, seed in enumerate((4, 5)):
        alone = Run(tmp_path / f"{seed}", *given, f"seed={seed}")
        assert together.lines("evaluations.jsonl", member) == alone.lines("evaluations.jsonl")
        assert records(together, member) == records(alone)
        assert all(torch.equal(*both) for both in zip(networks(together, member), networks(alone), strict=True))


@pytest.mark.parametrize("num_seeds", [1, 2])
@pytest.mark.parametrize("stop_at", [17, 40])
def test_a_stopped_run_resumes_exactly(tmp_path, num_seeds, stop_at):
    given = [*TD7, *KEYS, f"num_seeds={num_seeds}", "algo.checkpoint_start=5", "algo.checkpoint_episodes=2"]
    whole = Run(tmp_path / "whole", *given)
    first = Run(tmp_path / "parts", *given, stop_at=stop_at)
    assert first.training.algorithm.state(0)["member_state"]["due"].item() > 0
    resumed = Run(tmp_path / "parts", *given, start=stop_at)
    for member in range(num_seeds):
        assert resumed.lines("evaluations.jsonl", member) == whole.lines("evaluations.jsonl", member)
        assert records(resumed, member) == records(whole, member)
    assert states(resumed) == states(whole)


@pytest.mark.parametrize(
    ("keys", "updates"),
    [
        ([], [11, 12]),  # twice in the same burst
        (["num_seeds=2"], [11]),
        (["log.every=1", "eval.every=1"], [3]),  # a record and an evaluation are due after the burst
        (["total_steps=40"], [29]),  # in the burst after the last step
    ],
)
def test_a_run_stopped_between_updates_resumes_exactly(tmp_path, keys, updates):
    given = [*TD7, *KEYS, *keys]
    whole, step = Run(tmp_path / "whole", *given), None
    for number in updates:
        stopped = Run(tmp_path / "parts", *given, stop=lambda run, number=number: run.updates >= number, start=step)
        assert stopped.outcome.interrupted
        assert stopped.updates >= number
        assert stopped.training.learner.unfinished
        step = stopped.outcome.step
    resumed = Run(tmp_path / "parts", *given, start=step)
    for member in range(len(whole.folders)):
        assert resumed.lines("evaluations.jsonl", member) == whole.lines("evaluations.jsonl", member)
        assert records(resumed, member) == records(whole, member)
    assert states(resumed) == states(whole)


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_captured_learning_is_the_ordinary_loop(tmp_path, monkeypatch, num_seeds):
    given = [*ALIKE, *TD7, f"num_seeds={num_seeds}", "total_steps=40", "checkpoint.every=40"]
    with monkeypatch.context() as patch:
        patch.setattr(learners, "Replay", ChoosingAsOnADevice)
        expected = Run(tmp_path / "ordinary", *given)
    new = build.new_learner
    monkeypatch.setattr(build, "new_learner", lambda *args, captured: new(*args, captured=True))
    run = Run(tmp_path / "captured", *given)
    learner = run.training.learner
    assert isinstance(learner._learners[0] if num_seeds == 2 else learner, CapturedLearner)
    for member in range(num_seeds):
        assert [evaluations(run), records(run, member)] == [evaluations(expected), records(expected, member)]
        assert all(torch.equal(*both) for both in zip(networks(run, member), networks(expected, member), strict=True))


def test_the_evaluated_policy_is_the_checkpoint(tmp_path):
    run = Run(tmp_path, *TD7, "algo.checkpoint_start=1", "algo.checkpoint_episodes=1000")
    algorithm = run.training.algorithm
    obs = np.linspace(-1, 1, 8).reshape(1, 4, 2).astype(np.float32)
    assert not np.array_equal(algorithm.act(obs), algorithm.act_to_evaluate(obs))
    evaluated = new_algorithm(run.config, 2, 1, torch.device("cpu"))
    evaluated.load_policy(algorithm.policy_state(0))
    np.testing.assert_array_equal(evaluated.act_to_evaluate(obs), algorithm.act_to_evaluate(obs))
