"""Environments in threads: the same numbers and errors as in a plain loop, and no threads where they do harm."""

import json
import logging
import os
import signal
import threading
import tracemalloc

import gymnasium as gym
import numpy as np
import pytest
from commands import SMALL, TOY, lines
from oracle import differences
from toy_envs import Alone, Reach, Sharing, local

from dpg_cli import config
from dpg_cli.cli import build, stepping
from dpg_cli.environments import threads as env_threads
from dpg_cli.environments.evaluation import evaluate, run_episodes
from dpg_cli.environments.make import make_env
from dpg_cli.environments.pool import Pool
from dpg_cli.environments.probe import probe
from dpg_cli.environments.rollout import Environments, collect
from dpg_cli.environments.shared import SharedState
from dpg_cli.environments.threads import PLAIN_LOOP, TRIALS, EnvThreads
from dpg_cli.errors import DivergedError, SimulatorError
from dpg_cli.noise import NoNoise
from dpg_cli.seeding import Purpose, generator

TIMEOUT = 30.0  # seconds; only a test that fails waits for so long
SEVERAL = [TOY, *SMALL, "num_seeds=2", "num_envs=2", "eval.episodes=3", "noise=ou", "hydra.run.dir=run"]


@pytest.fixture
def new_threads():
    """Makes `EnvThreads`, which are closed at the end."""
    made = []

    def new(*arguments, **named):
        made.append(EnvThreads(*arguments, **named))
        return made[-1]

    yield new
    assert all(threads.close() for threads in made)


class Policy:
    """A fixed policy that depends on the observation."""

    discount = 0.9

    def __init__(self, action_dim):
        self.action_dim = action_dim

    def act(self, obs):
        return np.sin(7.0 * obs[..., : self.action_dim] + np.arange(self.action_dim))

    act_to_evaluate = act

    def value(self, obs):
        return obs[..., 0]


def acted(make, threads, *, seeds=(3, 8), num_envs=3, total_steps=120):
    """Transitions, episodes and final states of a training, and an evaluation."""
    environments = Environments(local([[make() for _ in range(num_envs)] for _ in seeds], threads=threads), seeds)
    environments.reset()
    policy = Policy(environments.action_dim)
    streams = [[generator(seed, Purpose.NOISE, e) for e in range(num_envs)] for seed in seeds]
    noise = NoNoise(action_dim=environments.action_dim, generators=streams, episode_steps=None)
    made = list(collect(policy, environments, noise, step=0, total_steps=total_steps, random_steps=30))
    states = [environments.state(member) for member in range(len(seeds))]
    env_seeds = [[10 * seed + i for i in range(5)] for seed in seeds]
    envs = local([[make() for _ in range(5)] for _ in seeds], "evaluation", threads)
    trajectories = run_episodes(policy.act, envs, env_seeds, seeds=seeds, step=0)
    return made, states, tuple(trajectories), evaluate(policy, envs, seeds, 10)


def as_bytes(tree):
    """A tree of which `==` compares bits."""
    if isinstance(tree, dict):
        return {key: as_bytes(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [as_bytes(value) for value in tree]
    return (tree.dtype.str, tree.shape, tree.tobytes()) if isinstance(tree, np.ndarray) else tree


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_env("HalfCheetah-v4", max_episode_steps=13),
        lambda: make_env("HalfCheetah-v4", max_episode_steps=13, dtype=np.float64),
        lambda: make_env("Hopper-v4"),
        lambda: make_env("toy_envs:Toy/Reach-v0"),
        lambda: gym.wrappers.TimeLimit(Reach(), 9),
    ],
    ids=["float32", "float64", "episodes that terminate", "a toy", "not a FlatEnv"],
)
@pytest.mark.parametrize("count", [2, 4, 50])
def test_threads_change_no_number(new_threads, make, count):
    assert as_bytes(acted(make, new_threads(count))) == as_bytes(acted(make, PLAIN_LOOP))


def test_all_actions_are_mapped_to_the_box_as_each_alone():
    env = make_env("toy_envs:Toy/Reach-v0")
    action = np.random.default_rng(0).uniform(-1, 1, (2, 3, 1))
    mapped = env.own_actions(action)
    assert (mapped.shape, mapped.dtype) == ((2, 3, 1), np.float32)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(mapped[index], env.own_actions(action[index]))


def test_all_threads_step_at_the_same_time(new_threads):
    together = threading.Barrier(3)
    parts = []

    def work(part):
        together.wait(TIMEOUT)
        parts.append(list(part))

    new_threads(3).run("training", work, range(7))
    assert sorted(parts) == [[0, 1], [2, 3], [4, 5, 6]]


@pytest.mark.parametrize("changes", [[], ["precision=float64", "env=HalfCheetah-v4", "env.max_episode_steps=15"]])
def test_a_training_in_threads_is_the_same(train, trained, tmp_path, changes):
    arguments = [*SEVERAL, *changes]
    assert train(*arguments, "env_threads=3")[0] == 0
    assert differences(tmp_path / "run", trained(*arguments, "env_threads=1")) == []


def test_a_training_in_threads_is_resumed_exactly(train, signalled, trained, tmp_path):
    assert signalled("step", 9, [signal.SIGTERM], *SEVERAL, "env_threads=3")[0] == 143
    assert train("resume=run", "trust=true", "env_threads=2")[0] == 0
    assert differences(tmp_path / "run", trained(*SEVERAL, "env_threads=1")) == []
    assert "env_threads: 2" in (tmp_path / "run" / "config.yaml").read_text()


# --- errors ---


class Waiting(Reach):
    """Fails at its second step, after the other has failed or with nobody to wait for."""

    def __init__(self, name, failed, after=None, error=RuntimeError):
        super().__init__()
        self.name, self.failed, self.after, self.error = name, failed, after, error

    def step(self, action):
        if self.steps == 1:
            assert self.after is None or self.after.wait(TIMEOUT)
            self.failed.set()
            raise self.error(self.name)
        return super().step(action)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_the_first_error_in_order_is_raised_whichever_comes_first_in_time(new_threads, error):
    failed, last = threading.Event(), threading.Event()
    envs = [Reach(), Reach(), Reach(), Waiting("fourth", failed, last, error), Reach(), Waiting("sixth", last)]
    environments = Environments(local([envs], threads=new_threads(3)), (0,))
    environments.reset()
    environments.step(6, np.zeros((1, 6, 1)))
    with pytest.raises(SimulatorError, match=f"{error.__name__}: fourth"):
        environments.step(12, np.zeros((1, 6, 1)))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_seed_of_the_environment_that_fails_is_named(new_threads, count):
    broken = {"bad_step": 2, "bad": "reward"}
    envs = [[Reach(), Reach()], [Reach(), Reach(**broken)], [Reach(**broken), Reach()]]
    environments = Environments(local(envs, threads=new_threads(count)), (7, 42, 50))
    environments.reset()
    environments.step(6, np.zeros((3, 2, 1)))
    with pytest.raises(DivergedError, match=r"seed 42\b.*step 12\b.*reward"):
        environments.step(12, np.zeros((3, 2, 1)))
    envs = [[Reach(), Reach()], [Reach(), Reach(**broken)]]
    with pytest.raises(DivergedError, match=r"seed 42\b.*step 5000\b.*reward"):
        evaluate(Policy(1), local(envs, "evaluation", new_threads(count)), (7, 42), 5000)


@pytest.mark.parametrize(("bad", "reason"), [("raise", "RuntimeError: the simulator broke"), ("exit", "SystemExit: 0")])
def test_an_environment_that_ends_the_program_in_a_thread_is_a_failure(train, tmp_path, bad, reason):
    code, _, err = train(*SEVERAL, "env.kwargs.bad_step=41", f"env.kwargs.bad={bad}", "total_steps=90", "env_threads=4")
    assert (code, err.count("\n")) == (1, 1)
    assert reason in err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_a_signal_while_threads_are_waited_for(new_threads):
    threads, interrupted = new_threads(2), threading.Event()

    def work(part):
        if part[0] == 1:
            # To the thread that waits: the system may give a signal of the process to any thread. Python notices a
            # signal that comes just before a wait only after it.
            while not interrupted.wait(1.0):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        threads.run("training", work, range(2))
    interrupted.set()


def test_an_environment_that_hangs_is_not_closed(monkeypatch):
    monkeypatch.setattr(env_threads, "PATIENCE", 0.01)
    threads, go_on, closed = EnvThreads(2), threading.Event(), []
    training = build.build(config.validate(config.compose([TOY, *SMALL, "num_envs=2"])))
    training.environments.envs.threads = threads
    training.evaluation_envs.threads = threads
    monkeypatch.setattr(Reach, "close", lambda self: closed.append(self))

    def work(part):
        if part[0] == 1:
            assert go_on.wait(TIMEOUT)
        else:
            raise RuntimeError("first")

    with pytest.raises(RuntimeError, match="first"):
        threads.run("training", work, range(2))
    training.close()
    assert closed == []
    go_on.set()
    monkeypatch.setattr(env_threads, "PATIENCE", TIMEOUT)
    training.close()
    assert len(closed) == 4


# --- which environments ---


def problem_of(make):
    return probe("Any-v0", Pool(make)).thread_problem


UNSAFE = {
    "class": "its steps or resets change the class attribute Sharing.steps_of_all",
    "module": "its steps or resets change the global toy_envs.total_steps",
    "numpy": "its steps or resets change NumPy's global random generator",
    "python": "its steps or resets change Python's global random generator",
    "torch": "its steps or resets change torch's global random generator",
    "space": "its steps or resets change the class attribute Sharing.action_space",
}


@pytest.mark.parametrize("what", UNSAFE)
def test_what_environments_share_is_noticed(what):
    assert problem_of(lambda: gym.wrappers.TimeLimit(Sharing(what), 20)) == UNSAFE[what]


def test_metadata_says_that_an_environment_is_not_thread_safe():
    problem = "its metadata says that it is not thread-safe"
    assert problem_of(Alone) == problem_of(lambda: make_env("toy_envs:Toy/Alone-v0")) == problem


@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", "Humanoid-v5", "Pendulum-v1", "toy_envs:Toy/Reach-v0"])
def test_others_are_thread_safe(env_id):
    assert problem_of(lambda: make_env(env_id)) is None


def test_an_environment_that_cannot_be_tried_counts_as_not_thread_safe():
    assert problem_of(lambda: Reach(bad_step=3, bad="raise")) == "it could not be tried"


@pytest.mark.parametrize("env", ["Toy/Alone-v0", "Toy/Sharing-v0"])
def test_an_environment_that_is_not_thread_safe_is_stepped_in_a_plain_loop(train, tmp_path, env):
    arguments = [*SEVERAL, f"env=toy_envs:{env}", *(["env.kwargs.what=class"] if "Sharing" in env else [])]
    reason = UNSAFE["class"] if "Sharing" in env else "its metadata says that it is not thread-safe"
    code, out, err = train(*arguments, "env_threads=4")
    assert (code, err) == (0, "")
    assert f"note: env_threads=4: toy_envs:{env} is stepped in a plain loop instead: {reason}\n" in out
    assert f"environments are stepped one after another: {reason}\n" in (tmp_path / "run" / "train.log").read_text()


def test_without_several_threads_nothing_is_said(train, tmp_path):
    code, out, _ = train(*SEVERAL, "env=toy_envs:Toy/Alone-v0", "env_threads=1")
    assert code == 0
    assert "env_threads" not in out
    assert "one after another" not in (tmp_path / "run" / "train.log").read_text()


# --- how many threads, and whether ---


@pytest.mark.parametrize(
    ("cores", "given", "count"),
    [
        (64, [], 8),
        (5, [], 5),
        (4, [], 4),
        (3, [], 1),
        (1, [], 1),
        (64, ["eval.episodes=1"], 1),
        (64, ["eval.episodes=1", "num_envs=2", "num_seeds=3"], 6),
        (64, ["eval.episodes=3"], 3),
        (2, ["env_threads=6"], 6),
        (2, ["env_threads=30"], 10),
        (64, ["env_threads=1"], 1),
    ],
)
def test_how_many_threads(monkeypatch, cores, given, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert stepping.choose_env_threads(config.validate(config.compose(given))) == count


@pytest.mark.parametrize("faster", ["threads", "plain loop"])
def test_the_faster_way_is_kept(new_threads, caplog, faster):
    now, parts = [0.0], []

    def work(part):
        if part[0] == 0:  # the calling thread's, which alone takes time here
            parts.append(len(part))
            now[0] += len(part) if faster == "threads" else 1 / len(part)

    threads = new_threads(3, measured=True, clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for _ in range(TRIALS):
            for _ in range(2):
                threads.run("training", work, range(6))
                threads.run("evaluation", work, range(6))
    assert parts == [6, 6, 2, 2] * TRIALS
    way = "in 3 threads: 2000.000 ms per vector step in threads, 6000.000 ms one after another"
    if faster == "plain loop":
        way = "one after another: 500.000 ms per vector step in threads, 166.667 ms one after another"
    assert caplog.messages == [f"{kind} environments are stepped {way}" for kind in ("training", "evaluation")]
    parts.clear()
    for kind in ("training", "evaluation"):
        threads.run(kind, work, range(6))
    assert parts == ([2, 2] if faster == "threads" else [6, 6])


def test_a_single_environment_needs_no_thread_and_no_trial(new_threads):
    callers = []
    threads = new_threads(3, measured=True, clock=lambda: pytest.fail("measured"))
    for _ in range(3):
        threads.run("training", lambda part: callers.append(threading.get_ident()), range(1))
    assert set(callers) == {threading.get_ident()}


def test_auto_trains_to_the_same_numbers(train, trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
        assert train(*SEVERAL)[0] == 0
    assert differences(tmp_path / "run", trained(*SEVERAL, "env_threads=1")) == []
    log = (tmp_path / "run" / "train.log").read_text()
    assert "training environments are stepped " in log
    assert "evaluation environments are stepped " in log
    assert len(lines(tmp_path / "run" / "seed_0" / "evaluations.jsonl")) == 4


def test_large_shared_data_is_compared_without_copying_it(monkeypatch):
    import toy_envs

    monkeypatch.setattr(toy_envs, "DATA", np.zeros(20_000_000), raising=False)
    env = make_env("toy_envs:Toy/Reach-v0")
    tracemalloc.start()
    before = SharedState(env)
    toy_envs.DATA[7] = 1
    changes = before.changes()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    env.close()
    assert changes == ["the global toy_envs.DATA"]
    assert most < 10_000_000
