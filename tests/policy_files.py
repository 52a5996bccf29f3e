"""Runs whose policies are used, and changes of what a policy file says about itself."""

import json

from commands import SMALL, TOY

from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.storage.checkpoint_folder import checksum
from dpg_cli.storage.policy_file import METADATA, POLICY
from dpg_cli.storage.shards import described

RUNS = {
    "HalfCheetah": ["env=HalfCheetah-v4"],
    "Humanoid": ["env=Humanoid-v4"],  # ±0.4
    "Pendulum": ["env=Pendulum-v1", "algo=ddpg"],  # ±2
    "a dictionary and unequal float64 bounds": ["env=toy_envs:Toy/Parts-v0"],
    "an action without axes": ["env=toy_envs:Toy/Scalar-v0"],
    "float16 actions": ["env=toy_envs:Toy/Half-v0"],
    "normalize_obs": [TOY, "algo.normalize_obs=true"],
    "float64": [TOY, "precision=float64", "algo.normalize_obs=true"],
    "one layer": [TOY, "algo.hidden_sizes=[]"],
    **{
        f"algo={name}": [TOY, f"algo={name}"]
        for name, own in ALGORITHMS.items()
        if name not in ("ddpg", "td3") and not own.offline_only
    },
}


def arguments_of(name):
    """The command line of one of `RUNS`."""
    own = RUNS[name]
    keys = {argument.partition("=")[0] for argument in own}
    return [*own, *(argument for argument in SMALL if argument.partition("=")[0] not in keys)]


def rewrite(folder, change):
    """Replace the metadata of a checkpoint's policy, which are strings; None removes them."""
    data = (folder / POLICY).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    strings = change(header.pop(METADATA))
    if strings is not None:
        header[METADATA] = strings
    text = json.dumps(header).encode()
    replace(folder, len(text).to_bytes(8, "little") + text + data[8 + size :])


def replace(folder, data):
    """Replace the policy file of a checkpoint."""
    (folder / POLICY).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][POLICY] = described(data)
    manifest.pop("checksum")
    manifest["checksum"] = checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def removed(strings):
    """The metadata of a policy that an earlier version wrote."""


def entries(**values):
    """A change of some entries to other plain data."""
    return lambda strings: strings | {name: json.dumps(value) for name, value in values.items()}
