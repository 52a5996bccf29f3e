"""The loop: when it learns, evaluates, records and saves, and what it stores."""

import functools
import json

import numpy as np
import pytest
import torch
from commands import EVERY_STEP
from numpy.lib.recfunctions import structured_to_unstructured

from dpg_cli import config
from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.cli.build import build
from dpg_cli.cli.memory import check_memory
from dpg_cli.environments.state import CannotCopy
from dpg_cli.errors import DivergedError, UserError
from dpg_cli.metrics import Recorder
from dpg_cli.storage import checkpoint
from dpg_cli.storage.atomic import Disk
from dpg_cli.storage.state_tree import pack
from dpg_cli.trainer import train

SMALL = ["env=toy_envs:Toy/Reach-v0", "algo=ddpg", "algo.hidden_sizes=[8]", "algo.batch_size=4", "total_steps=60"]
SMALL += ["random_steps=10", "eval.every=25", "eval.episodes=2", "checkpoint.every=30", "log.every=20", "threads=1"]


@functools.cache
def composed(*overrides):
    return config.validate(config.compose([*SMALL, *overrides]))


class Watcher:
    def __init__(self):
        self.steps, self.evaluations, self.lengths, self.steps_of_evaluations = [], [], [], []

    def started(self, step, evaluations):
        self.start = (step, evaluations[0].copy())

    def restarted(self, reason):
        pass

    def evaluating(self, steps):
        self.steps_of_evaluations.append(steps)

    def stepped(self, step, episodes):
        self.steps.append(step)
        self.lengths += [episode.length for episode in episodes]

    def evaluated(self, step, evaluations):
        self.evaluations.append(step)


class Run:
    """Train in a temporary folder and keep everything."""

    def __init__(self, tmp_path, *overrides, stop_at=None, stop=None, start=None):
        self.config = c = composed(*overrides)
        self.training = build(c)
        self.folders = [tmp_path / f"{seed}" for seed in self.training.environments.seeds]
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
        loaded = None if start is None else [checkpoint.load(folder, start) for folder in self.folders]
        starts = loaded or [None] * len(self.folders)
        for folder, own in zip(self.folders, starts, strict=True):
            if own is not None:
                checkpoint.rewind(folder, own, Disk())
        recorders = [
            Recorder(folder, c.model_dump(), folder.name, own and own.state["files"])
            for folder, own in zip(self.folders, starts, strict=True)
        ]
        writers = [
            checkpoint.Checkpoints(folder, {}, c.checkpoint.keep, start=own)
            for folder, own in zip(self.folders, starts, strict=True)
        ]
        self.watcher = Watcher()
        try:
            self.outcome = train(
                *self.training,
                recorders,
                writers,
                loaded,
                progress=self.watcher,
                stop=lambda: stop(self) if stop else stop_at in self.watcher.steps,
            )
        finally:
            for recorder in recorders:
                recorder.close()
            self.training.close()

    @property
    def updates(self):
        return self.training.algorithm.updates

    def lines(self, name, member=0):
        return [json.loads(line) for line in (self.folders[member] / name).read_text().splitlines()]

    def rows(self):
        return [self.training.replay.rows(member, 0) for member in range(len(self.folders))]

    def stored(self):
        return np.stack([structured_to_unstructured(rows) for rows in self.rows()])


@pytest.mark.parametrize(
    ("overrides", "updates"),
    [
        (["learning_starts=10"], 50),
        (["learning_starts=0"], 57),  # never before one batch of 4 is stored
        (["learning_starts=4"], 56),
        (["learning_starts=60"], 0),
        (["learning_starts=10", "updates_per_step=2"], 100),
        (["learning_starts=10", "updates_per_step=0.5"], 25),
        (["learning_starts=10", "num_envs=7"], 53),  # the last vector step ends at 63
        (["learning_starts=10", "num_envs=7", "updates_per_step=0.1"], 5),
    ],
)
def test_updates_follow_the_steps_after_learning_starts(tmp_path, overrides, updates):
    assert Run(tmp_path, *overrides).updates == updates


def test_random_phase_then_policy(tmp_path):
    # An actor that is not trained and no noise: after the random phase actions are the policy's.
    run = Run(tmp_path, "noise=none", "learning_starts=60")
    obs, action = run.stored()[0, :, :2], run.stored()[0, :, 2]
    policy = run.training.algorithm.act(obs[None])[0, :, 0]
    np.testing.assert_allclose(action[10:], policy[10:], atol=1e-6)
    assert not np.isclose(action[:10], policy[:10], atol=1e-3).any()


def test_evaluations_records_and_checkpoints_come_at_their_strides(tmp_path):
    run = Run(tmp_path)
    assert run.watcher.evaluations == [0, 25, 50, 60]
    assert [line["step"] for line in run.lines("evaluations.jsonl")] == [0, 25, 50, 60]
    assert [line["step"] for line in run.lines("metrics.jsonl")] == [0, 20, 25, 40, 50, 60, 60]
    names = sorted(p.name for p in (run.folders[0] / "checkpoints").glob("step_*"))
    assert names == ["step_000000030", "step_000000060"]  # keep: 2
    assert (run.folders[0] / "checkpoints" / "latest").readlink().name == "step_000000060"


def test_progress_is_told_of_every_step_of_an_evaluation_and_of_the_evaluations_before_a_resume(tmp_path):
    run = Run(tmp_path, stop_at=30)
    assert run.watcher.start == (0, [])
    assert run.watcher.steps_of_evaluations == [*range(1, 21)] * 2  # at 0 and 25
    resumed = Run(tmp_path, start=30)
    assert resumed.watcher.start == (30, run.outcome.evaluations[0])
    assert [step for step, _ in run.outcome.evaluations[0]] == [0, 25]


def test_with_several_environments_a_stride_fires_when_it_is_crossed(tmp_path):
    run = Run(tmp_path, "num_envs=7")
    assert run.watcher.steps == [7, 14, 21, 28, 35, 42, 49, 56, 63]
    assert run.watcher.evaluations == [0, 28, 56, 63]
    assert run.training.replay.size == 63


def test_best_is_the_policy_of_the_best_evaluation(tmp_path):
    run = Run(tmp_path, "learning_starts=10")
    means = {line["step"]: np.mean(line["returns"]) for line in run.lines("evaluations.jsonl")}
    best = (run.folders[0] / "checkpoints" / "best").readlink().name
    assert best == f"best_{max(means, key=means.get):09d}"
    assert run.outcome.best(0) == (max(means, key=means.get), pytest.approx(max(means.values())))
    assert run.outcome.final(0) == pytest.approx(means[60])


@pytest.mark.parametrize("bootstraps", [True, False])
def test_a_truncated_transition_is_no_terminal_one_unless_asked(tmp_path, bootstraps):
    run = Run(
        tmp_path, f"truncation_bootstraps={bootstraps}", "noise=none", "random_steps=0", "env.max_episode_steps=15"
    )
    (rows,) = run.rows()
    # Episodes of 15 steps end by truncation alone: |x| > 2 cannot be reached from |x| ≤ 1 so quickly at random.
    lengths_by_truncation = [14, 29, 44, 59]
    assert np.flatnonzero(rows["truncated"]).tolist() == lengths_by_truncation
    assert not rows["terminated"].any()  # as the environment reported it
    batch = run.training.replay.sample(500)
    ended = {float(r) for r in rows["reward"][lengths_by_truncation]}
    is_end = torch.tensor([float(r) in ended for r in batch.reward[0]])
    assert is_end.any()
    assert torch.equal(batch.terminated[0].bool(), is_end & (not bootstraps))
    # The next observation is the episode's own last one, so the chain breaks exactly there.
    breaks = [t for t in range(59) if not np.array_equal(rows["next_obs"][t], rows["obs"][t + 1])]
    assert breaks == [14, 29, 44]


def test_terminal_transitions_do_not_bootstrap(tmp_path):
    # Constant pushing to the right ends every episode by termination.
    run = Run(
        tmp_path,
        "learning_starts=400",
        "eval.episodes=1",
        "env.max_episode_steps=200",
        "total_steps=400",
        "random_steps=400",
    )
    (rows,) = run.rows()
    np.testing.assert_array_equal(rows["terminated"], np.abs(rows["next_obs"][:, 0]) > 2)


def test_scalars_are_averages_over_the_stride(tmp_path):
    every, whole = Run(tmp_path / "a", "log.every=1"), Run(tmp_path / "b", "log.every=60")
    for tag in ("loss/critic", "loss/actor", "value/q_mean", "noise/scale", "train/episode_return"):
        single = [line[tag] for line in every.lines("metrics.jsonl") if tag in line]
        (mean,) = [line[tag] for line in whole.lines("metrics.jsonl") if tag in line]
        assert mean == pytest.approx(np.mean(single), rel=1e-5), tag


def test_an_evaluation_more_or_less_changes_nothing_else(tmp_path):
    few, many = Run(tmp_path / "a", "eval.every=60"), Run(tmp_path / "b", "eval.every=7", "eval.episodes=3")
    np.testing.assert_array_equal(few.stored(), many.stored())


@pytest.mark.parametrize("limit", [15, None])
def test_a_colored_series_is_as_long_as_an_episode_may_be(tmp_path, limit):
    run = Run(tmp_path, "env=Pendulum-v1", "noise=pink", f"env.max_episode_steps={limit or 'null'}")
    assert run.training.noise.state(0)["series"].shape == (1, limit or 200, 1)


@pytest.mark.parametrize("noise", ["ou", "pink"])
def test_members_see_what_they_see_alone(tmp_path, noise):
    overrides = [
        "num_envs=2",
        f"noise={noise}",
        "precision=float64",
        "algo=td3",
        "algo.batch_size=4",
        "learning_starts=10",
    ]
    both = Run(tmp_path / "both", "seed=4", "num_seeds=2", *overrides)
    for member, seed in enumerate((4, 5)):
        alone = Run(tmp_path / f"{seed}", f"seed={seed}", *overrides)
        np.testing.assert_allclose(both.stored()[member], alone.stored()[0], rtol=1e-9, atol=1e-12)
        for own, beside in zip(alone.lines("evaluations.jsonl"), both.lines("evaluations.jsonl", member), strict=True):
            np.testing.assert_allclose(own["returns"], beside["returns"], rtol=1e-9)


def parameters(run, member):
    algorithm = run.training.algorithm
    networks = (algorithm.actor, algorithm.critic, algorithm.target_actor, algorithm.target_critic)
    return [t.select(t.dim() - 3, member) for network in networks for t in network.tensors().values()]


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_seed_k_beside_others_is_seed_k_alone(tmp_path, algo):
    """In float64, after 200 updates on a real environment, exploration and the ends of episodes among them."""
    overrides = ["env=HalfCheetah-v4", f"algo={algo}", "algo.hidden_sizes=[16,16]", "algo.batch_size=16"]
    overrides += ["precision=float64", "total_steps=260", "random_steps=40", "learning_starts=60", "eval.every=200"]
    overrides += ["env.max_episode_steps=70", *EVERY_STEP.get(algo, [])]
    together = Run(tmp_path / "together", "num_seeds=2", "seed=4", *overrides)
    assert together.updates == 200
    for member, seed in enumerate((4, 5)):
        alone = Run(tmp_path / f"alone_{seed}", f"seed={seed}", *overrides)
        np.testing.assert_allclose(together.stored()[member], alone.stored()[0], rtol=1e-9, atol=1e-9)
        for beside, own in zip(parameters(together, member), parameters(alone, 0), strict=True):
            np.testing.assert_allclose(beside, own, rtol=0, atol=1e-9)


def test_in_float32_members_agree_until_rounding_has_grown(tmp_path):
    overrides = ["env=HalfCheetah-v4", "algo=td3", "algo.hidden_sizes=[32,32]", "algo.batch_size=16", "total_steps=120"]
    overrides += ["random_steps=100", "learning_starts=100", "eval.every=100", "env.max_episode_steps=70"]
    together = Run(tmp_path / "together", "num_seeds=3", *overrides)
    for seed in range(3):
        alone = Run(tmp_path / f"alone_{seed}", f"seed={seed}", *overrides)
        np.testing.assert_array_equal(together.stored()[seed, :100], alone.stored()[0, :100])
        own, beside = (run.lines("evaluations.jsonl", member)[1] for run, member in ((alone, 0), (together, seed)))
        assert own["step"] == beside["step"] == 100
        np.testing.assert_allclose(own["returns"], beside["returns"], rtol=1e-3)


def test_an_evaluation_is_given_up_when_asked_to_stop(tmp_path):
    run = Run(tmp_path, "eval.every=33", stop_at=33)
    assert (run.outcome.interrupted, run.outcome.step) == (True, 33)
    run = Run(tmp_path / "last", stop_at=60)  # the request comes with the last step
    assert run.outcome.interrupted
    assert (run.folders[0] / "checkpoints" / "latest").readlink().name == "step_000000060"


def test_stopping_writes_a_checkpoint_and_no_evaluation(tmp_path):
    run = Run(tmp_path, stop_at=33)
    assert run.outcome.interrupted
    assert run.outcome.step == 33
    assert (run.folders[0] / "checkpoints" / "latest").readlink().name == "step_000000033"
    assert run.lines("evaluations.jsonl")[-1]["step"] == 25


def test_an_observation_of_another_shape_than_its_space_is_refused(tmp_path):
    with pytest.raises(ValueError, match="its space has shape"):
        Run(tmp_path, "++env.kwargs.bad_step=13", "++env.kwargs.bad=shape")


@pytest.mark.parametrize(("bad", "quantity"), [("reward", "reward"), ("obs", "obs")])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_not_finite_stops_before_it_is_stored(tmp_path, bad, quantity, value):
    with pytest.raises(DivergedError, match=rf"seed 0, step 41: {quantity} is not finite"):
        Run(
            tmp_path,
            "++env.kwargs.bad_step=41",
            f"++env.kwargs.bad={bad}",
            f"++env.kwargs.value={value}",
            "eval.every=60",
        )


def test_the_normaliser_sees_every_observation_that_is_acted_on(tmp_path):
    run = Run(tmp_path, "algo.normalize_obs=true", "learning_starts=60")
    normalizer = run.training.algorithm.actor.normalizer
    assert normalizer.count.item() == 61  # the first, and one a step
    acted_on = np.concatenate([run.stored()[0, :, :2], run.training.environments.obs[0]]).astype(np.float64)
    np.testing.assert_allclose(normalizer.mean[0, 0].numpy(), acted_on.mean(axis=0), rtol=1e-6)


def digest(run):
    """Everything that a run has come to."""
    tree, tensors = pack(checkpoint.load(run.folders[0], run.outcome.step).state)
    del tree["files"]
    return tree, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, run.stored().tobytes()


def records(run, member=0):
    lines = run.lines("metrics.jsonl", member)
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")} for line in lines]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run that was not stopped, trained once for all tests."""
    return functools.cache(lambda *overrides: Run(tmp_path_factory.mktemp("whole"), *overrides))


@pytest.mark.parametrize("stop_at", [1, 25, 41])
@pytest.mark.parametrize("env", ["env=toy_envs:Toy/Reach-v0", "env=HalfCheetah-v4", "env=Ant-v4", "env=Pendulum-v1"])
@pytest.mark.parametrize("others", [["algo=ddpg", "noise=ou"], ["algo=td3", "num_envs=2", "algo.normalize_obs=true"]])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, whole_run, stop_at, env, others):
    overrides = [env, *others, "algo.batch_size=4", "++env.max_episode_steps=17", "buffer_size=30", "total_steps=66"]
    whole = whole_run(*overrides)
    stop_at += stop_at % 2 if "num_envs=2" in overrides else 0
    first = Run(tmp_path / "parts", *overrides, stop_at=stop_at)
    assert first.outcome.interrupted
    parts = Run(tmp_path / "parts", *overrides, start=first.outcome.step)
    assert parts.lines("evaluations.jsonl") == whole.lines("evaluations.jsonl")
    assert records(parts) == records(whole)
    assert digest(parts) == digest(whole)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_a_run_that_shares_next_observations_is_the_same_run(tmp_path, num_envs, num_seeds):
    overrides = [f"num_envs={num_envs}", f"num_seeds={num_seeds}", "noise=ou", "noise.scale=1"]
    overrides += ["total_steps=100", "updates_per_step=0.4", "buffer_size=31", "env.max_episode_steps=15"]
    plain = Run(tmp_path / "plain", *overrides)
    shared = Run(tmp_path / "shared", *overrides, "share_next_obs=true")
    lengths = shared.watcher.lengths
    assert max(lengths) == 15  # truncated
    assert min(lengths) < 15  # terminated
    for member in range(num_seeds):
        assert shared.lines("evaluations.jsonl", member) == plain.lines("evaluations.jsonl", member)
        assert records(shared, member) == records(plain, member)
    assert digest(shared) == digest(plain)
    shards = [sorted((run.folders[0] / "replay").iterdir()) for run in (plain, shared)]
    assert [path.name for path in shards[0]] == [path.name for path in shards[1]]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]


@pytest.mark.parametrize("copied", [True, False])
def test_sharing_next_observations_goes_on_where_a_new_episode_begins_too(tmp_path, monkeypatch, copied):
    """Where an environment could not be copied, the last transition before has no successor, and did not end."""

    def cannot_copy(*_):
        raise CannotCopy

    if not copied:
        monkeypatch.setattr("dpg_cli.environments.group.set_state", cannot_copy)
    runs = []
    for shares in ("false", "true"):
        overrides = ["num_envs=2", "buffer_size=30", f"share_next_obs={shares}"]
        first = Run(tmp_path / shares, *overrides, stop_at=34)
        runs.append(Run(tmp_path / shares, *overrides, start=first.outcome.step))
    plain, shared = runs
    assert shared.lines("evaluations.jsonl") == plain.lines("evaluations.jsonl")
    assert records(shared) == records(plain)
    np.testing.assert_array_equal(shared.stored(), plain.stored())
    obs, next_obs = shared.stored()[0, :, :2], shared.stored()[0, :, 4:6]  # of the steps 31 to 60
    assert (next_obs[2:4] == obs[4:6]).all() == copied


def test_memory_is_asked_for_what_the_replay_takes(monkeypatch):
    plain, shared = (
        config.validate(config.compose([*SMALL, "buffer_size=1e6", "total_steps=1e6", f"share_next_obs={shares}"]))
        for shares in ("false", "true")
    )
    monkeypatch.setattr("dpg_cli.cli.memory.available_memory", lambda: 1_600_000_000)
    check_memory(shared, 376, 17, torch.device("cpu"))
    with pytest.raises(UserError, match=r"1,000,000 transitions for 1 seeds take 2\.9 GiB"):
        check_memory(plain, 376, 17, torch.device("cpu"))
