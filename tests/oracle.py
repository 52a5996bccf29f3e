"""The one question of every fault: did the run come to the same numbers as one that met none?"""

import numpy as np
from commands import lines, without_time
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dpg_cli.storage import checkpoint
from dpg_cli.storage.state_tree import pack


def differences(run, other):
    """What differs between two runs, byte for byte; times and speeds aside.

    Compared are evaluations, metrics, and every part of the state at the end with the transitions. Each run must also
    have sound checkpoints, one curve in TensorBoard that is that of its metrics, and nothing left over.

    Args:
        run: the run folder; with several seeds, the parent of theirs.
        other: that of the run that met no fault.

    Returns:
        The names of what differs; empty if nothing does.
    """
    found = set()
    for member, beside in zip(members(run), members(other), strict=True):
        if (member / "evaluations.jsonl").read_bytes() != (beside / "evaluations.jsonl").read_bytes():
            found.add("evaluations")
        if without_time(lines(member / "metrics.jsonl")) != without_time(lines(beside / "metrics.jsonl")):
            found.add("metrics")
        own, expected = digest(member), digest(beside)
        found |= {part for part in own.keys() | expected.keys() if own.get(part) != expected.get(part)}
        found |= unsound(member)
    return sorted(found)


def unsound(run):
    """What is wrong with one member's folder, whatever its numbers are."""
    found = set()
    if [path for path in run.rglob(".*") if path.name not in (".hydra", ".lock")]:
        found.add("temporary files")
    if checkpoint.valid_steps(run)[1]:
        found.add("checkpoints")
    if curves(run) != [(r["step"], tag, value) for r, tag, value in recorded(run)]:
        found.add("TensorBoard")
    return found


def members(run):
    """The run folder of each seed."""
    return sorted(run.glob("seed_*")) or [run]


def digest(run):
    """By name, every part of the state at the newest checkpoint; how long the files were is no part of it."""
    newest = checkpoint.load(run, checkpoint.valid_steps(run)[0][-1])
    parts = {"step": newest.step, "transitions": newest.rows.tobytes(), "best": newest.best}
    if newest.best is not None:
        parts["best policy"] = (checkpoint.find(run, "best") / checkpoint.POLICY).read_bytes()
    for name, part in newest.state.items():
        if name != "files":
            tree, tensors = pack(part)
            parts[name] = (tree, [tensor.numpy().tobytes() for tensor in tensors.values()])
    return parts


def recorded(run):
    """Every scalar of `metrics.jsonl`, as TensorBoard should have it: by tag, in order."""
    records = [(r, tag, rounded(value)) for r in lines(run / "metrics.jsonl") for tag, value in r.items()]
    return sorted(
        (record for record in records if record[1] not in ("step", "time")), key=lambda r: (r[1], r[0]["step"])
    )


def curves(run):
    """Every scalar that TensorBoard reads, by tag, in the order of the file; nothing unless there is one file."""
    if len(list(run.glob("events.out.tfevents.*"))) != 1:
        return []
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    accumulator.Reload()
    tags = sorted(accumulator.Tags()["scalars"])
    return [(event.step, tag, rounded(event.value)) for tag in tags for event in accumulator.Scalars(tag)]


def rounded(value):
    """TensorBoard's numbers are single ones."""
    return float(np.float32(value))
