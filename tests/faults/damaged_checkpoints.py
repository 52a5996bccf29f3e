"""Files of a checkpoint that are damaged or hold something else."""

import itertools
import json
import shutil

import damage
from case import Case
from oracle import differences
from trainings import RESUME

from dpg_cli.storage import checkpoint

FILES = ("manifest.json", "policy.safetensors", "state.json", "state.safetensors", "shard", "older shard")
HOLDING = [(damage.misshapen, f) for f in FILES[1:] if f != "state.json"] + [(damage.incomplete, f) for f in FILES]
DAMAGED = [*itertools.product(damage.DAMAGES, FILES), *HOLDING] * 2


def damaged(case: Case) -> None:
    """A file of the newest checkpoint is damaged, or holds something else: named, and the one before is taken."""
    how, file = DAMAGED[case.number]
    name = "Pendulum-v1"
    shutil.copytree(case.references / name / "killed", case.run, symlinks=True)
    steps, _ = checkpoint.valid_steps(case.run)
    newest = case.run / "checkpoints" / f"step_{steps[-1]:09d}"
    manifests = [json.loads((newest.with_name(f"step_{step:09d}") / "manifest.json").read_text()) for step in steps]
    new, old = sorted(manifests[-1]["shards"])[-1], sorted(manifests[-1]["shards"])[0]
    path = case.run / "replay" / (new if file == "shard" else old) if "shard" in file else newest / file
    about = how(path, case.random)
    case.note(f"{file}: {how.__name__}{'' if about is None else f' ({about})'}")
    _, bad = checkpoint.valid_steps(case.run)
    if how in damage.DAMAGES:
        assert steps[-1] in bad, "not noticed"
    if file == "older shard":  # of both checkpoints, which go with it
        with case.command(*RESUME) as command:
            assert command.wait() in (0, 1, 2), command.err()
            assert "Traceback" not in command.err()
        return
    if how in damage.DAMAGES:
        command = case.expect(0, *RESUME)
        assert f"step {steps[-1]:,} is damaged" in command.err(), command.err()
    else:  # the manifest was made to agree with it: rejected in one line
        with case.command(*RESUME) as command:
            code = command.wait()
        if file == "policy.safetensors" and code == 0:
            pass  # no run resumes from it: the networks are in the state too
        elif code == 0:
            assert f"step {steps[-1]:,} is damaged" in command.err(), command.err()
        else:
            assert code in (1, 2), command.err()
            assert "Traceback" not in command.err(), command.err()
            assert command.err().count("\n") <= 2, command.err()
            shutil.rmtree(newest)
            case.expect(0, *RESUME)
    found = differences(case.run, case.reference(name))
    assert not found, f"differs: {found}"
