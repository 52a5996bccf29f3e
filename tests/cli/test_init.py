"""`init=`: a new run that starts from another run's networks, and takes nothing else from it."""

import json
import shutil
import signal

import pytest
import torch
import yaml
from commands import SMALL, TOY
from oracle import differences, members
from safetensors.torch import load_file, save_file

from dpg_cli.cli.learners import new_algorithm
from dpg_cli.cli.stored_networks import misfit
from dpg_cli.config import compose, validate
from dpg_cli.storage import checkpoint
from dpg_cli.storage.checkpoint_folder import checksum
from dpg_cli.storage.shards import described

NETWORKS = ("actor", "critic", "target_actor", "target_critic")
RUN = [TOY, *SMALL, "checkpoint.keep=9"]
NEXT = [*RUN, "init=run", "hydra.run.dir=next"]


def algorithm_at(run, step):
    return checkpoint.load(run, step).state["algorithm"]


def assert_same_networks(state, other):
    for network in NETWORKS:
        assert state[network].keys() == other[network].keys()
        for key, tensor in state[network].items():
            if not key.startswith("normalizer."):  # a new run adds its first observation
                assert torch.equal(tensor, other[network][key]), (network, key)


def edit_state(folder, change):
    """Change the tree of a checkpoint's state and its tensors, and make its manifest fit."""
    tree, tensors = json.loads((folder / "state.json").read_text()), load_file(folder / "state.safetensors")
    change(tree["algorithm"], tensors)
    (folder / "state.json").write_text(json.dumps(tree))
    save_file(tensors, folder / "state.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: described((folder / name).read_bytes()) for name in manifest["files"]}
    del manifest["checksum"]
    manifest["checksum"] = checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def refused(train, tmp_path, *arguments):
    """The message of a command that is refused and leaves no folder."""
    before = sorted(tmp_path.iterdir())
    code, out, err = train(*NEXT, *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
    return err.strip()


def test_the_networks_are_those_of_the_newest_checkpoint_and_all_else_is_new(train, finished, trained, tmp_path):
    finished(*RUN)
    code, out, err = train(*NEXT, "algo.actor_lr=1e-4", "noise.scale=0.05")
    assert (code, err) == (0, "")
    assert f"note: the networks start as at step 60 of {tmp_path / 'run'}" in out
    before, after, fresh = (
        algorithm_at(run, step) for run, step in ((tmp_path / "run", 60), (tmp_path / "next", 0), (trained(*RUN), 0))
    )
    assert_same_networks(before, after)
    assert not torch.equal(before["actor"]["layers.0.weight"], before["target_actor"]["layers.0.weight"])
    for optimizer in ("actor_optimizer", "critic_optimizer"):
        assert after[optimizer]["count"] == 0
        assert not any(moment.any() for moment in after[optimizer]["mean"] + after[optimizer]["square"])
    assert after["updates"] == 0
    assert torch.equal(after["random"], fresh["random"])
    assert checkpoint.load(tmp_path / "next", 0).state["replay"]["added"] == 0
    assert yaml.safe_load((tmp_path / "next" / "config.yaml").read_text())["init"] == str(tmp_path / "run")


def test_the_normaliser_keeps_its_statistics(train, tmp_path):
    given = ["algo.normalize_obs=true", "num_envs=2"]
    assert train(*RUN, *given, "hydra.run.dir=run")[0] == 0
    assert train(*NEXT, *given)[0] == 0
    before, after = algorithm_at(tmp_path / "run", 60)["actor"], algorithm_at(tmp_path / "next", 0)["actor"]
    assert after["normalizer.count"].item() == before["normalizer.count"].item() + 2  # its own first observations


def test_td7_keeps_the_bounds_of_the_values(train, tmp_path):
    """Without them its targets would be bounded by 0 until the first copy, and the critics would unlearn."""
    td7 = [TOY, *SMALL, "algo=td7", "algo.encoder_sizes=[8]", "algo.embedding_size=4", "algo.target_copy_every=10"]
    assert train(*td7, "hydra.run.dir=first")[0] == 0
    assert train(*td7, "init=first", "total_steps=1", "hydra.run.dir=second")[0] == 0
    before, after = (
        checkpoint.load(tmp_path / run, step).state["algorithm"]["member_state"]
        for run, step in (("first", 60), ("second", 0))
    )
    assert before["low"] < before["high"]
    for name in ("low", "high", "lowest", "highest"):
        assert torch.equal(after[name], before[name])


def test_a_run_in_float32_may_start_one_in_float64(train, finished, tmp_path):
    finished(*RUN)
    assert train(*NEXT, "precision=float64")[0] == 0
    before, after = algorithm_at(tmp_path / "run", 60)["actor"], algorithm_at(tmp_path / "next", 0)["actor"]
    assert torch.equal(before["layers.0.weight"].double(), after["layers.0.weight"])


def test_a_run_without_its_replay_may_start_another(train, finished, tmp_path):
    shutil.rmtree(finished(*RUN) / "replay")
    assert train(*NEXT)[0] == 0


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("moment", ["in the middle", "before the first checkpoint"])
def test_it_resumes_exactly_and_needs_the_other_run_only_at_its_start(
    train, signalled, finished, tmp_path, seeds, moment
):
    finished(*RUN, f"num_seeds={seeds}")
    given = [*NEXT[:-1], f"num_seeds={seeds}"]
    assert train(*given, "hydra.run.dir=whole")[0] == 0
    if moment == "in the middle":
        assert signalled("step", 25 * seeds, [signal.SIGTERM], *given, "hydra.run.dir=next")[0] == 143
        shutil.rmtree(tmp_path / "run")
    else:
        (tmp_path / "next").mkdir()
        shutil.copy(tmp_path / "whole" / "config.yaml", tmp_path / "next")
    code, _, err = train("resume=next", "trust=true")
    assert (code, err) == (0, "")
    assert differences(tmp_path / "next", tmp_path / "whole") == []


def test_seed_k_starts_from_seed_k_or_all_from_a_single_run(train, finished, tmp_path):
    finished(*RUN, "num_seeds=2", "seed=3")
    assert train(*NEXT, "num_seeds=2", "seed=3")[0] == 0
    for own, other in zip(members(tmp_path / "run"), members(tmp_path / "next"), strict=True):
        assert own.name == other.name
        assert_same_networks(algorithm_at(own, 60), algorithm_at(other, 0))
    assert train(*RUN, "init=run/seed_4", "num_seeds=2", "hydra.run.dir=both")[0] == 0
    for other in members(tmp_path / "both"):
        assert_same_networks(algorithm_at(tmp_path / "run" / "seed_4", 60), algorithm_at(other, 0))
    assert train(*RUN, "init=run", "seed=4", "hydra.run.dir=one")[0] == 0  # as seed 4 beside seed 3
    assert_same_networks(algorithm_at(tmp_path / "run" / "seed_4", 60), algorithm_at(tmp_path / "one", 0))
    (tmp_path / "both" / "config.yaml").unlink()
    message = refused(train, tmp_path, "num_seeds=3", "seed=3")
    assert "holds the seeds 3, 4, and not seed 5" in message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("algo.hidden_sizes=[9]", "these networks need algo.hidden_sizes=[8]; this run has [9]"),
        ("algo.hidden_sizes=[8,9]", "these networks need algo.hidden_sizes=[8]; this run has [8,9]"),
        ("network=simba", "these networks need network=mlp; this run has network=simba"),
        ("algo=ddpg", "these networks have 2 critics, this run has 1; use algo=td3 algo.hidden_sizes=[8]"),
        ("algo.num_critics=1", "these networks need algo.num_critics=2; this run has 1"),
        ("algo.critic_action_layer=2", "these networks need algo.critic_action_layer=1; this run has 2"),
        (
            "env=Pendulum-v1",
            "these networks are for observations of size 2 and actions of size 1; env=Pendulum-v1 has 3 and 1",
        ),
        ("algo.normalize_obs=true", "these networks need algo.normalize_obs=false; this run has true"),
        (
            "algo=td7",
            "these networks need algo=td3 network=mlp algo.hidden_sizes=[8]; this run has algo=td7 network=mlp",
        ),
    ],
)
def test_a_mismatch_is_named_before_anything_is_written(train, finished, tmp_path, given, message):
    finished(*RUN, "algo=td3")
    assert refused(train, tmp_path, given) == f"dpg-train: init={tmp_path / 'run'}: {message}"


SIMBA = ["network=simba", "network.actor_size=4", "network.critic_size=4"]
LAYER_NORM = ["network=layer_norm", "network.actor_sizes=[4]", "network.critic_sizes=[4,5]"]
TD7 = ["algo=td7", "algo.encoder_sizes=[8]", "algo.embedding_size=4"]
D4PG = ["algo=d4pg", "algo.v_min=-10", "algo.v_max=10", *LAYER_NORM]


@pytest.mark.parametrize(
    ("stored", "own", "message"),
    [
        (
            [*SIMBA, "network.critic_blocks=2"],
            SIMBA,
            "these networks need network.critic_blocks=2; this run has 1",
        ),
        (
            [*SIMBA, "network.actor_blocks=2"],
            [*SIMBA, "network.critic_size=5"],
            "these networks need network.actor_blocks=2 network.critic_size=4; "
            "this run has network.actor_blocks=1 network.critic_size=5",
        ),
        (
            LAYER_NORM,
            [*LAYER_NORM, "network.critic_sizes=[4]"],
            "these networks need network.critic_sizes=[4,5]; this run has [4]",
        ),
        (SIMBA, [], "these networks need network=simba network.actor_size=4 network.critic_size=4; this run has "),
        (TD7, [*TD7, "algo.embedding_size=5"], "these networks need algo.embedding_size=4; this run has 5"),
        (TD7, [*TD7, "algo.encoder_sizes=[8,8]"], "these networks need algo.encoder_sizes=[8]; this run has [8,8]"),
        (TD7, ["algo=td3"], "these networks need algo=td7 network=mlp algo.hidden_sizes=[8] algo.encoder_sizes=[8] "),
        (D4PG, [*D4PG, "algo.num_atoms=21"], "these networks need algo.num_atoms=51; this run has 21"),
        (
            D4PG,
            ["algo=td3"],
            "these networks need algo=d4pg network=layer_norm network.actor_sizes=[4] network.critic_sizes=[4,5]; "
            "this run has algo=td3 network=mlp",
        ),
        (["algo=ddpg"], [*D4PG], "these networks need algo=ddpg network=mlp algo.hidden_sizes=[8]; this run has "),
        (["algo=ddpg"], ["algo=td3"], "these networks need algo.num_critics=1; this run has 2"),
    ],
)
def test_the_settings_that_the_networks_need_are_named(stored, own, message):
    """Without a training: the message follows from the networks alone."""

    def networks(given):
        checked = validate(compose([TOY, *SMALL, *given]))
        return checked, new_algorithm(checked, 2, 1, torch.device("cpu")).networks_state(0)

    (_, given), (config, needed) = networks(stored), networks(own)
    assert (misfit(config, needed, given) or "").startswith(message)
    assert misfit(networks(stored)[0], given, given) is None


def test_a_checkpoint_without_critics_is_refused(train, finished, tmp_path):
    run = finished(*RUN)
    edit_state(run / "checkpoints" / "step_000000060", lambda algorithm, _: algorithm.pop("critic"))
    assert refused(train, tmp_path).endswith("its newest whole checkpoint lacks the critic")
    for folder in (run / "checkpoints").glob("step_*"):
        shutil.rmtree(folder)
    assert refused(train, tmp_path).endswith("only the policy of the best evaluation, which lacks the critics")


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(train, finished, tmp_path):
    run = finished(*RUN)
    (run / "checkpoints" / "step_000000060" / "state.json").write_text("")
    code, out, err = train(*NEXT)
    assert code == 0
    assert "step 30" in out
    assert err.startswith("warning: ")
    assert "damaged checkpoint" in err
    for folder in (run / "checkpoints").glob("step_*"):
        (folder / "state.json").write_text("")
    assert "there is no whole checkpoint" in refused(train, tmp_path, "hydra.run.dir=other")


def not_finite(algorithm, tensors):
    tensors[algorithm["critic"]["layers.1.weight"]["tensor"]].fill_(float("nan"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (not_finite, "critic layer 2 holds a number that is not finite"),
        (lambda algorithm, _: algorithm["actor"].update({"layers.0.bias": "text"}), "actor layer 1 bias is not a"),
        (lambda algorithm, _: algorithm["actor"].update({"layers.0.bias": {"array": "0"}}), "is not a floating"),
        (lambda algorithm, _: algorithm.update(actor=[]), "lacks the actor"),
    ],
)
def test_a_state_that_holds_no_networks_is_refused(train, finished, tmp_path, change, message):
    edit_state(finished(*RUN) / "checkpoints" / "step_000000060", change)
    assert message in refused(train, tmp_path)


def test_no_such_folder(train, tmp_path):
    assert refused(train, tmp_path).endswith(f"init={tmp_path / 'run'}: no such folder")
    assert refused(train, tmp_path, "-m", "seed=0,1", "hydra.sweep.dir=sweep").endswith("no such folder (with seed=0)")
    (tmp_path / "run").mkdir()
    assert refused(train, tmp_path).endswith("there is no whole checkpoint")


def test_a_started_run_keeps_its_start(train, finished, tmp_path):
    finished(*RUN)
    code, _, err = train("resume=run", "init=run", "trust=true")
    assert code == 2
    assert "init: affects steps already taken" in err
