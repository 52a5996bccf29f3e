"""Data sets of Minari, made here by its own functions. They need the extra `minari`."""

import json

import numpy as np
import pytest
from commands import SMALL, TOY, lines
from toy_envs import Parts, Reach

from dpg_cli.dataset import Assembly
from dpg_cli.environments import minari_data
from dpg_cli.environments.make import make_env
from dpg_cli.errors import UserError
from dpg_cli.replay import CUT, TERMINATED, TRUNCATED

NAME = "toy/reach/random-v0"
NEW = [TOY, *SMALL, "algo=td3_bc", f"dataset=minari:{NAME}", "hydra.run.dir=new"]


def test_without_minari_the_message_says_what_to_install(train, tmp_path, monkeypatch):
    monkeypatch.setattr(minari_data, "MODULES", ("no_such_module",))
    code, out, err = train(*NEW)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"dataset=minari:{NAME}: needs Minari; pip install -e '.[minari]' in the clone of dpg-cli" in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def minari(tmp_path_factory, monkeypatch):
    """Minari with an empty folder of data sets, and without the network."""
    found = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("Minari uses the network"))
    return found


def episodes(env, ends, seed=0):
    """Episodes of random actions, with what was seen and done: `ends` has the length and the end of each."""
    found = []
    for number, (length, end) in enumerate(ends):
        obs, _ = env.reset(seed=seed + number)
        env.action_space.seed(seed + number)
        own = {"observations": [obs], "actions": [], "rewards": [], "terminations": [], "truncations": []}
        for step in range(length):
            action = env.action_space.sample()
            obs, reward, *_ = env.step(action)
            last = step == length - 1
            values = (obs, action, reward, last and end == "terminated", last and end == "truncated")
            for key, value in zip(own, values, strict=True):
                own[key].append(value)
        found.append(own)
    return found


def store(minari, env, found, name=NAME):
    """Write them as Minari's own collector does."""

    def stacked(values):
        if isinstance(values[0], dict):
            return {key: stacked([value[key] for value in values]) for key in values[0]}
        if isinstance(values[0], tuple):
            return tuple(stacked(list(part)) for part in zip(*values, strict=True))
        return np.array(values)

    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=number,
            observations=stacked(own["observations"]),
            actions=stacked(own["actions"]),
            rewards=own["rewards"],
            terminations=own["terminations"],
            truncations=own["truncations"],
            infos={},
        )
        for number, own in enumerate(found)
    ]
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=env.observation_space, action_space=env.action_space, data_format="hdf5"
    )


def read(env_id):
    env = make_env(env_id)
    (obs_dim,), (action_dim,) = env.observation_space.shape, env.action_space.shape
    import torch

    try:
        return env, minari_data.read(NAME, env, lambda count: Assembly(count, obs_dim, action_dim, torch.float32))
    finally:
        env.close()


ENDS = [(4, "terminated"), (3, "truncated"), (2, "neither")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "env_id"), [(Reach, "Toy/Reach-v0"), (Parts, "Toy/Parts-v0")])
def test_transitions_are_those_of_the_wrapped_environment(minari, kind, env_id):
    found = episodes(kind(), ENDS)
    store(minari, kind(), found)
    env, dataset = read(env_id)
    place = 0
    for own, (length, end) in zip(found, ENDS, strict=True):
        for step in range(length):
            row = dataset.rows[place].numpy()
            obs, next_obs = (env._flat(own["observations"][step + ahead]) for ahead in (0, 1))
            size = len(obs)
            np.testing.assert_array_equal(row[:size], obs)
            np.testing.assert_array_equal(row[-size:], next_obs)
            action = row[size : -2 - size]
            assert np.abs(action).max() <= 1
            np.testing.assert_allclose(env.own_actions(action), own["actions"][step], rtol=1e-5, atol=1e-6)
            assert row[-2 - size] == np.float32(own["rewards"][step])
            last = {"terminated": TERMINATED, "truncated": TRUNCATED, "neither": CUT}[end]
            assert row[-1 - size] == (last if step == length - 1 else 0)
            place += 1
    assert dataset.returns == pytest.approx([sum(own["rewards"]) for own in found[:2]], rel=1e-6)
    assert dataset.sources == (f"minari:{NAME}",)
    assert dataset.clipped == 0


@pytest.mark.filterwarnings("ignore")
def test_it_trains_and_resumes_and_names_its_source(minari, train, tmp_path):
    store(minari, Reach(), episodes(Reach(), ENDS))
    assert train(*NEW)[0] == 0
    assert json.loads((tmp_path / "new/run.json").read_text())["dataset"]["sources"] == [f"minari:{NAME}"]
    assert train("resume=new", "total_steps=80", "trust=true")[0] == 0
    assert lines(tmp_path / "new/evaluations.jsonl")[-1]["step"] == 80


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_read_is_one_line(minari, train, tmp_path):
    def refused(*more):
        code, out, err = train(*NEW, *more)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert list(tmp_path.iterdir()) == []
        return err

    assert f"minari download {NAME} would fetch it" in refused()
    store(minari, Reach(), episodes(Reach(), ENDS), "toy/reach/expert-v0")
    assert "there are toy/reach/expert-v0" in refused()
    assert "no data set of that name" in refused("dataset=minari:../../etc")
    store(minari, Reach(), episodes(Reach(), ENDS))
    assert "an observation has 2 numbers, and 3 in Pendulum-v1" in refused("env=Pendulum-v1")
    assert "has 9 transitions, fewer than algo.batch_size=10" in refused("algo.batch_size=10")
    with pytest.raises(UserError, match="an observation has 2 numbers, and 19"):
        read("Toy/Parts-v0")
