"""A trained policy in Python acts as dpg-eval's, for observations as the environment returns them."""

import json
import pickle
import re
import shutil

import made_policies
import numpy as np
import pytest
import torch
from commands import SMALL, TOY
from gymnasium import spaces
from policy_files import RUNS, arguments_of, entries, removed, replace, rewrite
from safetensors import safe_open

import dpg_cli
from dpg_cli import load_policy
from dpg_cli.cli.folder import load_config
from dpg_cli.cli.learners import new_algorithm
from dpg_cli.environments.make import make_env
from dpg_cli.errors import UserError
from dpg_cli.spaces import describe
from dpg_cli.storage import checkpoint
from dpg_cli.storage.checkpoint_folder import read_manifest
from dpg_cli.storage.policy_file import POLICY, with_metadata

BOX = {"type": "Box", "shape": [1], "dtype": "float32", "low": [-1.0], "high": [1.0]}


@pytest.fixture(params=RUNS)
def run(trained, request):
    return trained(*arguments_of(request.param))


def actions_of_dpg_eval(run, env, flat):
    config = load_config("run", run, "true")
    algorithm = new_algorithm(config, flat.shape[-1], env.action_space.shape[0], torch.device("cpu"))
    algorithm.load_policy(checkpoint.policy_tensors(checkpoint.find(run, "best"))[0])
    return env.own_actions(algorithm.act(flat[None])[0])


def test_a_policy_can_be_pickled_for_workers(trained):
    policy = load_policy(trained(TOY, *SMALL), "latest")
    again = pickle.loads(pickle.dumps(policy))
    assert again([0.5, 1.0]).tolist() == policy([0.5, 1.0]).tolist()
    assert again.step == policy.step


def test_actions_are_those_of_dpg_eval(run):
    policy = load_policy(run)
    env = make_env(policy.env_id, dtype=policy.dtype.type)
    made = env.env
    obs, _ = made.reset(seed=0)
    for _ in range(5):
        action = policy(obs)
        np.testing.assert_allclose(action, actions_of_dpg_eval(run, env, env._flat(obs)[None])[0], rtol=1e-5, atol=1e-6)
        assert isinstance(action, np.ndarray)
        assert made.action_space.contains(action)
        obs, *_ = made.step(action)
    assert policy.observation_space == made.observation_space
    assert policy.action_space == made.action_space


def stacked(values, leading):
    if isinstance(values[0], dict):
        return {key: stacked([value[key] for value in values], leading) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stacked([value[i] for value in values], leading) for i in range(len(values[0])))
    return np.stack(values).reshape(*leading, *np.shape(values[0]))


def test_leading_axes_are_a_batch(run):
    policy = load_policy(run)
    policy.observation_space.seed(0)
    samples = [policy.observation_space.sample() for _ in range(6)]
    one_by_one = np.stack([policy(sample) for sample in samples])
    for leading in ((6,), (2, 3), (3, 1, 2)):
        actions = policy(stacked(samples, leading))
        assert actions.dtype == policy.action_space.dtype
        np.testing.assert_allclose(
            actions, one_by_one.reshape(*leading, *policy.action_space.shape), rtol=1e-4, atol=1e-5
        )


def test_an_empty_batch_is_one(trained):
    assert load_policy(trained(TOY, *SMALL))(np.empty((0, 2))).shape == (0, 1)


def test_what_it_says_about_itself(trained):
    run = trained(TOY, *SMALL)
    policy = load_policy(str(run), checkpoint="latest")
    assert (policy.env_id, policy.step) == ("toy_envs:Toy/Reach-v0", 60)
    assert policy.config["algo"]["hidden_sizes"] == [8]
    assert policy.reset() is None
    assert load_policy(run, 30).step == load_policy(run, "30").step == 30


def test_the_metadata_are_strings_of_json(trained):
    run = trained(TOY, *SMALL)
    with safe_open(checkpoint.find(run, "latest") / POLICY, "numpy") as file:
        about = {name: json.loads(text) for name, text in file.metadata().items()}
        tensors = set(file.keys())
    assert about == {
        "env_id": "toy_envs:Toy/Reach-v0",
        "observation_space": BOX | {"shape": [2], "dtype": "float64", "low": ["-inf"] * 2, "high": ["inf"] * 2},
        "action_space": BOX | {"high": [3.0]},
        "network": [
            {"type": "dense", "weight": "layers.0.weight", "bias": "layers.0.bias"},
            {"type": "relu"},
            {"type": "dense", "weight": "layers.1.weight", "bias": "layers.1.bias"},
            {"type": "tanh"},
        ],
        "algorithm": "td3",
        "step": 60,
        "dpg_cli": dpg_cli.__version__,
    }
    assert {layer[name] for layer in about["network"] for name in ("weight", "bias") if name in layer} == tensors


def test_seeds_have_their_own_weights_and_all_else_in_common(trained):
    run = trained(TOY, *SMALL, "num_seeds=2")
    with pytest.raises(UserError, match=r"holds several seeds, seed_0, seed_1; load one of them, such as .*/seed_0$"):
        load_policy(run)
    first, second = (load_policy(run / f"seed_{seed}", "latest") for seed in range(2))
    assert first.metadata == second.metadata
    assert first([0.3, 1.0]) != second([0.3, 1.0])


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e300])
def test_an_observation_that_is_not_finite(trained, number):
    with pytest.raises(UserError, match=r"not finite in float32 \(NaN, infinite or too large\)"):
        load_policy(trained(TOY, *SMALL))([0.0, number])


def test_what_is_no_run(tmp_path, finished):
    run = finished(TOY, *SMALL)
    for folder, which, message in [
        (tmp_path / "nix", "best", "no such folder"),
        ("x" * 300, "best", "no such folder"),
        (tmp_path, "best", "not a run folder"),
        (run, 7, r"checkpoint=7: no such checkpoint; there are latest, best, .*30, 60$"),
    ]:
        with pytest.raises(UserError, match=message):
            load_policy(folder, which)
    with (checkpoint.find(run, "latest") / POLICY).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    for damage, message in [
        (lambda path: None, "does not match its checksum"),
        (lambda path: path.write_bytes(b""), "does not have the size that the manifest says"),
        (lambda path: path.unlink(), "policy.safetensors: No such file or directory"),
        (lambda path: (path.parent / "manifest.json").write_text("[]"), "its content is not what dpg-cli writes"),
    ]:
        damage(checkpoint.find(run, "latest") / POLICY)
        with pytest.raises(UserError, match=f"damaged checkpoint: .*{message}; try checkpoint=best$"):
            load_policy(run, "latest")


def test_the_file_is_the_same_for_the_same_input():
    data = (8).to_bytes(8, "little") + b"{}      " + b"\0" * 16
    about = {name: name * 3 for name in "zabcdefgh"}
    assert with_metadata(data, about) == with_metadata(data, about)
    assert len(with_metadata(data, {"a": "1"})) % 8 == 0


def test_a_policy_of_an_earlier_version(finished, evaluate):
    run = finished(TOY, *SMALL)
    folder = checkpoint.find(run, "best")
    before = evaluate(f"run={run}", "trust=true", "episodes=1")
    rewrite(folder, removed)
    assert "__metadata__" not in str((folder / POLICY).read_bytes())
    with pytest.raises(UserError) as caught:
        load_policy(run)
    message = str(caught.value)
    assert f"an early dpg-cli {read_manifest(folder)['versions']['dpg_cli']} wrote this policy, without the" in message
    assert f"(dpg-train resume={run} total_steps=61) and use checkpoint=latest" in message
    assert evaluate(f"run={run}", "trust=true", "episodes=1") == before


def test_training_on_writes_the_metadata_that_an_earlier_version_did_not(finished, train):
    run = finished(TOY, *SMALL)
    for folder in (run / "checkpoints").glob("*_*"):
        rewrite(folder, removed)
    assert train(f"resume={run}", "total_steps=61", "trust=true")[0] == 0
    assert load_policy(run, "latest").step == 61


@pytest.mark.parametrize("network", made_policies.NETWORKS)
def test_a_policy_of_every_kind_of_layer_is_read_from_its_file(finished, network):
    run = finished(TOY, *SMALL)
    folder = checkpoint.find(run, "latest")
    replace(folder, made_policies.policy_file(network, step=60))
    obs = np.random.default_rng(2).normal(0, 3, (20, made_policies.OBS_DIM))
    right = made_policies.in_units(made_policies.expected(network, obs))
    np.testing.assert_allclose(load_policy(run, "latest")(obs), right, rtol=0, atol=1e-5)


FIRST, LAST = ({"type": "dense", "weight": f"layers.{i}.weight", "bias": f"layers.{i}.bias"} for i in range(2))
NORM = {"type": "layer_norm", "weight": "layers.0.bias", "bias": "layers.0.bias", "epsilon": 1e-6}
STATISTICS = {"type": "normalize", "mean": "normalizer.mean", "var": "normalizer.var", "epsilon": 1e-8, "clip": 10.0}
RESIDUALS = f"[{json.dumps(FIRST)}, " + '{"type": "residual", "layers": [' * 450 + "]}" * 450 + f", {json.dumps(LAST)}]"
DEEP = '{"type": "Tuple", "spaces": [' * 450 + json.dumps(BOX) + "]}" * 450
INVALID = {
    "no network": entries(network=None),
    "no layers": entries(network=[]),
    "a layer too few": entries(network=[FIRST, {"type": "tanh"}]),
    "layers in another order": entries(network=[LAST, FIRST]),
    "layers that are none": entries(network=[1, 2]),
    "a type that is a number": entries(network=[FIRST, {"type": 1}, LAST]),
    "a million layers": entries(network=[FIRST, *[{"type": "relu"}] * 1_000_000, LAST]),
    "a tensor that is not there": entries(network=[FIRST | {"bias": "nix"}, LAST]),
    "a tensor whose name is a list": entries(network=[FIRST | {"bias": ["layers.0.bias"]}, LAST]),
    "a tensor that is another": entries(network=[FIRST | {"bias": "layers.0.weight"}, LAST]),
    "statistics of something else": entries(network=[STATISTICS | {"mean": "layers.0.bias"}, FIRST, LAST]),
    "no clip": entries(network=[STATISTICS | {"clip": -1.0}, FIRST, LAST]),
    "a clip that is text": entries(network=[STATISTICS | {"clip": "10"}, FIRST, LAST]),
    "statistics without a constant": entries(network=[{**STATISTICS, "epsilon": 0}, FIRST, LAST]),
    "a clip beyond float32": entries(network=[STATISTICS | {"clip": 1e300}, FIRST, LAST]),
    "an epsilon beyond float32": entries(network=[FIRST, NORM | {"epsilon": 1e-300}, LAST]),
    "a norm of another size": entries(network=[NORM, FIRST, LAST]),
    "a residual that changes the size": entries(network=[{"type": "residual", "layers": [FIRST]}, LAST]),
    "a residual of a million layers": entries(
        network=[FIRST, {"type": "residual", "layers": [{"type": "relu"}] * 1_000_000}, LAST]
    ),
    "900 levels of residuals": lambda strings: strings | {"network": RESIDUALS},
    "another size of observation": entries(observation_space=BOX | {"shape": [3], "low": [0] * 3, "high": [1] * 3}),
    "another size of action": entries(action_space=BOX | {"shape": [2], "low": [0] * 2, "high": [1] * 2}),
    "unbounded actions": entries(action_space=BOX | {"low": ["-inf"]}),
    "whole actions": entries(action_space=BOX | {"dtype": "int64", "low": [0], "high": [1]}),
    "actions of no box": entries(action_space={"type": "Discrete", "n": 1, "start": 0}),
    "an invalid name": entries(env_id=3),
    "another step": entries(step=7),
    "no step": lambda strings: {name: text for name, text in strings.items() if name != "step"},
    "no JSON": lambda strings: strings | {"env_id": "toy"},
    "100,000 levels": lambda strings: strings | {"observation_space": "[" * 100_000 + "]" * 100_000},
    "900 levels of spaces": lambda strings: strings | {"observation_space": DEEP},
    "an observation of a terabyte": entries(observation_space={"type": "Discrete", "n": 2**40, "start": 0}),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_metadata(finished, name):
    run = finished(TOY, *SMALL, "algo.normalize_obs=true")
    rewrite(checkpoint.find(run, "best"), INVALID[name])
    with pytest.raises(UserError, match=r"damaged checkpoint: .*; try checkpoint=latest$") as caught:
        load_policy(run)
    assert not re.search(r"Error|Exception", str(caught.value))  # names of Python's classes


@pytest.mark.parametrize("layer", [{"type": "block"}, {"type": "residual", "layers": [{"type": "block"}]}])
def test_a_policy_of_a_later_version(finished, layer):
    run = finished(TOY, *SMALL)
    rewrite(checkpoint.find(run, "best"), entries(network=[FIRST, layer, LAST]))
    with pytest.raises(UserError, match=r"a layer of the type 'block', which .*, so update dpg-cli$") as caught:
        load_policy(run)
    assert "damaged" not in str(caught.value)


def test_a_space_of_another_type_takes_flat_values(finished):
    run = finished(TOY, *SMALL)
    text = spaces.Tuple([spaces.Text(1, charset="ab"), spaces.Box(-1, 1, ())])
    rewrite(checkpoint.find(run, "best"), entries(observation_space=describe(text)))
    assert load_policy(run)(([1], 0.5)).shape == (1,)


def test_a_copy_elsewhere_works(finished, tmp_path):
    run = finished(TOY, *SMALL)
    copied = shutil.copytree(run, tmp_path / "else where", symlinks=False)
    shutil.rmtree(run)
    assert load_policy(copied)([0.0, 1.0]).shape == (1,)
