"""A stranger's run with SimBa networks, priorities, windows and pink noise; see test_hostile.py."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
import toy_envs  # noqa: F401 - registers Toy/Reach-v0
import yaml
from commands import SMALL
from safetensors.torch import load_file, save_file
from test_hostile import STEP, config_value, entry, guarded, rejected, seal, tree

SWITCHES = ["network=simba", "network.actor_size=8", "network.critic_size=8", "replay=lap", "noise=pink"]
NEW = ["env=Toy/Reach-v0", *SMALL, *SWITCHES, "algo.n_steps=3", "num_envs=2", "checkpoint.keep=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("made") / "run"


@pytest.fixture
def place(train, made, tmp_path):
    """A copy of the run in `run`, and `outside`, which must stay as it is."""
    if not made.exists():
        assert train(*NEW, f"hydra.run.dir={made}")[0] == 0
    shutil.copytree(made, tmp_path / "run", symlinks=True)
    (tmp_path / "outside").mkdir()
    return tmp_path


# --- attacks: each takes the run folder, the folder outside, and the path that a payload would make ---


def stored(*keys, change):
    """A tensor of the state changed."""

    def attack(run, outside, sentinel):
        node = json.loads((run / STEP / "state.json").read_text())
        for key in keys:
            node = node[key]
        (name,) = node.values()
        tensors = load_file(run / STEP / "state.safetensors")
        tensors[name] = change(tensors[name]).contiguous()
        save_file(tensors, run / STEP / "state.safetensors")
        seal(run / STEP)

    return attack


def with_one(value):
    """The first number of a tensor is another."""

    def change(tensor):
        tensor.view(-1)[0] = value
        return tensor

    return change


def without(*keys):
    """An entry of the state is missing."""

    def change(state):
        *parents, last = keys
        for key in parents:
            state = state[key]
        del state[last]

    return tree(change)


def rows(change):
    """The newest shard with other rows, which its manifest describes."""

    def attack(run, outside, sentinel):
        path = max((run / "replay").glob("*.npy"))
        own = np.load(path)
        change(own)
        buffer = io.BytesIO()
        np.save(buffer, own)
        path.write_bytes(buffer.getvalue())
        seal(run / STEP)

    return attack


def config(**groups):
    """Whole groups of the config are others."""

    def attack(run, outside, sentinel):
        content = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(content | groups))

    return attack


def flag(value):
    def change(own):
        own["terminated"].view(np.uint8)[3] = value

    return rows(change)


SIMBA = {"name": "simba", "actor_size": 8, "actor_blocks": 1, "critic_size": 8, "critic_blocks": 1}
LAP = ("replay", "lap")
CONFIGS = {
    "an unknown network": config(network={"name": "os.system"}),
    "an unknown replay": config(replay={"name": "\x1b]0;owned\x07"}),
    "a network that is a name": config(network="simba"),
    "no network": config(network=None),
    "a list of networks": config(network=["simba"]),
    "a network without a name": config(network={key: SIMBA[key] for key in SIMBA if key != "name"}),
    "a network without sizes": config(network={"name": "simba"}),
    "a network with more keys": config(network=SIMBA | {"_target_": "os.system"}),
    "a replay without alpha": config(replay={"name": "lap"}),
    "a replay with a large alpha": config(replay={"name": "lap", "alpha": 10**9}),
    "critics of 10¹⁵ features": config(network=SIMBA | {"critic_size": 10**15}),
    "critics of 2³² features": config(network=SIMBA | {"critic_size": 2**32}),
    "critics of 10⁵ features and 100 blocks": config(network=SIMBA | {"critic_size": 10**5, "critic_blocks": 100}),
    "a thousand blocks": config(network=SIMBA | {"critic_blocks": 1000}),
    "an actor of a million features": config(network=SIMBA | {"actor_size": 10**6}),
    "an actor of another size": config(network=SIMBA | {"actor_size": 9}),
    "an actor of other blocks": config(network=SIMBA | {"actor_blocks": 2}),
    "another network": config(network={"name": "mlp"}),
    "a window of 10¹⁵ steps": config_value("algo.n_steps", 10**15),
    "half a step": config_value("algo.n_steps", 1.5),
    "gradients of no norm": config_value("algo.max_grad_norm", 0),
    "copies of targets that never come": config_value("algo.target_copy_every", 0),
    "copies of targets between two updates of the actor": config_value("algo.target_copy_every", 3),
}
STATES = {
    **{f"a priority of {bad}": stored(*LAP, "priorities", change=with_one(bad)) for bad in (np.nan, np.inf, 0, -1, 99)},
    **{f"{bad} as the largest priority": stored(*LAP, "largest", change=with_one(bad)) for bad in (np.nan, 0.5, 1e300)},
    "too few priorities": stored(*LAP, "priorities", change=lambda tensor: tensor[1:]),
    "priorities in a table": stored(*LAP, "priorities", change=lambda tensor: tensor[:, None]),
    "one priority for all": stored(*LAP, "priorities", change=lambda tensor: tensor[0]),
    "priorities in float32": stored(*LAP, "priorities", change=torch.Tensor.float),
    "several largest priorities": stored(*LAP, "largest", change=lambda tensor: tensor.expand(2)),
    "no priorities": without("replay", "lap"),
    "priorities of something else": entry(*LAP, value=["text"]),
    "priorities that are words": entry(*LAP, "priorities", value="text"),
    "no largest priority": without(*LAP, "largest"),
    **{
        f"{bad!r} as a cut": entry("replay", "cuts", value=[bad]) for bad in (-1, 60, 10**30, "1", True, None, [1], 1.5)
    },
    "cuts that are none": entry("replay", "cuts", value="text"),
    "no cuts": without("replay", "cuts"),
    "10³⁰ transitions, none of them stored": tree(lambda state: state["replay"].update(added=10**30, size=0)),
    "a series that is not finite": stored("noise", "series", change=with_one(np.nan)),
    "a series that is infinite": stored("noise", "series", change=with_one(np.inf)),
    "a series of another length": stored("noise", "series", change=lambda tensor: tensor[:, 1:]),
    "a series before its start": stored("noise", "position", change=with_one(-1)),
    "a series after its end": stored("noise", "position", change=with_one(10**9)),
    "a position of another type": stored("noise", "position", change=torch.Tensor.double),
    "no series": without("noise", "series"),
    "a block of another shape": stored(
        "algorithm", "actor", "blocks.0.expand.weight", change=lambda tensor: tensor[1:]
    ),
    "a norm of another shape": stored("algorithm", "critic", "norm.weight", change=lambda tensor: tensor[:1]),
    "no embedding": without("algorithm", "target_critic", "embedding.weight"),
    "one more tensor": entry("algorithm", "actor", "blocks.1.norm.weight", value=0),
    "moments of fewer tensors": without("algorithm", "critic_optimizer", "mean", 0),
    "no optimizer": without("algorithm", "actor_optimizer"),
    "no further state": without("algorithm", "member_state"),
    "environments in another order": rows(lambda own: own["env"].__setitem__(slice(None), own["env"][::-1].copy())),
    "environments that do not exist": rows(lambda own: own["env"].fill(65_535)),
    **{f"an end of {value}": flag(value) for value in (2, 4, 255)},
    "another number of environments": config_value("num_envs", 3),
    "a ring without priorities": config(replay={"name": "uniform"}),
    "noise without a series": config_value("noise", {"name": "none"}),
    "noise of longer episodes": config_value("env.max_episode_steps", 10**9),
}
NETWORKS = {name: STATES[name] for name in ("a block of another shape", "a norm of another shape", "no embedding")}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("used", ["eval", "resume"])
def test_a_hostile_config(place, train, evaluate, name, used):
    run = (lambda: evaluate("run=run")) if used == "eval" else (lambda: train("resume=run", "total_steps=80"))
    rejected(place, CONFIGS[name], run)


@pytest.mark.parametrize("name", STATES)
def test_a_hostile_state(place, train, name):
    rejected(place, STATES[name], lambda: train("resume=run", "total_steps=80"))


@pytest.mark.parametrize("name", NETWORKS)
def test_hostile_networks(place, train, name):
    rejected(place, NETWORKS[name], lambda: train(*NEW, "init=run", "hydra.run.dir=new"))
    assert not (place / "new").exists()


@pytest.mark.parametrize("name", ["another network", "critics of 10¹⁵ features", "an unknown network"])
def test_an_export_needs_only_what_the_policy_says_about_itself(place, export, name):
    CONFIGS[name](place / "run", place / "outside", place / "sentinel")
    assert guarded(lambda: export("run=run", "format=pt2"))[::2] == (0, "")


@pytest.mark.parametrize(
    "sizes",
    ["critic_size=1e15", "critic_size=4294967296", "actor_size=1e6", "critic_size=1e5 network.critic_blocks=100"],
)
def test_networks_that_no_machine_holds_are_rejected_before_they_take_memory(place, train, sizes):
    given = ["env=Toy/Reach-v0", *SMALL, "network=simba", *f"network.{sizes}".split(), "hydra.run.dir=new"]
    error = rejected(place, lambda *_: None, lambda: train(*given))
    assert error.startswith(f"dpg-train: network.{sizes.partition('=')[0]}=")
    assert "network.actor_blocks" not in error  # which is at its default
    assert "not enough memory for these networks" in error
    assert not (place / "new").exists()


def test_a_sound_copy_is_resumed_and_evaluated(place, train, evaluate):
    """The control: without an attack nothing is rejected."""
    assert evaluate("run=run", "episodes=1")[::2] == (0, "")
    assert train("resume=run", "total_steps=80")[::2] == (0, "")
    assert train(*NEW, "init=run", "hydra.run.dir=new")[::2] == (0, "")
