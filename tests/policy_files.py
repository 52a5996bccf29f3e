"""Change what a policy file says about itself, as whoever wrote its folder could."""

import json

from dpg_cli.storage.checkpoint_folder import checksum
from dpg_cli.storage.policy_file import METADATA, POLICY
from dpg_cli.storage.shards import described


def rewrite(folder, change):
    """Replace the metadata of a checkpoint's policy, which are strings; None removes them."""
    data = (folder / POLICY).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    strings = change(header.pop(METADATA))
    if strings is not None:
        header[METADATA] = strings
    text = json.dumps(header).encode()
    (folder / POLICY).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][POLICY] = described((folder / POLICY).read_bytes())
    manifest.pop("checksum")
    manifest["checksum"] = checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def removed(strings):
    """The metadata of a policy that an earlier version wrote."""


def entries(**values):
    """A change of some entries to other plain data."""
    return lambda strings: strings | {name: json.dumps(value) for name, value in values.items()}
