"""Which runs make a group, and what it is called."""

import pytest
from made_runs import make_run

from dpg_cli.config.defaults import completed
from dpg_cli.errors import UserError
from dpg_cli.report.groups import group, text
from dpg_cli.report.runs import find, read


def groups_of(folder, *by):
    return group([read(run, part, completed) for run, part in find([folder])], by)


def names_of(folder, *by):
    return [(own.env_id, own.name) for own in groups_of(folder, *by)]


def test_runs_that_differ_in_the_seed_or_in_what_changes_no_digit_or_in_the_length_are_one_group(tmp_path):
    make_run(tmp_path / "a", [0, 1, 2], seed=0)
    make_run(tmp_path / "b", [0, 1, 2], seed=1, threads=4, device="cuda", log={"every": 7}, compile=True)
    make_run(tmp_path / "c", [0, 1, 2, 3], seed=2, total_steps=9, checkpoint={"every": 3}, env__total_steps=3)
    (only,) = groups_of(tmp_path)
    assert (only.name, only.seeds) == ("td3", (0, 1, 2))
    assert only.steps.tolist() == [0, 1000, 2000]
    assert only.returns.tolist() == [[-2.5, 1, 2]] * 3


def test_environments_and_their_versions_are_never_mixed(tmp_path):
    make_run(tmp_path / "a", [0, 1], env="Hopper-v4")
    make_run(tmp_path / "b", [0, 1], env="Hopper-v5", seed=1)
    assert names_of(tmp_path) == [("Hopper-v4", "td3"), ("Hopper-v5", "td3")]


def test_the_longest_of_several_runs_of_a_seed_counts(tmp_path):
    make_run(tmp_path / "short", [0, 1], seed=0)
    make_run(tmp_path / "long", [0, 2, 3], seed=0, threads=3)
    make_run(tmp_path / "other", [0, 4, 5], seed=1)
    (only,) = groups_of(tmp_path)
    assert only.seeds == (0, 1)
    assert only.returns[:, -1].tolist() == [3, 5]
    ((left),) = only.left_out
    assert left.run.folder == tmp_path / "short"
    assert "same training and seed" in left.reason


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ([{"algo": "td3"}, {"algo": "ddpg"}], ["ddpg", "td3"]),
        ([{"algo__actor_lr": 1e-2}, {"algo__actor_lr": 1e-4}], ["actor_lr=0.0001", "actor_lr=0.01"]),
        ([{"noise__name": "ou"}, {"noise__name": "none"}], ["noise=none", "noise=ou"]),
        ([{"algo__hidden_sizes": [64, 64]}, {"algo__hidden_sizes": [8]}], ["hidden_sizes=8", "hidden_sizes=64-64"]),
        # Two keys differ; the shorter is enough.
        (
            [{"algo__tau": 0.1, "algo__batch_size": 10}, {"algo__tau": 0.2, "algo__batch_size": 20}],
            ["tau=0.1", "tau=0.2"],
        ),
        # Choices are all named: these runs differ in more than one.
        (
            [{"replay__name": "uniform"}, {"replay__name": "lap", "noise__name": "pink", "algo__tau": 0.1}],
            ["noise=gaussian, replay=uniform", "noise=pink, replay=lap"],
        ),
        # What tells two runs of td3 apart is no matter to ddpg.
        (
            [{"algo": "ddpg"}, {"algo__tau": 0.1}, {"algo__tau": 0.2}],
            ["ddpg", "td3, tau=0.1", "td3, tau=0.2"],
        ),
    ],
)
def test_groups_are_named_by_what_differs(tmp_path, settings, names):
    for number, own in enumerate(settings):
        make_run(tmp_path / str(number), [0, 1], **own)
    assert sorted(name for _, name in names_of(tmp_path)) == sorted(names)


def test_two_keys_are_named_where_one_is_not_enough(tmp_path):
    for number, (tau, size) in enumerate([(0.1, 10), (0.1, 20), (0.2, 10), (0.2, 20)]):
        make_run(tmp_path / str(number), [0, 1], algo__tau=tau, algo__batch_size=size)
    names = {name for _, name in names_of(tmp_path)}
    assert names == {f"tau={tau}, batch_size={size}" for tau in (0.1, 0.2) for size in (10, 20)} or names == {
        f"batch_size={size}, tau={tau}" for tau in (0.1, 0.2) for size in (10, 20)
    }


def test_the_networks_that_a_run_starts_from_are_always_named(tmp_path):
    make_run(tmp_path / "a", [0, 1], init=None)
    make_run(tmp_path / "b", [0, 1], init="bc", algo__normalize_obs=True)
    assert [name for _, name in names_of(tmp_path)] == ["init=bc", "init=null"]


def test_a_name_is_for_its_environment_and_a_label_for_all(tmp_path):
    make_run(tmp_path / "a", [0, 1], env="A-v0", algo__tau=0.1)
    make_run(tmp_path / "b", [0, 1], env="A-v0", algo__tau=0.2)
    make_run(tmp_path / "c", [0, 1], env="B-v0", algo__tau=0.2)
    assert [(own.name, own.label) for own in groups_of(tmp_path)] == [
        ("tau=0.1", "tau=0.1"),
        ("tau=0.2", "tau=0.2"),
        ("td3", "tau=0.2"),
    ]


def test_by_names_the_keys_and_a_seed_still_counts_once(tmp_path):
    make_run(tmp_path / "a", [0, 10], seed=0, algo__tau=0.1)
    make_run(tmp_path / "b", [0, 20], seed=0, algo__tau=0.2)
    make_run(tmp_path / "c", [0, 40], seed=1, algo__tau=0.1)
    (only,) = groups_of(tmp_path, "algo.name", "noise.name")
    assert (only.name, only.seeds, only.mixed) == ("td3, noise=gaussian", (0, 1), ("algo.tau",))
    assert only.returns[:, -1].tolist() == [15, 40]
    assert names_of(tmp_path, "algo") == names_of(tmp_path, "algo.name")
    with pytest.raises(UserError, match=r"by=algo.nam: no run has this setting; did you mean algo.name\?"):
        groups_of(tmp_path, "algo.nam")


def test_a_run_that_stopped_early_does_not_cut_the_finished_ones(tmp_path):
    make_run(tmp_path / "a", [0, 1, 2], seed=0)
    make_run(tmp_path / "b", [0, 1], seed=1, status="failed", error="diverged")
    make_run(tmp_path / "c", [0, 1, 2, 3], seed=2, status="running")
    (only,) = groups_of(tmp_path)
    assert only.seeds == (0, 2)
    assert only.steps[-1] == 2000
    assert [left.run.seed for left in only.left_out] == [1]
    record = (tmp_path / "a" / "run.json").read_text()
    (tmp_path / "a" / "run.json").write_text(record.replace("done", "interrupted"))  # now none is finished
    (only,) = groups_of(tmp_path)
    assert (only.seeds, only.steps[-1]) == ((0, 1, 2), 1000)


def test_runs_without_a_common_evaluation_are_not_averaged(tmp_path):
    make_run(tmp_path / "a", [0, 1, 2], seed=0)
    make_run(tmp_path / "b", [0, 1], seed=1, steps=[0, 700])
    (only,) = groups_of(tmp_path)
    assert only.seeds == (0,)
    assert "no evaluation at a step of" in only.left_out[0].reason


def test_trials_and_validation_are_apart(tmp_path):
    (tmp_path / "study.yaml").write_text("{}")
    make_run(tmp_path / "trial_0000", [0, 1], seed=0)
    make_run(tmp_path / "validation" / "0", [0, 1], seed=1)
    assert [name for _, name in names_of(tmp_path)] == ["td3 (trial)", "td3 (validation)"]


def test_training_episodes_are_apart_from_evaluations(tmp_path):
    make_run(tmp_path / "a", [0, 1], seed=0)
    silent = make_run(tmp_path / "b", [], seed=1)
    (silent / "metrics.jsonl").write_text('{"step": 9, "train/last_10_returns": 3.0}\n')
    assert [name for _, name in names_of(tmp_path)] == ["td3", "td3 (training episodes)"]


def test_values_as_text():
    assert [text(value) for value in (True, None, 1e-3, 3e-4, 256, (256, 256), "a\nb", "x" * 60)] == [
        *("true", "null", "0.001", "0.0003", "256", "256-256", "a b", "x" * 39 + "…"),
    ]


def test_many_groups_are_named_quickly(tmp_path):
    for number in range(60):
        settings = {"algo__tau": number % 5, "algo__batch_size": number // 5 % 4, "algo__actor_lr": number // 20}
        make_run(tmp_path / str(number), [0, 1], **settings, algo__discount=number % 2, precision=number % 3)
    found = names_of(tmp_path)
    assert len(set(found)) == 60


def test_the_evaluations_make_no_groups(tmp_path):
    make_run(tmp_path / "a", range(7), eval={"every": 1000, "episodes": 10})
    make_run(tmp_path / "b", range(4), steps=[0, 2000, 4000, 6000], eval={"every": 2000, "episodes": 3}, seed=1)
    (only,) = groups_of(tmp_path)
    assert only.steps.tolist() == [0, 2000, 4000, 6000]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ((0.9999999, 0.99999999), ["discount=0.9999999", "discount=0.99999999"]),
        (("x" * 39 + "abc", "x" * 39 + "abd"), [f"discount={'x' * 39}abc", f"discount={'x' * 39}abd"]),
    ],
)
def test_different_groups_have_different_names(tmp_path, values, names):
    for number, value in enumerate(values):
        make_run(tmp_path / str(number), [0, 1], algo__discount=value)
    assert sorted(name for _, name in names_of(tmp_path)) == names


def test_a_default_that_depends_on_the_environment_is_the_same_setting(tmp_path):
    for env, steps in (("A-v0", 1000), ("B-v0", 25_000)):
        own = {"env": env, "env__random_steps": steps}
        make_run(tmp_path / env, [0, 1], random_steps=steps, learning_starts=steps, **own)
        make_run(tmp_path / f"{env}0", [0, 1], random_steps=0, learning_starts=0, **own)
    assert {own.label for own in groups_of(tmp_path)} == {"random_steps=env.random_steps", "random_steps=0"}


def test_one_short_run_does_not_cut_the_others(tmp_path):
    for seed in range(4):
        make_run(tmp_path / str(seed), range(20), seed=seed)
    make_run(tmp_path / "short", range(5), seed=9)
    (only,) = groups_of(tmp_path)
    assert (only.seeds, only.steps[-1]) == ((0, 1, 2, 3), 19_000)
    assert "less than half as long" in only.left_out[0].reason


def test_many_keys_are_named_quickly(tmp_path):
    for number in range(6):
        make_run(tmp_path / str(number), [0, 1], more={f"key{key}": (number * key) % 7 for key in range(1500)})
    assert len(set(names_of(tmp_path))) == 6


def test_offline_runs_are_a_group_of_their_own_and_count_updates(tmp_path):
    make_run(tmp_path / "online", [0, 1, 2], seed=0)
    make_run(tmp_path / "offline", [0, 3, 4], seed=0, dataset="/data")
    for by in ([], ["algo.name"]):
        online, offline = sorted(groups_of(tmp_path, *by), key=lambda own: own.offline)
        assert (online.name, online.counted) == ("td3", "steps")
        assert (offline.name, offline.counted) == ("td3 (offline)", "updates")
