"""A stranger's run folder as a data set: rejected in one line before anything is written; see test_hostile.py."""

import json

import numpy as np
import pytest
from commands import SMALL
from test_hostile import STEP, config_value, entry, linked, pickled, piped, rejected, seal_manifest, shard, sparse, tree
from test_hostile_switches import config, flag, made, place, rows  # noqa: F401 - fixtures

OFFLINE = ["env=Toy/Reach-v0", *SMALL, "algo=td3_bc", "dataset=run", "hydra.run.dir=new"]


def manifest(**entries):
    def attack(run, outside, sentinel):
        found = json.loads((run / STEP / "manifest.json").read_text())
        seal_manifest(run / STEP, found | entries)

    return attack


def column(name, value):
    return rows(lambda own: own[name].__setitem__(1, value))


def retyped(dtype):
    """The newest shard has other fields."""

    def content(sentinel, path):
        own = np.load(path)
        with path.open("wb") as file:
            np.save(file, np.zeros(len(own), dtype), allow_pickle=True)
        return path.read_bytes()

    return shard(content)


ATTACKS = {
    "a pickle as a shard": shard(pickled),
    "objects in a shard": retyped([("obs", object)]),
    "one number a row": retyped(np.float64),
    "a field of text": retyped([("obs", "U9", (2,)), ("action", "f4", (1,)), ("reward", "f4")]),
    "a shard of a terabyte": sparse("replay/rows_000000000000_000000000030.npy"),
    "a link as a shard": linked("replay/*.npy"),
    "a link as the replay": linked("replay"),
    "links as checkpoints": linked("checkpoints"),
    "a pipe as a shard": piped("replay/rows_000000000000_000000000030.npy"),
    "a pipe as the state": piped(f"{STEP}/state.json"),
    "a state of a terabyte": sparse(f"{STEP}/state.safetensors"),
    "a later format": manifest(format=3),
    "a format that is a word": manifest(format="\x1b]0;owned\x07"),
    "shards that are none": manifest(shards={"rows.npy": {}}),
    "shards of negative size": manifest(shards={"rows_000000000000_000000000060.npy": {"size": -1}}),
    "NaN as an observation": column("obs", np.nan),
    "an infinite reward": column("reward", np.inf),
    "an action outside": column("action", 1.5),
    **{f"an end of {value}": flag(value) for value in (2, 255)},
    "environments in another order": rows(lambda own: own["env"].__setitem__(slice(None), own["env"][::-1].copy())),
    "another number of environments": config_value("num_envs", 3),
    **{f"{bad!r} as a cut": entry("replay", "cuts", value=[bad]) for bad in (-1, 60, 10**30, "1", True, None)},
    "cuts that are none": entry("replay", "cuts", value="text"),
    "10³⁰ transitions": tree(lambda state: state["replay"].update(added=10**30, size=10**30)),
    "no replay": tree(lambda state: state.pop("replay")),
    "a config whose algorithm is null": config(algo=None),
    "a data set of its own": config(dataset="/\x1b]0;owned\x07"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_data_set(place, train, name):  # noqa: F811
    error = rejected(place, ATTACKS[name], lambda: train(*OFFLINE))
    assert "dataset=" in error or "algo" in error
    assert not (place / "new").exists()


def test_a_sound_copy_is_learned_from(place, train):  # noqa: F811
    assert train(*OFFLINE)[::2] == (0, "")
