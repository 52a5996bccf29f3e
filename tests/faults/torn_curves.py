"""Files of curves that are torn, doubled, damaged or gone."""

import itertools
from pathlib import Path

import damage
from case import Case
from moments import at
from oracle import differences, digest, members
from trainings import HERE, RESUME, RUNS, suicide

from dpg_cli.storage import checkpoint

CURVES = ("metrics.jsonl", "evaluations.jsonl", "events")
ADDED = ("a torn line", "lines again", "garbage", "zeros")
LOST = ("deleted", "truncated", "zeroed", "flipped")
TORN = list(itertools.product(CURVES, (*ADDED, *LOST), (1, 3)))


def torn(case: Case) -> None:
    """A curve's file is torn, doubled, damaged or gone. What was lost before the checkpoint cannot come back."""
    file, what, seeds = TORN[case.number]
    name = "Pendulum-v1" if seeds == 1 else "HalfCheetah-v4, OU, 3 seeds"
    case.note(f"{name}: {file}: {what}")
    call = int(case.random.integers(5, 120))
    case.note(f"killed before step {call}")
    case.expect(137, *RUNS[name], HERE, prepare=lambda: at("step", call, suicide, setattr))
    member = members(case.run)[int(case.random.integers(seeds))]
    path = next(member.glob("events.*")) if file == "events" else member / file
    data = path.read_bytes()
    if what in ADDED:
        length = int(case.random.integers(1, 300))
        added = {"a torn line": b'{"step": 1', "lines again": data[-length:]}
        added |= {"garbage": case.random.bytes(length), "zeros": bytes(length)}
        path.write_bytes(data + added[what])
    else:
        {"deleted": damage.deleted, "truncated": damage.truncated, "zeroed": damage.zeroed, "flipped": damage.flipped}[
            what
        ](path, case.random)
    files = checkpoint.load(member, checkpoint.saved_steps(member)[-1]).state["files"]
    lost = not path.exists() or path.stat().st_size < files[path.name]
    if what in ADDED or (what in ("deleted", "truncated") and (file == "events" or not lost)):
        case.resumed(name)
        return
    # What is gone is gone, but the run continues, and its numbers from there on are the same.
    command = case.expect(0, *RESUME)
    if what in ("deleted", "truncated"):
        logs = (case.run / "train.log").read_text() + command.err()
        assert "has lost" in logs, logs
    curves = {
        "metrics.jsonl": {"metrics", "TensorBoard"},
        "evaluations.jsonl": {"evaluations"},
        "events": {"TensorBoard"},
    }
    found = set(differences_or_unreadable(case.run, case.reference(name)))
    assert found <= curves[file] | {"unreadable"}, f"differs: {found}"


def differences_or_unreadable(run: Path, reference: Path) -> list[str]:
    """As `differences`, of a run whose own files may be damaged where the fault was."""
    try:
        return differences(run, reference)
    except (ValueError, UnicodeDecodeError):
        pairs = zip(members(run), members(reference), strict=True)
        return ["unreadable"] if all(digest(own) == digest(other) for own, other in pairs) else ["state"]
