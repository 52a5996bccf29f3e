"""Finding run folders and reading them."""

import json

import numpy as np
import pytest
from made_runs import START, make_run, write_lines

from dpg_cli import config
from dpg_cli.config.defaults import completed
from dpg_cli.errors import UserError
from dpg_cli.report.runs import find, flat, read


def reading(folder):
    return read(folder, "", completed)


def test_it_finds_single_runs_seeds_and_jobs_but_neither_parents_nor_links(tmp_path):
    single = make_run(tmp_path / "HalfCheetah-v4" / "td3" / "today", [0, 1])
    job = make_run(tmp_path / "sweeps" / "s" / "10", [0, 1])
    earlier = make_run(tmp_path / "sweeps" / "s" / "2", [0, 1])
    (tmp_path / "sweeps" / "s" / "sweep.json").write_text("{}")
    make_run(tmp_path / "sweeps" / "s" / "tensorboard" / "a copy", [0, 1])
    (tmp_path / "linked").symlink_to(single)
    make_run(tmp_path / ".hidden", [0, 1])
    parent = make_run(tmp_path / "several", [0, 1])
    seeds = [make_run(parent / f"seed_{seed}", [0, 1], seed=seed) for seed in (0, 1)]
    found = [folder for folder, part in find([tmp_path, single])]
    assert found == [single, *seeds, earlier, job]


def test_runs_of_a_study_are_trials_or_validation(tmp_path):
    study = tmp_path / "studies" / "pendulum"
    study.mkdir(parents=True)
    (study / "study.yaml").write_text("{}")
    trial = make_run(study / "trial_0003", [0, 1])
    again = make_run(study / "validation" / "0", [0, 1])
    assert list(find([tmp_path])) == [(trial, "trial"), (again, "validation")]
    assert list(find([trial])) == [(trial, "trial")]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        list(find([tmp_path / ("x" * 300)]))


def test_what_a_run_recorded(tmp_path):
    run = reading(make_run(tmp_path / "run", [0, 10, 20], seed=4, saturation=0.5, algo__actor_lr=0.001))
    assert (run.env_id, run.algo, run.seed, run.status) == ("HalfCheetah-v4", "td3", 4, "done")
    assert run.steps.tolist() == [0, 1000, 2000]
    assert run.returns.tolist() == [-2.5, 10, 20]
    assert run.untrained.tolist() == [-3, -2]
    assert run.hours == pytest.approx([0, 0.1, 0.2])
    assert run.saturation == 0.5
    assert run.settings["algo.actor_lr"] == 0.001


def test_hours_leave_out_the_time_between_an_interruption_and_the_resumption(tmp_path):
    run = make_run(tmp_path / "run", [0, 10, 20])
    record = json.loads((run / "run.json").read_text())
    began = START.timestamp()
    times = [(0, began + 360), (1000, began + 720), (2000, began + 36_000 + 360)]
    write_lines(run / "metrics.jsonl", [{"step": step, "time": time} for step, time in times])
    resumed = START.replace(hour=START.hour + 10).isoformat()
    (run / "run.json").write_text(json.dumps(record | {"resumed": [{"step": 1000, "time": resumed}]}))
    assert reading(run).hours == pytest.approx([0.1, 0.2, 0.3])
    (run / "run.json").unlink()
    assert np.isnan(reading(run).hours).all()
    assert reading(run).status == "unknown"


def test_a_run_without_evaluations_counts_by_its_training_episodes(tmp_path):
    run = make_run(tmp_path / "run", [])
    write_lines(
        run / "metrics.jsonl", [{"step": 10, "train/last_10_returns": 5.0}, {"step": 20, "train/last_10_returns": 6.0}]
    )
    found = reading(run)
    assert not found.evaluated
    assert (found.steps.tolist(), found.returns.tolist()) == ([10, 20], [5, 6])


def test_the_curve_ends_before_a_return_that_is_not_finite(tmp_path):
    run = make_run(tmp_path / "run", [0, 1, [float("nan")], 3])
    assert reading(run).returns.tolist() == [-2.5, 1]


def test_only_environment_algorithm_seed_and_evaluations_are_required(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{seed: 3, env: {id: Foreign-v0}, algo: {name: theirs}}")
    write_lines(run / "evaluations.jsonl", [{"step": 5, "returns": [1, 2]}])
    found = reading(run)
    assert (found.env_id, found.algo, found.seed, found.status) == ("Foreign-v0", "theirs", 3, "unknown")
    assert found.settings == {"seed": 3, "env.id": "Foreign-v0", "algo.name": "theirs"}


def test_an_older_config_of_ours_has_todays_defaults_where_it_lacks_a_key():
    today = config.validate(config.compose(["env=Pendulum-v1"])).model_dump()
    older = {key: value for key, value in flat(today).items() if key not in ("algo.policy_delay", "compile")}
    found = completed(older | {"algo.tau": 0.01})
    assert (found["algo.tau"], found["algo.policy_delay"], found["compile"]) == (0.01, 2, False)
    assert found["algo.actor_lr"] == 3e-4
    assert completed({}) == {}
    foreign = {"algo.name": "td3", "seed": 1}
    assert completed(foreign) == foreign


def test_defaults_are_numbers():
    """YAML 1.1 takes `3e-4` for a string."""
    whole = flat(config.validate(config.compose([])).model_dump())
    del whole["algo.actor_lr"]
    assert completed(whole)["algo.actor_lr"] == 3e-4


def test_times_that_go_back_and_forth_end_the_known_hours(tmp_path):
    run = make_run(tmp_path / "run", [0, 10, 20])
    record = json.loads((run / "run.json").read_text())
    resumed = START.replace(hour=START.hour + 1).isoformat()
    (run / "run.json").write_text(json.dumps(record | {"resumed": [{"step": 0, "time": resumed}]}))
    began = START.timestamp()
    times = [(0, began + 360), (1000, began + 4000), (2000, began + 720)]
    write_lines(run / "metrics.jsonl", [{"step": step, "time": time} for step, time in times])
    hours = reading(run).hours
    assert hours[:2] == pytest.approx([0.1, 0.1 + 400 / 3600])
    assert np.isnan(hours[2])


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lambda run: (run / "config.yaml").write_text("{env: {id: A}, algo: {name: td3}}"), "no valid seed"),
        (lambda run: (run / "config.yaml").write_text("{seed: 1, env: {id: 5}, algo: {name: td3}}"), "no valid env.id"),
        (lambda run: (run / "config.yaml").write_text("a: &a [1]\nb: *a"), "aliases are not allowed"),
        (lambda run: write_lines(run / "evaluations.jsonl", [{"step": 5, "returns": [1]}] * 2), "out of order"),
        (lambda run: write_lines(run / "evaluations.jsonl", [{"step": -1, "returns": [1]}]), "out of order"),
        (lambda run: write_lines(run / "metrics.jsonl", [{"step": 10**400}]), "out of order"),
        (lambda run: (run / "evaluations.jsonl").write_text(""), "has no evaluations"),
        (lambda run: (run / "evaluations.jsonl").unlink(), "has no evaluations"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, break_it, complaint):
    run = make_run(tmp_path / "run", [0, 1])
    break_it(run)
    with pytest.raises(UserError, match=complaint):
        reading(run)


def test_why_there_are_no_evaluations(tmp_path):
    with pytest.raises(UserError, match=r"has no evaluations \(the disk is full\)"):
        reading(make_run(tmp_path / "run", [], status="failed", error="the disk is full"))


def test_a_huge_file_is_not_read(tmp_path):
    run = make_run(tmp_path / "run", [0, 1])
    with (run / "metrics.jsonl").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="more than the 200,000,000 allowed"):
        reading(run)


def test_flat():
    tree = {"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}
    assert flat(tree) == {"a.b": 1, "a.c": (), "d": (1, (("e", 2),))}
