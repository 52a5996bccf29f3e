"""Every combination of algorithm, network, replay and noise; what joins a registry joins these tests."""

import itertools
import json
import math
import shutil
import signal
from dataclasses import fields
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from commands import SMALL, TOY
from oracle import differences
from test_learner import ALIKE, ChoosingAsOnADevice, evaluations
from test_trainer import Run, records

from dpg_cli import load_policy
from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.bookkeeping import all_finite
from dpg_cli.captured_learner import CapturedLearner
from dpg_cli.cli import build, learners, play
from dpg_cli.cli.folder import load_config
from dpg_cli.cli.learners import new_algorithm
from dpg_cli.export import FORMATS, export
from dpg_cli.export.verification import TOLERANCE
from dpg_cli.networks import ARCHITECTURES
from dpg_cli.noise import NOISES
from dpg_cli.priorities import SAMPLINGS
from dpg_cli.seeding import Purpose, integer
from dpg_cli.storage import checkpoint
from dpg_cli.storage.state_tree import pack

GROUPS = {"algo": ALGORITHMS, "network": ARCHITECTURES, "replay": SAMPLINGS, "noise": NOISES}
POSSIBLE = {"td7": {"network": ["mlp"]}}  # of algorithms with networks of their own
EVERY = [
    choice
    for names in itertools.product(*GROUPS.values())
    if (choice := dict(zip(GROUPS, names, strict=True)))["network"] in POSSIBLE.get(choice["algo"], GROUPS)["network"]
]
WAYS = [[], ["share_next_obs=true"], ["algo.normalize_obs=true"], ["share_next_obs=true", "algo.normalize_obs=true"]]
CPU = torch.device("cpu")


def pairs(choice):
    return set(itertools.combinations(choice.items(), 2))


def pairwise(given):
    """Few of the combinations, in which every two choices meet."""
    chosen, left = [], set().union(*map(pairs, given))
    while left:
        chosen.append(max(given, key=lambda choice: len(pairs(choice) & left)))
        left -= pairs(chosen[-1])
    return chosen


PAIRS = [*zip(pairwise(EVERY), itertools.cycle(WAYS))]
# Noise is drawn on the host, for each seed alone: it meets the others where runs are resumed.
PINK = [*zip(pairwise([choice for choice in EVERY if choice["noise"] == "pink"]), itertools.cycle(WAYS))]
FEW = list({(choice["algo"], choice["network"]): choice for choice, _ in PAIRS}.values())


def overrides(choice):
    """Of a combination, with tiny networks and windows of three steps."""
    sizes = [f"network.{f.name}=8" for f in fields(ARCHITECTURES[choice["network"]]) if f.name.endswith("_size")]
    sizes += [f"network.{f.name}=[8]" for f in fields(ARCHITECTURES[choice["network"]]) if f.name.endswith("_sizes")]
    if choice["algo"] == "td7":
        sizes += ["algo.encoder_sizes=[8]", "algo.embedding_size=4", "algo.target_copy_every=10"]
        sizes += ["algo.policy_checkpoints=false"]  # see test_policy_checkpoints.py
    return [*(f"{group}={name}" for group, name in choice.items()), *sizes, "algo.n_steps=3"]


def named(value):
    return " ".join(value.values() if isinstance(value, dict) else value)


def states(run):
    """Everything that each member of a run has come to, except the lengths of its files."""
    found = []
    for folder in run.folders:
        loaded = checkpoint.load(folder, run.outcome.step)
        tree, tensors = pack({name: part for name, part in loaded.state.items() if name != "files"})
        found.append((tree, [tensor.numpy().tobytes() for tensor in tensors.values()], loaded.rows.tobytes()))
    return found


def networks(run, member=0):
    """Every tensor of a member's networks."""
    return pack(run.training.algorithm.networks_state(member))[1].values()


@pytest.mark.parametrize("choice", EVERY, ids=named)
def test_it_learns_and_its_checkpoint_loads(tmp_path, choice):
    steps = ["total_steps=25", "checkpoint.keep=9", "eval.every=40", "eval.episodes=1", "algo.target_copy_every=6"]
    run = Run(tmp_path, *overrides(choice), *steps)
    algorithm, folder = run.training.algorithm, run.folders[0]
    assert run.updates == 15
    assert all_finite(algorithm.state(0))
    assert all(math.isfinite(value) for record in records(run) for value in record.values())
    fresh, loaded = (new_algorithm(run.config, 2, 1, CPU) for _ in range(2))
    loaded.load_state([checkpoint.load(folder, 25).state["algorithm"]])
    for name, network in algorithm.networks().items():
        assert torch.equal(network.flat, loaded.networks()[name].flat), name
        assert not torch.equal(network.flat, fresh.networks()[name].flat), name
    for name, optimizer in algorithm.optimizers().items():
        assert optimizer.count > 0, name


@pytest.mark.parametrize(("choice", "way"), PINK, ids=named)
def test_a_seed_is_the_same_run_alone_and_beside_others(tmp_path, choice, way):
    given = [*overrides(choice), *way, "num_envs=2", "precision=float64", "total_steps=40"]
    together = Run(tmp_path / "together", *given, "num_seeds=2", "seed=4")
    for member, seed in enumerate((4, 5)):
        alone = Run(tmp_path / f"{seed}", *given, f"seed={seed}")
        np.testing.assert_allclose(together.stored()[member], alone.stored()[0], rtol=0, atol=1e-10)
        for beside, own in zip(networks(together, member), networks(alone), strict=True):
            torch.testing.assert_close(beside, own, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("choice", "way"), PAIRS[1:] + PAIRS[:1], ids=named)
def test_a_stopped_run_resumes_exactly(tmp_path, choice, way):
    """In the middle of an episode and of a policy delay. The same seed thus gives the same run, too."""
    given = [*overrides(choice), *way, "num_seeds=2", "num_envs=2", "learning_starts=11", "buffer_size=31"]
    given += ["total_steps=44", "eval.episodes=1"]
    whole = Run(tmp_path / "whole", *given)
    first = Run(tmp_path / "parts", *given, stop_at=34)
    assert first.updates == 23
    assert first.training.environments.state(1)["lengths"].any()
    resumed = Run(tmp_path / "parts", *given, start=34)
    for member in range(2):
        assert resumed.lines("evaluations.jsonl", member) == whole.lines("evaluations.jsonl", member)
        assert records(resumed, member) == records(whole, member)
    assert states(resumed) == states(whole)


@pytest.mark.parametrize("choice", [choice for choice, _ in PINK], ids=named)
def test_captured_learning_is_the_ordinary_loop(tmp_path, monkeypatch, choice):
    given = [*ALIKE, *overrides(choice), "num_seeds=2", "total_steps=37", "checkpoint.every=37"]
    with monkeypatch.context() as patch:
        patch.setattr(learners, "Replay", ChoosingAsOnADevice)
        expected = Run(tmp_path / "ordinary", *given)
    new = build.new_learner
    monkeypatch.setattr(build, "new_learner", lambda *args, captured: new(*args, captured=True))
    run = Run(tmp_path / "captured", *given)
    assert type(run.training.learner) is CapturedLearner
    assert run.updates == expected.updates > 20
    assert [evaluations(run), records(run)] == [evaluations(expected), records(expected)]
    np.testing.assert_array_equal(run.stored(), expected.stored())
    for own, other in zip(networks(run), networks(expected), strict=True):
        assert torch.equal(own, other)


# --- the commands ---


@pytest.fixture(params=FEW, ids=named)
def arguments(request, trained):
    """The command line of a run."""
    given = [TOY, *SMALL, *overrides(request.param), "algo.normalize_obs=true"]
    return [*given, f"dataset={trained(TOY, *SMALL)}"] if ALGORITHMS[request.param["algo"]].offline_only else given


def test_dpg_eval_is_the_evaluation_of_the_training(trained, evaluate, tmp_path, monkeypatch, arguments):
    run = trained(*arguments)
    last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    monkeypatch.setattr(play, "integer", lambda seed, _, i: integer(seed, Purpose.EVALUATION, last["step"], i))
    assert evaluate(str(run), "checkpoint=latest", "episodes=2", "trust=true", "out=result.json")[0] == 0
    assert json.loads((tmp_path / "result.json").read_text())["returns"] == last["returns"]


def test_load_policy_and_every_export_act_as_dpg_eval(trained, tmp_path, arguments):
    run = trained(*arguments)
    policy = load_policy(run)
    algorithm = new_algorithm(load_config("run", run, "true"), 2, 1, CPU)
    algorithm.load_policy(checkpoint.policy_tensors(checkpoint.find(run, "best"))[0])
    obs = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    np.testing.assert_allclose(policy.scaled(obs), algorithm.act(obs[None])[0], rtol=0, atol=1e-5)
    if policy.config["algo"]["name"] != next(iter(ALGORITHMS)):
        return  # an export takes a second, and depends on the network alone
    metadata = policy.metadata | {"run": "run"}
    for name, chosen in FORMATS.items():
        if all(map(find_spec, chosen.modules)) and (name != "c" or shutil.which("gcc")):
            difference = export(policy, chosen, metadata, obs, tmp_path / f"policy{chosen.suffix}")
            assert difference is not None, name
            assert difference <= TOLERANCE, name


def test_a_run_starts_from_its_networks(trained, train, tmp_path, arguments):
    run = trained(*arguments)
    assert train(*arguments, f"init={run}", "total_steps=1", "hydra.run.dir=next")[0] == 0
    before, after = (checkpoint.load(*at).state["algorithm"] for at in ((run, 60), (tmp_path / "next", 0)))
    for network in new_algorithm(load_config("run", run, "true"), 2, 1, CPU).networks():
        for name, tensor in before[network].items():
            assert "normalizer" in name or torch.equal(after[network][name], tensor), (network, name)


def test_a_longer_run_resumes_from_its_end(trained, finished, train, tmp_path, arguments):
    finished(*arguments)
    assert train("resume=run", "total_steps=80", "trust=true")[::2] == (0, "")
    assert differences(tmp_path / "run", trained(*arguments, "total_steps=80")) == []


def test_a_sweep_over_them_resumes_with_the_same_numbers(train, signalled, tmp_path):
    online = [name for name, own in ALGORITHMS.items() if not own.offline_only and name not in POSSIBLE]
    every = [f"algo={','.join(online)}", "network=simba", "network.actor_size=8", "network.critic_size=8"]
    jobs = ["-m", TOY, *SMALL, *every, "replay=lap", "noise=pink", "algo.n_steps=3"]
    assert train(*jobs, "hydra.sweep.dir=whole")[0] == 0
    assert signalled("step", 90, [signal.SIGTERM], *jobs, "hydra.sweep.dir=sweep")[0] == 143
    assert train("resume=sweep", "trust=true")[0] == 0
    for number in range(len(online)):
        assert differences(tmp_path / "sweep" / str(number), tmp_path / "whole" / str(number)) == []
