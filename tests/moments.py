"""Moments of a training at which something can be made to happen, for tests and `faults/run.py`."""

import functools

import gymnasium as gym

from dpg_cli import config, metrics
from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.cli import build, job
from dpg_cli.environments import evaluation, rollout
from dpg_cli.storage import checkpoint, run_dir
from dpg_cli.storage.atomic import Disk

# What is called while a run starts, in order; the handlers of signals are there from `begin` on.
START = [
    (config, "compose"),
    (build, "check"),
    (build, "probe"),
    (run_dir, "claim"),
    (job, "begin"),
    (job, "build"),
    (metrics.Recorder, "__init__"),
]
DISK = [(Disk, name) for name in ("make_folder", "write", "sync_folder", "rename", "link", "remove")]
MOMENTS = {
    "random steps": [(rollout.Environments, "random_action")],
    "step": [(rollout.Environments, "step")],
    "learning": [(algorithm, "update") for algorithm in ALGORITHMS.values()],
    "reset": [(gym.wrappers.TimeLimit, "reset")],
    **{name: [(owner, name)] for owner, name in START if name != "__init__"},
    "recorder": [(metrics.Recorder, "__init__")],
}


def at(moment, call, action, patch):
    """Have `action()` called just before the `call`-th of the calls, counted from 0, that make up a moment.

    Args:
        moment: `evaluation` (a step of one), `checkpoint` (a call to the disk) or one of `MOMENTS`.
        call: which.
        action: without arguments.
        patch: `setattr`, or that of pytest's monkeypatch.
    """
    due = once(call, action)
    if moment == "evaluation":
        whole = evaluation.run_episodes

        def run_episodes(act, *arguments, **named):
            return whole(before(act, due), *arguments, **named)

        patch(evaluation, "run_episodes", run_episodes)
    elif moment == "checkpoint":
        saving = []

        def within(save, *arguments):
            saving.append(True)
            try:
                return save(*arguments)
            finally:
                saving.clear()

        save = checkpoint.Checkpoints._save
        patch(checkpoint.Checkpoints, "_save", lambda *arguments: within(save, *arguments))
        for owner, name in DISK:
            patch(owner, name, before(getattr(owner, name), lambda: due() if saving else None))
    else:
        for owner, name in MOMENTS[moment]:
            patch(owner, name, before(getattr(owner, name), due))


def once(call, action):
    calls = 0

    def due():
        nonlocal calls
        calls += 1
        if calls == call + 1:
            action()

    return due


def before(function, action):
    @functools.wraps(function)
    def both(*arguments, **named):
        action()
        return function(*arguments, **named)

    return both
