"""What a report warns of."""

from made_runs import make_run

from dpg_cli.config.defaults import completed
from dpg_cli.report.groups import group
from dpg_cli.report.problems import listed, problems
from dpg_cli.report.runs import find, read


def problems_of(folder, min_seeds=1):
    groups = group([read(run, part, completed) for run, part in find([folder])], ())
    return problems(groups, {}, min_seeds, "steps")


LEARNED = [0, *range(100, 1300, 100)]


def test_finished_runs_that_learned_have_none(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / str(seed), LEARNED, seed=seed)
    assert problems_of(tmp_path) == []


def test_runs_that_are_not_done(tmp_path):
    make_run(tmp_path / "0", LEARNED, seed=0)
    make_run(tmp_path / "1", LEARNED, seed=1, status="running")
    make_run(tmp_path / "2", LEARNED, seed=2, status="failed", error="the \x1b disk is full")
    make_run(tmp_path / "3", LEARNED[:3], seed=3, status="interrupted")
    assert problems_of(tmp_path) == [
        "HalfCheetah-v4, td3: seed 3 not in the numbers: interrupted at step 2,000, before the others end "
        f"({tmp_path / '3'})",
        "HalfCheetah-v4, td3: seed 1 still running (last evaluation at step 12,000)",
        r"HalfCheetah-v4, td3: seed 2 failed (last evaluation at step 12,000): the \x1b disk is full",
    ]


def test_seeds_that_never_learned(tmp_path):
    make_run(tmp_path / "0", LEARNED, seed=0)
    make_run(tmp_path / "1", [0] + [-2.5] * 12, seed=1, saturation=1.0)
    make_run(tmp_path / "2", [0] + [-7] * 12, seed=2)
    assert problems_of(tmp_path) == [
        "HalfCheetah-v4, td3: seeds 1 and 2 have not learned: last10 is within two standard deviations of the "
        "untrained policies; policy/saturation is near 1 in seed 1"
    ]


def test_curves_of_different_length_and_few_evaluations_and_seeds(tmp_path):
    make_run(tmp_path / "0", LEARNED[:6], seed=0)
    make_run(tmp_path / "1", LEARNED[:4], seed=1)
    assert problems_of(tmp_path, min_seeds=5) == [
        "HalfCheetah-v4, td3: runs end between 3,000 and 5,000 steps; cut to 3,000",
        "HalfCheetah-v4, td3: 4 evaluations: last10 is their mean, the untrained policy's among them",
        "HalfCheetah-v4, td3: 2 seeds: the intervals are too narrow",
    ]


def test_steps_that_not_all_have(tmp_path):
    make_run(tmp_path / "0", LEARNED, seed=0)
    make_run(tmp_path / "1", [0, *LEARNED[2:]], steps=[0, *range(2000, 13_000, 1000)], seed=1)
    assert problems_of(tmp_path) == [
        "HalfCheetah-v4, td3: not all runs were evaluated at the same steps; the others are left out"
    ]


def test_groups_that_are_hard_to_compare(tmp_path):
    make_run(tmp_path / "0", LEARNED, algo__tau=0.1)
    make_run(tmp_path / "1", LEARNED[:-1], algo__tau=0.2, record={"versions": {"mujoco": "3.3.0"}})
    make_run(tmp_path / "2", LEARNED, algo__tau=0.3, env__kwargs={"x": 1})
    assert problems_of(tmp_path) == [
        "HalfCheetah-v4: groups end between 11,000 and 12,000 steps; each row is at its own last step",
        "HalfCheetah-v4: runs of different versions of mujoco: 3.3.0, 4.0.0",
        "HalfCheetah-v4: the runs differ in env.kwargs, so not all have the same task",
    ]


def test_seeds_in_words():
    assert listed([3]) == "seed 3"
    assert listed([0, 1]) == "seeds 0 and 1"
    assert listed([0, 2, 5]) == "seeds 0, 2 and 5"
    assert listed([4, 5, 6]) == "seeds 4 to 6"
    assert listed(range(0, 60, 2)).endswith("36, 38 and more")


def test_a_return_that_is_not_finite(tmp_path):
    for seed in range(3):
        make_run(tmp_path / str(seed), LEARNED, seed=seed)
    make_run(tmp_path / "3", [*LEARNED[:5], [float("nan")], *LEARNED[6:]], seed=3)
    assert problems_of(tmp_path) == [
        "HalfCheetah-v4, td3: seed 3 not in the numbers: its evaluation at step 5,000 is not a finite number "
        f"({tmp_path / '3'})"
    ]


def test_a_lucky_untrained_episode_and_a_trained_start_are_no_failure(tmp_path):
    make_run(tmp_path / "0", [0, *[-150] * 12], untrained=[*[-1200, -1300] * 5, -120])
    make_run(tmp_path / "1", [0, *[5000] * 12], untrained=[5000, 5010], init="/other/run", seed=1)
    assert problems_of(tmp_path) == []


def test_hours_that_are_unknown(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / str(seed), LEARNED, seed=seed)
    (tmp_path / "1" / "metrics.jsonl").unlink()
    groups = group([read(run, part, completed) for run, part in find([tmp_path])], ())
    assert problems(groups, {}, 1, "hours") == [
        "HalfCheetah-v4, td3: no curve over hours: those of seed 1 are unknown (run.json, metrics.jsonl)"
    ]
