"""The data that a report ships: published numbers, scores of a random policy, and the reference of both."""

import json

import gymnasium as gym
import numpy as np
import pytest
import random_scores

from dpg_cli.report.published import DATA, published, published_for, reference

RANDOM = json.loads((DATA / "random.json").read_text(encoding="utf-8"))


def test_every_published_number_says_where_it_is_from():
    numbers = published()
    assert len(numbers) == len(set(numbers)) == 114
    for number in numbers:
        assert number.source
        assert number.url.startswith("https://")
        assert number.convention in ("max_mean", "last10", "at_step", "train_final", "final_evaluation")
        assert f"{number.env}-v5" in gym.registry
        assert number.steps is not None


def test_the_numbers_of_an_environment_are_found_whatever_its_version():
    found = published_for("HalfCheetah-v4")
    assert found == published_for("HalfCheetah-v5")
    assert {number.env for number in found} == {"HalfCheetah"}
    first = found[0]
    assert (first.algorithm, first.mean, first.std, first.seeds) == ("TD3", 9636.95, 859.065, 10)
    assert (first.env_version, first.convention, first.steps) == ("v1", "max_mean", 1_000_000)
    last = found[-1]
    assert (last.algorithm, last.mean, last.steps, last.seeds) == ("TD7", 17434, 1_000_000, None)
    assert published_for("Pendulum-v1") == published_for("other:HalfCheetah-v4") == []


@pytest.mark.parametrize(
    ("env_id", "td3", "source"),
    [
        ("Ant-v4", 4372.44, "Table 1"),
        ("Reacher-v5", -3.6, "Table 1"),
        ("Humanoid-v5", 5035.36, "CleanRL"),
        ("Swimmer-v4", 104.2, "Tianshou"),
    ],
)
def test_the_reference_is_a_random_policy_and_published_td3(env_id, td3, source):
    found = reference(env_id)
    assert found[:2] == (RANDOM["scores"][env_id]["mean"], td3)
    assert found[2].algorithm == "TD3"
    assert source in found[2].source


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "HumanoidStandup-v4", "HalfCheetah-v3", "Pusher-v4", "x:Ant-v4"])
def test_no_reference_where_either_is_missing(env_id):
    assert reference(env_id) is None


def test_every_mujoco_id_has_the_score_of_a_random_policy():
    mujoco = {
        env_id
        for env_id, spec in gym.registry.items()
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco") and env_id.endswith(("-v4", "-v5"))
    }
    assert set(RANDOM["scores"]) == set(random_scores.IDS) == mujoco - {"Pusher-v4"} | {"Pendulum-v1"}
    for score in RANDOM["scores"].values():
        assert score["episodes"] == random_scores.EPISODES
        assert np.isfinite([score["mean"], score["std"]]).all()


def test_the_scores_of_pendulum_are_recomputed():
    returns = random_scores.random_returns("Pendulum-v1", random_scores.EPISODES)
    stored = RANDOM["scores"]["Pendulum-v1"]
    assert returns.mean() == pytest.approx(stored["mean"], rel=1e-6)
    assert returns.std() == pytest.approx(stored["std"], rel=1e-6)
    assert random_scores.random_returns("Pendulum-v1", 2).tolist() == returns[:2].tolist()
