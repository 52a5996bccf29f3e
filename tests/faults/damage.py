"""Damage to the files of a run, each a function of the file and a random generator."""

import hashlib
import io
import json
import os
import re

import numpy as np
import torch
from safetensors.torch import load, save

from dpg_cli.storage.checkpoint_folder import checksum, saved_folders


def truncated(path, random):
    os.truncate(path, random.integers(path.stat().st_size))


def zeroed(path, random):
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path, random):
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << random.integers(8)
    path.write_bytes(data)


def longer(path, random):
    with path.open("ab") as file:
        file.write(random.bytes(random.integers(1, 100)))


def deleted(path, random):
    path.unlink()


DAMAGES = (truncated, zeroed, flipped, longer, deleted)


def misshapen(path, random):
    """One array of a file has another shape; none of the environment's own, whose shapes may change as it likes."""
    tree = path.with_name("state.json")
    environments = json.loads(tree.read_bytes())["environments"] if tree.exists() else {}
    changing = set(re.findall(r'"array": "(\d+)"', json.dumps(environments.get("simulators"))))

    def change(tensors):
        names = sorted(set(tensors) - changing)
        name = names[random.integers(len(names))]
        return tensors | {name: tensors[name].new_zeros(*tensors[name].shape, 2)}, name

    return _rewritten(path, change)


def incomplete(path, random):
    """A key of a file is missing."""

    def change(content):
        keys = sorted(content.keys() - {"checksum"})
        gone = keys[random.integers(len(keys))]
        return {key: value for key, value in content.items() if key != gone}, gone

    return _rewritten(path, change)


def _rewritten(path, change):
    """Change a file's content and let the manifest say so, as a program with a fault would have written it."""
    if path.suffix == ".npy":
        rows = np.load(path)
        fields, changed = change({name: torch.from_numpy(rows[name].copy()) for name in rows.dtype.names})
        dtype = [(name, rows.dtype[name].base, fields[name].shape[1:]) for name in rows.dtype.names if name in fields]
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(len(rows), dtype))
        path.write_bytes(buffer.getvalue())
    elif path.suffix == ".json":
        content, changed = change(json.loads(path.read_bytes()))
        path.write_text(json.dumps(content))
    else:
        tensors, changed = change(load(path.read_bytes()))
        path.write_bytes(save(tensors))
    run = path.parent.parent if path.suffix == ".npy" else path.parents[2]
    for folder in saved_folders(run / "checkpoints", "step"):
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if path.name == "manifest.json" and folder != path.parent:
            continue
        manifest.pop("checksum", None)
        data = path.read_bytes()
        for described in (manifest.get("files", {}) if folder == path.parent else {}, manifest.get("shards", {})):
            if path.name in described:
                described[path.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["checksum"] = checksum(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return changed
