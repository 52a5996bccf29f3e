"""A stranger's run of D4PG with a scale of noise for each episode; see test_hostile.py."""

import shutil

import numpy as np
import pytest
import toy_envs  # noqa: F401 - registers Toy/Reach-v0
from commands import SMALL
from test_hostile import config_value, rejected
from test_hostile_switches import config, stored, with_one, without

SIZES = ["network.actor_sizes=[8]", "network.critic_sizes=[8]", "algo.num_atoms=5"]
NEW = ["env=Toy/Reach-v0", *SMALL, "algo=d4pg", *SIZES, "noise=random_scale", "num_envs=2", "checkpoint.keep=1"]


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


CONFIGS = {
    "no room for the atoms": config_value("algo.v_min", 150.0),
    "a range that overflows": config_value("algo.v_max", 1e308),
    "an infinite range": config_value("algo.v_max", float("inf")),
    "one atom": config_value("algo.num_atoms", 1),
    "10⁹ atoms": config_value("algo.num_atoms", 10**9),
    "a target actor that is no switch": config_value("algo.use_target_actor", "maybe"),
    "no hidden layer": config(network={"name": "layer_norm", "actor_sizes": [], "critic_sizes": [8]}),
    "layers of 10¹⁵ units": config(network={"name": "layer_norm", "actor_sizes": [8], "critic_sizes": [10**15] * 2}),
}
STATES = {
    "other atoms": config_value("algo.num_atoms", 6),
    "no target of the actor": config_value("algo.use_target_actor", False),
    "more critics": config_value("algo.num_critics", 2),
    "a scale of another size": stored("noise", "scale", change=lambda tensor: tensor[1:]),
    **{f"a scale of {bad}": stored("noise", "scale", change=with_one(bad)) for bad in (np.nan, np.inf, -1, 0.41)},
    "no scales": without("noise", "scale"),
    "starts of another type": stored("noise", "starts", change=lambda tensor: tensor.double()),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config(place, train, evaluate, name):
    rejected(place, CONFIGS[name], lambda: evaluate("run=run"))
    rejected(place, lambda *_: None, lambda: train("resume=run", "total_steps=80"))


@pytest.mark.parametrize("name", STATES)
def test_a_hostile_state(place, train, name):
    rejected(place, STATES[name], lambda: train("resume=run", "total_steps=80"))


def test_a_sound_copy_is_resumed_and_evaluated(place, train, evaluate):
    """The control: without an attack nothing is rejected."""
    assert evaluate("run=run", "episodes=1")[::2] == (0, "")
    assert train("resume=run", "total_steps=80")[::2] == (0, "")
    assert train(*NEW, "init=run", "hydra.run.dir=new")[::2] == (0, "")
