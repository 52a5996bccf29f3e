"""Rows, comparisons, published numbers and aggregates, computed by hand."""

import math

import numpy as np
import pytest
from made_runs import make_run

from dpg_cli.config.defaults import completed
from dpg_cli.report import scores, tables
from dpg_cli.report.groups import group
from dpg_cli.report.problems import problems
from dpg_cli.report.published import published_for, reference
from dpg_cli.report.runs import find, read


def groups_of(folder):
    return group([read(run, part, completed) for run, part in find([folder])], ())


@pytest.fixture
def two(tmp_path):
    """DDPG with three seeds at 10, 20 and 30; TD3 with five, of which the first three share their seeds."""
    for seed, level in enumerate([10, 20, 30]):
        make_run(tmp_path / f"ddpg_{seed}", [0] + [level] * 12, algo="ddpg", seed=seed)
    for seed, level in enumerate([11, 22, 33, 44, 55]):
        make_run(tmp_path / f"td3_{seed}", [0] + [level] * 11 + [level - 10], algo="td3", seed=seed)
    return groups_of(tmp_path)


def test_a_row(two):
    ddpg, td3 = map(scores.row, two)
    assert (ddpg.env, ddpg.group, ddpg.seeds, ddpg.steps) == ("HalfCheetah-v4", "ddpg", 3, 12_000)
    assert (ddpg.last10_mean, ddpg.iqm, ddpg.max_mean, ddpg.max_mean_step) == (20, 20, 20, 1000)
    assert ddpg.last10_std == ddpg.max_mean_std == pytest.approx(math.sqrt(200 / 3))  # ddof=0
    assert (ddpg.last10_low, ddpg.last10_high) == (10, 30)
    assert ddpg.hours == pytest.approx(1.2)
    assert td3.last10_mean == pytest.approx(33 - 1)  # the last of ten evaluations is 10 lower
    assert td3.max_mean == 33
    assert td3.iqm == pytest.approx(np.mean([21, 32, 43]))


def test_the_row_of_one_seed_has_no_interval(tmp_path):
    make_run(tmp_path / "a", [0, 1])
    (only,) = map(scores.row, groups_of(tmp_path))
    assert math.isnan(only.last10_low)
    assert math.isnan(only.iqm_high)
    assert only.last10_std == 0


def test_training_episodes_count_by_the_last_mean(tmp_path):
    run = make_run(tmp_path / "a", [])
    lines = [f'{{"step": {step}, "train/last_10_returns": {step}.5}}\n' for step in range(1, 30)]
    (run / "metrics.jsonl").write_text("".join(lines))
    (only,) = groups_of(tmp_path)
    assert scores.last10(only).tolist() == [29.5]


def test_shared_seeds_are_compared_in_pairs(two):
    (pair,) = scores.compare(two, 3)
    assert (pair.a, pair.b, pair.steps) == ("td3", "ddpg", 12_000)
    assert pair.difference.paired
    assert pair.difference.seeds == 3
    assert pair.difference.value == pytest.approx(np.mean([0, 1, 2]))  # 10 of 100 lower: 1 each
    assert pair.better.value == pytest.approx(2.5 / 3)  # one tie


def test_groups_are_compared_at_the_step_that_both_have(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"a{seed}", [0, 10, 20, 30], seed=seed, algo__tau=0.1)
        make_run(tmp_path / f"b{seed}", [0, 10], seed=seed, algo__tau=0.2)
    (pair,) = scores.compare(groups_of(tmp_path), 5)
    assert (pair.steps, pair.difference.value) == (1000, 0)


def test_with_many_groups_each_is_compared_with_the_best(tmp_path):
    for number in range(10):
        make_run(tmp_path / str(number), [0, number], algo__tau=number)
    pairs = scores.compare(groups_of(tmp_path), 5)
    assert len(pairs) == 9
    assert {pair.a for pair in pairs} == {"tau=9"}


@pytest.mark.parametrize(("lead", "seeds", "best"), [(100, 5, "tau=0.2"), (100, 4, None), (0.5, 5, None)])
def test_the_best_is_named_only_where_the_intervals_support_it(tmp_path, lead, seeds, best):
    noise = [0, 3, -2, 1, -4]
    for seed in range(seeds):
        make_run(tmp_path / f"a{seed}", [0, *[noise[seed]] * 10], seed=seed, algo__tau=0.1)
        make_run(tmp_path / f"b{seed}", [0, *[lead - noise[seed]] * 10], seed=seed, algo__tau=0.2)
    groups = groups_of(tmp_path)
    assert scores.clearly_best(groups, scores.compare(groups, 5), 5) == best
    assert scores.clearly_best(groups[:1], [], 5) is None


def test_thresholds(two):
    ddpg, td3 = scores.thresholds(two, 22)
    assert ddpg.steps == (None, None, 1000)
    assert ddpg.median() == (math.inf, math.inf)
    assert td3.steps == (None, 1000, 1000, 1000, 1000)
    assert td3.median() == (1000, pytest.approx(0.1))


def test_a_published_number_stands_beside_ours_of_the_same_convention_and_step(tmp_path):
    for seed in (0, 1):
        steps = [0, 50_000, 100_000, 150_000]
        make_run(tmp_path / str(seed), [0, 3000 + seed, 5000 + seed, 6000], steps=steps, seed=seed)
    ours = {
        (beside.published.convention, beside.published.steps, beside.published.algorithm): beside.ours
        for beside in scores.beside_published(groups_of(tmp_path))
    }
    assert ours == {
        ("at_step", 50_000, "TD3"): {"td3": (3000.5, 0.5)},
        ("at_step", 100_000, "TD3"): {"td3": (5000.5, 0.5)},
    }


@pytest.mark.parametrize("settings", [{"env__kwargs": {"frame_skip": 2}}, {"env__max_episode_steps": 100}])
def test_a_changed_environment_stands_beside_nothing(tmp_path, settings):
    make_run(tmp_path / "a", [0, 3000], steps=[0, 50_000], **settings)
    groups = groups_of(tmp_path)
    assert scores.beside_published(groups) == []
    assert scores.aggregates(groups) == {}


def test_ours_at_a_million_steps_by_both_conventions(tmp_path):
    steps = list(range(0, 1_000_001, 10_000))
    for seed in (0, 1):
        returns = [100.0 * number + seed for number in range(len(steps))]
        returns[95] = 50_000 + 10 * seed
        make_run(tmp_path / str(seed), returns, steps=steps, seed=seed)
    ours = {
        beside.published.convention: beside.ours["td3"]
        for beside in scores.beside_published(groups_of(tmp_path))
        if beside.published.env_version == "v1"
    }
    assert ours["max_mean"] == (50_005, 5)
    last = [*range(9100, 9500, 100), 50_000, *range(9600, 10_001, 100)]
    assert ours["last10"][0] == pytest.approx(np.mean(last) + np.mean([0, (9 + 10) / 10]))


def test_the_aggregate_normalises_each_environment(tmp_path):
    envs = ("HalfCheetah-v4", "Hopper-v4")
    for env in envs:
        random, published, _ = reference(env)
        for algo, share in (("td3", 1.0), ("ddpg", 0.25)):
            for seed in range(2):
                value = random + share * (published - random)
                returns = [value] * 12
                make_run(tmp_path / env / f"{algo}{seed}", returns, steps=range(1, 13), seed=seed, env=env, algo=algo)
    make_run(tmp_path / "third", [0, 1], env="Pendulum-v1", algo="ddpg")
    make_run(tmp_path / "alone", [0, 1], env="Hopper-v4", algo="other")
    found = scores.aggregates(groups_of(tmp_path))[""]
    assert list(found.steps) == list(envs)
    assert found.missing == ("other",)
    assert {name: pytest.approx(value) for name, (value, *_) in found.iqm.items()} == {"td3": 1, "ddpg": 0.25}
    assert list(found.improvements) == [("td3", "ddpg")]
    assert found.improvements["td3", "ddpg"].value == 1
    profile, low, high = found.profiles["ddpg"]
    assert profile[scores.TAUS < 0.24].tolist() == [1] * int((scores.TAUS < 0.24).sum())
    assert profile[scores.TAUS > 0.26].sum() == 0
    assert (low <= profile).all()
    assert (profile <= high).all()


def test_one_environment_has_no_aggregate(two):
    assert scores.aggregates(two) == {}


def test_what_is_published():
    found = {
        (own.algorithm, own.convention, own.steps, own.env_version): own for own in published_for("HalfCheetah-v4")
    }
    table = found["TD3", "max_mean", 1_000_000, "v1"]
    assert (table.mean, table.std, table.seeds) == (9636.95, 859.065, 10)
    assert found["TD3", "at_step", 300_000, "v1"].mean == 7697
    assert published_for("Nothing-v0") == []


def test_evaluations_that_are_far_apart_are_not_set_beside_published_last10(tmp_path):
    make_run(tmp_path / "a", range(11), steps=range(0, 1_000_001, 100_000))
    conventions = {beside.published.convention for beside in scores.beside_published(groups_of(tmp_path))}
    assert conventions == {"max_mean", "at_step"}


def test_few_shared_seeds_are_not_compared_alone(tmp_path):
    for seed in range(6):
        make_run(tmp_path / f"a{seed}", [0, 100 - 50 * (seed in (4, 5))], seed=seed, algo__tau=0.1)
        make_run(tmp_path / f"b{seed}", [0, 60], seed=seed + 4, algo__tau=0.2)
    (pair,) = scores.compare(groups_of(tmp_path), 5)
    assert not pair.difference.paired
    assert pair.difference.value > 0


def test_groups_are_compared_by_the_evaluations_that_both_have(tmp_path):
    make_run(tmp_path / "a", [0, 1, 2, 3, 4], algo__tau=0.1)
    make_run(tmp_path / "b", [0, 2, 4], steps=[0, 2000, 4000], algo__tau=0.2)
    (pair,) = scores.compare(groups_of(tmp_path), 5)
    assert pair.difference.value == 0


def test_versions_of_an_environment_are_aggregated_apart(tmp_path):
    for version in ("v4", "v5"):
        for env in ("HalfCheetah", "Hopper"):
            make_run(tmp_path / version / env, [0, 100], env=f"{env}-{version}")
    make_run(tmp_path / "third", [0, 100], env="Pendulum-v1")
    found = scores.aggregates(groups_of(tmp_path))
    assert {version: list(own.steps) for version, own in found.items()} == {
        "v4": ["HalfCheetah-v4", "Hopper-v4"],
        "v5": ["HalfCheetah-v5", "Hopper-v5"],
    }
    assert found["v4"].without == ("Pendulum-v1",)
    assert found["v4"].seeds == {"td3": 1}


def test_groups_without_a_common_evaluation_after_step_0_are_not_compared(tmp_path):
    make_run(tmp_path / "a", [0, 1, 2], algo__tau=0.1)
    make_run(tmp_path / "b", [0, 5], steps=[0, 1500], algo__tau=0.2)
    make_run(tmp_path / "c", [5, 6], steps=[50_000, 60_000], algo__tau=0.3)
    groups = groups_of(tmp_path)
    assert scores.compare(groups, 5) == []
    assert scores.clearly_best(groups, [], 5) is None
    assert problems(groups, {}, 1, "steps")[-1] == (
        "HalfCheetah-v4: not compared, without a common evaluation after step 0: tau=0.1 and tau=0.2 and 2 more pairs"
    )


def test_training_episodes_are_not_compared_with_evaluations(tmp_path):
    make_run(tmp_path / "a", [0, 1, 2])
    silent = make_run(tmp_path / "b", [])
    (silent / "metrics.jsonl").write_text('{"step": 1000, "train/last_10_returns": 3.0}\n')
    assert scores.compare(groups_of(tmp_path), 5) == []


def test_updates_are_not_compared_with_environment_steps(tmp_path):
    curve = [100.0 * number for number in range(21)]
    for env in ("HalfCheetah-v4", "Hopper-v4"):
        for algo in ("ddpg", "td3"):
            make_run(tmp_path / f"{env}_{algo}", curve, env=env, algo=algo)
            make_run(tmp_path / f"{env}_{algo}_offline", curve, env=env, algo=algo, dataset="/data")
    groups = groups_of(tmp_path)
    pairs = scores.compare([own for own in groups if own.env_id == "Hopper-v4"], 5)
    assert [(pair.a, pair.b) for pair in pairs] == [("ddpg", "td3"), ("ddpg (offline)", "td3 (offline)")]
    (aggregate,) = scores.aggregates(groups).values()
    assert sorted(aggregate.iqm) == ["ddpg", "td3"]
    alone = scores.aggregates([own for own in groups if own.offline])
    assert sorted(alone[""].iqm) == ["ddpg (offline)", "td3 (offline)"]
    row = scores.row(next(own for own in groups if own.offline))
    assert tables.cells_of(row, 5)["steps"] == "20,000 updates"
    header, line = tables.summary_csv([row]).splitlines()
    assert header.endswith(",hours")
    assert len(line.split(",")) == len(header.split(","))
    (note,) = [line for line in problems(groups, {}, 1, "steps") if "updates" in line and "Hopper" in line]
    assert note == "Hopper-v4: offline groups count updates, the others environment steps; they are not compared"


def test_aggregates_use_common_evaluations(tmp_path):
    curve = [100.0 * number for number in range(21)]
    for env in ("HalfCheetah-v4", "Hopper-v4"):
        make_run(tmp_path / env / "often", curve, env=env, algo__tau=0.1)
        make_run(tmp_path / env / "seldom", curve[::4], steps=range(0, 21_000, 4000), env=env, algo__tau=0.2)
    often, seldom = scores.aggregates(groups_of(tmp_path))[""].iqm.values()
    assert often[0] == seldom[0]


def test_of_equally_long_runs_the_one_with_more_evaluations_counts(tmp_path):
    make_run(tmp_path / "a", [0, 9], steps=[0, 4000])
    make_run(tmp_path / "b", [0, 1, 2, 3, 9])
    (only,) = groups_of(tmp_path)
    assert only.steps.tolist() == [0, 1000, 2000, 3000, 4000]
