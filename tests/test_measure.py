"""What the measuring scripts count, add up and reject; never how fast anything is."""

import json
import shutil
import sys
from collections import Counter

import benchmark
import checkpoint_cost
import cold
import costs
import footprint
import numpy as np
import policy
import pytest
import revisions
import scaling
import seeds
import sweep_faults
from commands import SMALL, TOY
from updates import update_flops

from dpg_cli.cli.arguments import run_script


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a script's main: its exit code, what it printed, what it complained."""

    def run(module, *arguments):
        monkeypatch.setattr("sys.argv", [f"{module.__name__}.py", *arguments])
        code = 0
        try:
            run_script(module.__name__, module.main)
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def ended(main):
    """As a console script ends."""

    def run():
        run_script("costs", main)
        sys.exit(0)

    return run


def test_operations_of_an_update_by_hand():
    """3 observations, 2 actions, hidden layers of 5 and 4, batches of 7."""
    actor = 3 * 5 + 5 * 4 + 4 * 2
    critic = 5 * 5 + 5 * 4 + 4 * 1
    target = actor + 2 * critic
    critics = 2 * (critic + critic + (5 * 4 + 4 * 1))  # forward, weights, inputs of the second and third layer
    of_actor = actor + critic  # forward
    of_actor += 4 * 1 + 5 * 4 + 2 * 5  # through the critic, back to the action
    of_actor += actor + (4 * 2 + 5 * 4)
    every_second = update_flops(3, 2, [5, 4], batch_size=7, num_critics=2, policy_delay=2)
    assert every_second == 2 * 7 * (target + critics + of_actor / 2)
    ddpg = update_flops(3, 2, [5, 4], batch_size=7, num_critics=1, policy_delay=1)
    assert ddpg == 2 * 7 * (actor + critic + critics / 2 + of_actor)


def test_operations_of_an_update_on_half_cheetah():
    assert update_flops(17, 6, [256, 256], 256, num_critics=2, policy_delay=2) == pytest.approx(0.41e9, rel=0.02)


def test_a_paired_ratio_is_the_median_of_ratios():
    assert benchmark.paired([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


@pytest.mark.parametrize(
    ("module", "argument", "complaint"),
    [
        (benchmark, "algo=sac", "algo=sac: should be td3 or ddpg"),
        (benchmark, "precision=float64", "precision=float64: should be float32 or bf16"),
        (benchmark, "seconds=0", "seconds=0: should be a whole number, at least 1"),
        (benchmark, "side_by_side=1000", "1000 times 1 threads: this process may use"),
        (benchmark, "second=2", "second: unknown key; did you mean seconds?"),
        (scaling, "algo=sac", "algo=sac: there are "),
        (sweep_faults, "cases=0", "cases=0: should be a whole number, at least 1"),
        (costs, "steps=-1", "steps=-1: should be a whole number, at least 1"),
        (revisions, "HEAD", "name at least two revisions, each once"),
        (revisions, "seconds=0.5", "name at least two revisions, each once"),
        (revisions, "nowhere .", "nowhere: git knows no such revision"),
        (revisions, "--all .", "--all: git knows no such revision"),
        (revisions, "-f .", "-f: git knows no such revision"),
    ],
)
def test_what_is_refused(script, module, argument, complaint):
    code, _, err = script(module, *argument.split())
    assert code == 2
    assert err.startswith(f"{module.__name__}: {complaint}")


def test_a_missing_peer_is_named(script, monkeypatch):
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None if name == "sbx" else object())
    assert script(benchmark) == (2, "", "benchmark: sbx missing; pip install -e '.[bench]'\n")


def test_the_clock_gives_time_to_the_innermost_part(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(now))
    clock = costs.Clock()
    with clock.inside("outer"), clock.inside("inner"):
        assert clock.within("inner")
    assert clock.seconds == {"outer": 1 + 4, "inner": 2}


def test_shares_of_a_step():
    ms = dict.fromkeys((*costs.PARTS, costs.PANEL), 0.0)
    ms |= {costs.ENVIRONMENT: 10.0, costs.UPDATE: 60.0, costs.CRITICS: 20.0, costs.ACTING: 6.0, costs.RECORDS: 3.0}
    ms |= {costs.PANEL: 1.0, costs.REST: 1.0, costs.EVALUATION: 25.0}
    strictly, mildly = (6 + 3 + 1 + 1) / 100, (3 + 1 + 1) / 100
    assert list(costs.shares(ms).values()) == pytest.approx([25 / 125, strictly, mildly])


def test_the_costs_of_a_training(command, tmp_path, monkeypatch):
    act = costs.Algorithm.act
    monkeypatch.setattr(costs, "FIRST_UPDATE", 10)
    small = [argument for argument in SMALL if not argument.startswith("total_steps")]
    code, out, err = command(ended(costs.main), TOY, *small, "steps=60", "out=costs.json")
    assert (code, err) == (0, "")
    assert "41 steps counted" in out  # the tenth update comes with step 20
    result = json.loads((tmp_path / "costs.json").read_text())
    assert result["ms_per_step"].keys() == {*costs.PARTS, costs.PANEL}
    assert {part for part, ms in result["ms_per_step"].items() if ms <= 0} == {costs.PANEL}  # shown on terminals alone
    assert costs.Algorithm.act is act


def test_a_training_too_short_for_a_count(command):
    small = [argument for argument in SMALL if not argument.startswith("total_steps")]
    code, _, err = command(ended(costs.main), TOY, *small, "steps=60")
    assert (code, err) == (2, "costs: steps: too few; there must be 100 updates and steps after them\n")


@pytest.mark.parametrize("module", [benchmark, checkpoint_cost, cold, costs, footprint, revisions, scaling, seeds])
def test_a_result_that_could_not_be_written_is_refused_before_it_is_measured(script, module):
    name = module.__name__
    assert script(module, "out=nowhere/it.json") == (2, "", f"{name}: out=nowhere/it.json: No such file or directory\n")


def test_every_part_around_an_update_is_timed(script, tmp_path):
    out = tmp_path / "cold.json"
    assert script(cold, "rounds=2", f"out={out}")[0] == 0
    microseconds = json.loads(out.read_text())["microseconds"]
    assert len(microseconds) == 3
    assert all(len(parts) == len(cold.PARTS) and min(parts) > 0 for parts in microseconds.values())


def test_every_fault_of_a_sweep_has_as_many_cases():
    faults = [sweep_faults.faults_of(number, np.random.default_rng([0, number])) for number in range(60)]
    alone = Counter(own[0].name for own in faults if len(own) == 1)
    assert alone == {fault.name: 5 for fault in sweep_faults.FAULTS}
    assert {len(own) for own in faults} == {1, 2, 3}


@pytest.fixture
def disturbed(train, tmp_path):
    """A case whose sweep equals the undisturbed one, as far as it goes."""
    assert train("-m", TOY, *SMALL, "algo=ddpg,td3", "num_seeds=2", "hydra.sweep.dir=reference")[0] == 0
    shutil.copytree(tmp_path / "reference", tmp_path / "sweep", symlinks=True)
    return sweep_faults.Case(0, np.random.default_rng(0), tmp_path, tmp_path / "reference")


def test_a_resumed_sweep_passes_only_if_nothing_differs(disturbed):
    sweep_faults.check(disturbed)
    run = disturbed.sweep / "1" / "seed_0"
    for path, content, complaint in (
        (run / "evaluations.jsonl", "", "evaluations differ"),
        (run / "metrics.jsonl", "", "job 1 differs: TensorBoard, metrics"),
        (run / "run.json", json.dumps({"status": "running"}), "seed_0: running"),
        (disturbed.sweep / "1" / "run.json", json.dumps({"status": "done"}), "job 1 was trained again"),
        (disturbed.sweep / "1" / "train.log", "done at step 60\n" * 2, "job 1 was trained again"),
        (disturbed.sweep / "1" / ".hydra" / "config.yaml", None, "config.yaml"),
        (disturbed.sweep / ".sweep.json.7", "", "left in the folder of the sweep"),
    ):
        before = path.read_text() if path.exists() else None
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        with pytest.raises(AssertionError, match=complaint):
            sweep_faults.check(disturbed)
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_text(before)
    sweep_faults.check(disturbed)


@pytest.mark.parametrize(("varied", "size"), [("batch", 4), ("width", 8), ("num_seeds", 2), ("num_envs", 2)])
def test_every_size_can_be_varied(varied, size):
    assert scaling.milliseconds("td3", varied, threads=1, size=size, updates=1) > 0


def test_a_call_of_a_policy_is_timed(command, trained, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # so that what the script sets is taken back
    code, out, _ = command(ended(policy.main), str(trained(TOY, *SMALL)), "repetitions=2", "calls=3")
    assert code == 0
    assert "toy_envs:Toy/Reach-v0: a call takes" in out
