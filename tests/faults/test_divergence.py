"""What is not finite, or breaks, ends a run before it is stored, and the run resumes from the last good state."""

import json
import weakref
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import toy_envs
from commands import SMALL, lines
from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv

from dpg_cli import bookkeeping
from dpg_cli.cli import build
from dpg_cli.environments.probe import Findings
from dpg_cli.storage import checkpoint

EVERY = ["eval.every=60", "checkpoint.every=30", "hydra.run.dir=run"]


class Fault(toy_envs.Reach):
    """Goes wrong at `at` of its own steps, or in the reset after it; what it is, no run knows."""

    fault: ClassVar[tuple[str, int] | None] = None

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed, options=options)
        return self._wrong("reset ", obs), info

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        MADE[self] = MADE.get(self, 0) + 1
        obs = self._wrong("", obs)
        if self.fault in (("reward nan", MADE[self]), ("reward inf", MADE[self])):
            reward = float(self.fault[0].split()[1])
        return obs, reward, terminated, truncated, info

    def _wrong(self, when, obs):
        kind, at = self.fault or ("", 0)
        due = MADE.get(self, 0) >= at if when else MADE[self] == at
        if not due or not kind.startswith(when or "step "):
            return obs
        match kind.split()[1:]:
            case ["raise"]:
                raise RuntimeError("the simulator\nbroke")
            case ["shape"]:
                return obs[:1]
            case [value]:
                return obs * float(value)


class Unstable(HalfCheetahEnv):
    """A simulation that MuJoCo resets by itself."""

    fault: ClassVar[tuple[str, int] | None] = None

    def step(self, action):
        MADE[self] = MADE.get(self, 0) + 1
        if self.fault is not None and MADE[self] == self.fault[1]:
            self.data.qvel[:] = 1e12
        return super().step(action)


MADE = weakref.WeakKeyDictionary()  # steps of each environment, outside of it: evaluations put theirs back

gym.register("Toy/Fault-v0", entry_point=Fault, max_episode_steps=20)
gym.register("Toy/Unstable-v0", entry_point=Unstable, max_episode_steps=20)


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def whole(train, known):
    """The evaluations of a run in which nothing goes wrong."""

    def evaluations(*more):
        if more not in known:
            assert train("env=Toy/Fault-v0", *SMALL, *EVERY, *more, "hydra.run.dir=whole")[0] == 0
            known[more] = lines(Path("whole") / "evaluations.jsonl")
        return known[more]

    return evaluations


def stopped(result, *texts):
    code, _, err = result
    assert code == 1, err
    assert err.count("\n") == 1
    for text in texts:
        assert text in err


def sound(run, steps):
    """Nothing bad was stored, and the last checkpoint is whole."""
    good, bad = checkpoint.valid_steps(run)
    assert (good[-1], bad) == (steps, {})
    loaded = checkpoint.load(run, steps)
    assert all(np.isfinite(loaded.rows[name]).all() for name in loaded.rows.dtype.names)
    policy, _ = checkpoint.policy_tensors(checkpoint.find(run, "latest"))
    assert all(tensor.isfinite().all() for tensor in policy.values())
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed"


TRAINING = {
    "reward nan": (41, "seed 0, step 41: reward is not finite"),
    "reward inf": (41, "seed 0, step 41: reward is not finite"),
    "step nan": (41, "seed 0, step 41: obs is not finite"),
    "step inf": (41, "seed 0, step 41: obs is not finite"),
    "step raise": (41, "RuntimeError: the simulator broke"),
    "step shape": (41, "an observation has shape"),
    "reset nan": (31, "seed 0, step 40: obs is not finite"),
    "reset inf": (31, "seed 0, step 40: obs is not finite"),
    "reset raise": (31, "RuntimeError: the simulator broke"),
    "reset shape": (31, "an observation has shape"),
}
# An environment of the evaluation makes 20 steps at each: its 45th in the one at step 40, before the training's.
EVALUATION = {
    "reward nan": (45, "seed 0, evaluation at step 40: reward is not finite"),
    "step nan": (45, "seed 0, evaluation at step 40: obs is not finite"),
    "step raise": (45, "RuntimeError: the simulator broke"),
    "step shape": (45, "an observation has shape"),
}
# With an evaluation every 10 steps, it has made 80 steps at its reset at step 40.
RESETS = {
    "reset nan": (70, "seed 0, evaluation at step 40: obs is not finite"),
    "reset raise": (70, "RuntimeError: the simulator broke"),
    "reset shape": (70, "an observation has shape"),
}
CASES = [(kind, [], at, text) for kind, (at, text) in TRAINING.items()]
CASES += [(kind, ["eval.every=20"], at, text) for kind, (at, text) in EVALUATION.items()]
CASES += [(kind, ["eval.every=10"], at, text) for kind, (at, text) in RESETS.items()]


@pytest.mark.parametrize(("kind", "more", "at", "message"), CASES)
def test_an_environment_that_goes_wrong(train, whole, tmp_path, monkeypatch, kind, more, at, message):
    arguments = ["env=Toy/Fault-v0", *SMALL, *EVERY, *more]
    with monkeypatch.context() as patch:
        patch.setattr(build, "probe", lambda *_, **__: Findings(thread_problem="not tried"))  # it makes steps too
        patch.setattr(Fault, "fault", (kind, at))
        stopped(train(*arguments), message)
    raised_at = {"step raise": 40, "reset raise": 40 if more else 39}.get(kind, 30)  # then with a checkpoint of its own
    sound(tmp_path / "run", raised_at)
    code, out, err = train("resume=run")
    assert (code, err) == (0, "")
    assert f"resuming at step {raised_at}" in out
    if raised_at == 30 or more:  # else it starts a new episode
        assert lines(tmp_path / "run" / "evaluations.jsonl") == whole(*more)


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_a_simulation_that_mujoco_resets(train, tmp_path, monkeypatch, where):
    more, at, when = ([], 41, "step 41") if where == "training" else (["eval.every=20"], 45, "evaluation at step 40")
    with monkeypatch.context() as patch:
        patch.setattr(build, "probe", lambda *_, **__: Findings(thread_problem="not tried"))
        patch.setattr(Unstable, "fault", ("", at))
        result = train("env=Toy/Unstable-v0", *SMALL, *EVERY, *more)
        stopped(result, f"seed 0, {when}: the simulation became unstable and was reset by MuJoCo")
    sound(tmp_path / "run", 30)
    assert train("resume=run")[0] == 0


@pytest.mark.parametrize(
    ("rate", "log_every", "message"),
    [
        ("algo.actor_lr=1e300", 1_000, "action is not finite"),
        ("algo.critic_lr=1e300", 1, "is not finite"),  # a loss, or a gradient
        ("algo.critic_lr=1e300", 1_000, "is not finite"),  # a network, if no average was looked at before
    ],
)
def test_a_learner_that_diverges(train, tmp_path, rate, log_every, message):
    arguments = ["env=Toy/Fault-v0", *SMALL, *EVERY, "learning_starts=35", "random_steps=32", rate]
    stopped(train(*arguments, f"log.every={log_every}"), "seed 0", message)
    sound(tmp_path / "run", 30)


@pytest.mark.parametrize("value", [1e39, -1e39])
def test_a_reward_that_only_float32_cannot_hold_is_not_stored(train, tmp_path, value):
    arguments = ["env=toy_envs:Toy/Endless-v0", *SMALL, "env.max_episode_steps=20", *EVERY]
    code, _, err = train(*arguments, "env.kwargs.bad_step=45", f"env.kwargs.value={value}")
    assert code == 1
    assert "step 45: reward is not finite" in err
    assert checkpoint.valid_steps(tmp_path / "run")[0] == [0, 30]


def test_moments_that_are_not_finite_are_not_saved(train, tmp_path):
    """The square of a loss overflows, and the weights stay finite."""
    arguments = ["env=toy_envs:Toy/Endless-v0", *SMALL, "env.max_episode_steps=20", *EVERY, "log.every=1000"]
    code, _, err = train(*arguments, "env.kwargs.bad_step=45", "env.kwargs.value=1e25", "checkpoint.keep=9")
    assert code == 1
    assert "not finite" in err
    steps = checkpoint.valid_steps(tmp_path / "run")[0]
    state = checkpoint.load(tmp_path / "run", steps[-1]).state
    assert bookkeeping.all_finite([state["algorithm"], state["averages"]])


def test_priorities_whose_sum_would_overflow(train, tmp_path):
    arguments = ["env=toy_envs:Toy/Endless-v0", *SMALL, "env.max_episode_steps=20", *EVERY, "log.every=1000"]
    given = ["env.kwargs.bad_step=35", "env.kwargs.value=1.5e308", "replay=lap", "replay.alpha=1", "precision=float64"]
    stopped(train(*arguments, *given), "seed 0", "not finite")
    assert checkpoint.valid_steps(tmp_path / "run")[1] == {}
