"""A stranger's run of TD7 with policy checkpoints; see test_hostile.py."""

import shutil

import numpy as np
import pytest
import toy_envs  # noqa: F401 - registers Toy/Reach-v0
from commands import SMALL
from test_hostile import config_value, entry, rejected
from test_hostile_switches import stored, with_one, without

SIZES = ["algo.encoder_sizes=[8]", "algo.embedding_size=4", "algo.target_copy_every=10"]
NEW = ["env=Toy/Reach-v0", *SMALL, "algo=td7", *SIZES, "num_envs=2", "checkpoint.keep=1"]


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


def of_member(name, bad):
    return stored("algorithm", "member_state", name, change=with_one(bad))


CONFIGS = {
    "an embedding of no size": config_value("algo.embedding_size", 0),
    "an embedding of 10¹⁵ numbers": config_value("algo.embedding_size", 10**15),
    "no encoder": config_value("algo.encoder_sizes", []),
    "no copies": config_value("algo.target_copy_every", None),
    "a window of no episodes": config_value("algo.checkpoint_episodes", 0),
    "a reset beyond 1": config_value("algo.checkpoint_reset", 2.0),
    "policy checkpoints that are no switch": config_value("algo.policy_checkpoints", "maybe"),
}
STATES = {
    "another embedding": config_value("algo.embedding_size", 5),
    "no policy checkpoints": config_value("algo.policy_checkpoints", False),
    **{
        f"{name} of {bad}": of_member(name, bad)
        for name in ("due", "episodes")
        for bad in (np.nan, np.inf, -1.0, 0.5, 1e300)
    },
    **{f"{name} that is no number": of_member(name, np.nan) for name in ("worst", "best_worst", "low", "highest")},
    "no windows": without("algorithm", "member_state", "due"),
    "no checkpoint": without("algorithm", "checkpoint_encoder"),
    "no count of owed updates": without("algorithm", "owed"),
    **{f"negative {name}": entry("algorithm", name, value=-1) for name in ("owed", "updates")},
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
