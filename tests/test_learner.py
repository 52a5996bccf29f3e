"""Captured learning, by a CPU's stand-in for graphs: the same numbers as the ordinary loop, and nothing waits."""

import contextlib

import numpy as np
import pytest
import torch
from test_trainer import Run, composed, records
from tiny_algorithms import plain_update

from dpg_cli.algorithms.td3 import TD3
from dpg_cli.capture import CaptureError, capture, warm_up
from dpg_cli.captured_learner import AHEAD, CapturedLearner
from dpg_cli.cli import build, learners
from dpg_cli.cli.learners import new_algorithm
from dpg_cli.learner import Learner
from dpg_cli.replay import DeviceReplay, Replay, Step

# A batch of 16 and one action: a CPU draws such noise in one block as it does one by one.
ALIKE = ["algo.batch_size=16", "precision=float64", "learning_starts=0", "total_steps=120", "checkpoint.every=45"]
CASES = [
    ["algo=td3"],
    ["algo=td3", "num_seeds=2", "num_envs=3", "algo.normalize_obs=true"],
    ["algo=td3", "algo.policy_delay=3", "updates_per_step=2", "buffer_size=50"],
    ["algo=ddpg", "num_seeds=2", "noise=ou", "updates_per_step=0.5"],
    ["algo=td3", "algo.policy_delay=1", "algo.policy_noise=0", "random_steps=70", "algo.critic_weight_decay=1e-2"],
    ["algo=td3", "algo.hidden_sizes=[64,64]", "precision=bf16", "algo.critic_action_layer=2"],
    ["algo=td3", "replay=lap", "algo.n_steps=3", "num_seeds=2", "num_envs=3", "truncation_bootstraps=false"],
    ["algo=ddpg", "replay=lap", "buffer_size=50", "algo.target_copy_every=7", "algo.max_grad_norm=0.1"],
    ["experiment=simba_td3", "network.actor_size=8", "network.critic_size=8", "algo.n_steps=2", "num_seeds=2"],
]
CPU = torch.device("cpu")


class ChoosingAsOnADevice(Replay):
    """The ordinary replay, but a batch is the remainders of large numbers, as `DeviceReplay` has it."""

    def sample(self, batch_size):
        numbers = [
            torch.empty(batch_size, dtype=torch.int64).random_(0, DeviceReplay.NUMBERS, generator=g)
            for g in self.generators
        ]
        chosen = torch.stack(numbers)
        if self.priorities is None:
            self._sampled = chosen % self.size
        else:
            self._sampled = self.priorities.find(chosen.double() / DeviceReplay.NUMBERS)
        return self._batch(self._sampled, self.added % self.capacity)


@pytest.fixture
def captured(monkeypatch):
    """Make runs learn by captured work."""
    new = build.new_learner
    monkeypatch.setattr(build, "new_learner", lambda *args, captured: new(*args, captured=True))


def evaluations(run):
    return [run.lines("evaluations.jsonl", member) for member in range(len(run.folders))]


def parameters(run):
    algorithm = run.training.algorithm
    networks = (algorithm.actor, algorithm.critic, algorithm.target_actor, algorithm.target_critic)
    return torch.cat([network.flat.detach() for network in networks])


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_it_learns_what_the_ordinary_loop_learns(tmp_path, monkeypatch, request, overrides):
    with monkeypatch.context() as patch:
        patch.setattr(learners, "Replay", ChoosingAsOnADevice)
        expected = Run(tmp_path / "ordinary", *ALIKE, *overrides)
    request.getfixturevalue("captured")
    run = Run(tmp_path / "captured", *ALIKE, *overrides)
    assert type(expected.training.learner) is Learner
    assert type(run.training.learner) is CapturedLearner
    assert run.updates == expected.updates > 50
    assert evaluations(run) == evaluations(expected)
    assert records(run) == records(expected)
    np.testing.assert_array_equal(run.stored(), expected.stored())
    assert torch.equal(parameters(run), parameters(expected))


def test_an_update_by_automatic_differentiation_is_captured_too(tmp_path, monkeypatch, request):
    monkeypatch.setattr(TD3, "update", plain_update)
    with monkeypatch.context() as patch:
        patch.setattr(learners, "Replay", ChoosingAsOnADevice)
        expected = Run(tmp_path / "ordinary", *ALIKE, "algo=td3")
    request.getfixturevalue("captured")
    run = Run(tmp_path / "captured", *ALIKE, "algo=td3")
    assert type(run.training.learner) is CapturedLearner
    assert torch.equal(parameters(run), parameters(expected))


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("overrides", [*CASES[1:3], CASES[6]], ids=" ".join)
def test_a_stopped_run_resumes_exactly(tmp_path, overrides):
    whole = Run(tmp_path / "whole", *ALIKE, *overrides)
    first = Run(tmp_path / "parts", *ALIKE, *overrides, stop_at=51 if "num_envs=3" in overrides else 53)
    assert first.outcome.interrupted
    assert first.updates % AHEAD  # in the middle of what has been drawn ahead
    resumed = Run(tmp_path / "parts", *ALIKE, *overrides, start=first.outcome.step)
    assert evaluations(resumed) == evaluations(whole)
    assert records(resumed) == records(whole)
    assert torch.equal(parameters(resumed), parameters(whole))
    own, other = (run.training.replay.state(0) for run in (resumed, whole))
    torch.testing.assert_close(own.get("lap"), other.get("lap"), rtol=0, atol=0)


@pytest.mark.usefixtures("captured")
def test_a_checkpoint_changes_nothing(tmp_path):
    often, never = (Run(tmp_path / every, *ALIKE, "algo=td3", f"checkpoint.every={every}") for every in ("7", "1000"))
    assert torch.equal(parameters(often), parameters(never))


def new_learner(*overrides, autograd=False):
    c = composed(*ALIKE, *overrides)
    algorithm = new_algorithm(c.model_copy(update={"compile": autograd}), 2, 1, CPU)
    learner = learners.new_learner(c, algorithm, 2, 1, captured=True)
    learner.prepare()
    return learner


def learn(learner, updates=1, *, acts_next=False, value=0.5):
    members, num_envs, _ = learner.replay.row_shape
    obs = np.full((members, num_envs, 2), value)
    reward = np.ones((members, num_envs))
    step = Step(obs, obs[..., :1], reward, obs, reward > 2, reward > 2)
    learner.learn(step, observed=obs, updates=updates, acts_next=acts_next)


def test_preparing_leaves_networks_optimizers_streams_and_replay_as_they_were():
    c = composed(*ALIKE, "algo=td3", "num_seeds=2", "algo.normalize_obs=true")
    fresh, learner = new_algorithm(c, 2, 1, CPU), new_learner("algo=td3", "num_seeds=2", "algo.normalize_obs=true")
    for member in range(2):
        before, after = fresh.state(member), learner.algorithm.state(member)
        torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert learner.replay.added == learner.replay.size == 0
    assert learner.averages.take() == [{}, {}]


def test_each_kind_of_update_is_captured_once_whatever_the_periods():
    many = ["algo=td3", "algo.policy_delay=50", "algo.target_copy_every=1000000000"]
    for overrides, kinds in (
        (["algo=td3", "algo.policy_delay=50"], 2),
        (["algo=ddpg"], 1),
        (["algo=ddpg", "algo.target_copy_every=7"], 2),
        (many, 3),
    ):
        assert len(new_learner(*overrides)._update) == kinds


@contextlib.contextmanager
def nothing_comes_to_the_host(monkeypatch):
    def refuse(*_):
        raise AssertionError("the host waits for the device")

    with monkeypatch.context() as patch:
        for name in ("item", "cpu", "tolist", "__bool__", "__int__", "__float__", "nonzero"):
            patch.setattr(torch.Tensor, name, refuse)
        yield


@pytest.mark.parametrize("overrides", [*CASES[:4], ["algo=td3", "compile=false", "num_envs=2"]], ids=" ".join)
def test_nothing_waits_for_the_device_between_two_log_points(monkeypatch, overrides):
    learner = new_learner(*overrides)
    members, num_envs, _ = learner.replay.row_shape
    with nothing_comes_to_the_host(monkeypatch):
        for step in range(3 * AHEAD):
            learn(learner, updates=step % 3, acts_next=step > AHEAD)
            if step > AHEAD:
                assert learner.act(np.zeros((members, num_envs, 2))).shape == (members, num_envs, 1)
    assert learner.averages.take()[0]["value/q_mean"] != 0
    assert learner.algorithm.updates == 3 * AHEAD


@pytest.mark.usefixtures("captured")
def test_nothing_waits_for_the_device_in_a_training(tmp_path, monkeypatch):
    def without_waiting(own):
        def run(*args, **kwargs):
            with nothing_comes_to_the_host(monkeypatch):
                return own(*args, **kwargs)

        return run

    monkeypatch.setattr(CapturedLearner, "learn", without_waiting(CapturedLearner.learn))
    monkeypatch.setattr(CapturedLearner, "act", without_waiting(CapturedLearner.act))
    assert Run(tmp_path, *ALIKE, "algo=td3", "num_seeds=2").updates == 105


def test_the_next_action_is_requested_before_updates_that_leave_the_actor_as_it_is(monkeypatch):
    order = []
    learner = new_learner("algo=td3", "algo.policy_delay=2")
    monkeypatch.setattr(learner._policy, "run", lambda: order.append("act"))
    learner._update = {kind: (lambda kind=kind: order.append(kind)) for kind in learner._update}
    for _ in range(2):
        learn(learner, acts_next=True)
    learn(learner, updates=2, acts_next=True)
    learn(learner, updates=0, acts_next=True)
    learn(learner, updates=3, acts_next=False)
    without, due = (False, True), (True, True)  # a change of the actor; targets have no period of their own
    act_first, act_last = ["act", without], [due, "act"]
    assert order == [*act_first, *act_last, without, *act_last, "act", without, due, without]


def test_evaluations_do_not_disturb_the_requested_action():
    learner, alone = new_learner("algo=td3"), new_learner("algo=td3")
    for each in (learner, alone):
        learn(each, acts_next=True)
    obs = np.random.default_rng(0).normal(size=(1, 5, 2))
    np.testing.assert_array_equal(learner.act_to_evaluate(obs), learner.algorithm.act(obs))
    np.testing.assert_array_equal(learner.act(obs[:, :1]), alone.act(obs[:, :1]))


def test_the_stand_in_refuses_what_a_graph_would_get_wrong():
    static, outside = torch.zeros(3), torch.ones(3)

    def fresh():
        static.copy_(torch.ones(3) + static)

    replay = capture(fresh, [static])
    replay()
    replay()
    assert static.tolist() == [2, 2, 2]
    with pytest.raises(CaptureError, match="a tensor from outside"):
        capture(lambda: static.add_(outside), [static])()
    with pytest.raises(CaptureError, match="a number to the host"):
        capture(lambda: static.add_(static.sum().item()), [static])()
    with pytest.raises(CaptureError, match="a number to the host"):
        capture(lambda: static.nonzero(), [static])()
    with pytest.raises(CaptureError, match="a number to the host"):
        capture(lambda: static[static > 0], [static])()
    with pytest.raises(CaptureError, match="a number to the host"):
        capture(lambda: static.__setitem__(static > 0, static[0]), [static])()
    g, other = torch.Generator(), torch.Generator()
    capture(lambda: static.normal_(generator=g), [static], [g])()
    for draw in (lambda: static.normal_(generator=other), lambda: static.normal_(), lambda: torch.randn(2)):
        with pytest.raises(CaptureError, match="a generator that is not registered"):
            capture(draw, [static], [g])()


def test_a_warm_up_runs_what_is_to_be_captured():
    static = torch.zeros(1)
    warm_up(lambda: static.add_(1), CPU)
    assert static.item() > 0


def test_storing_and_choosing_on_the_device_agree_with_the_host():
    g = torch.Generator().manual_seed(0)
    replay = DeviceReplay(7, 2, 1, [g, g], CPU, torch.float64, num_envs=2, discount=0.99)
    for first in range(0, 12, 2):
        rows = torch.arange(first, first + 2, dtype=torch.float64)[None, :, None] + torch.tensor([[[0.0]], [[100.0]]])
        replay.insert(rows.expand(2, 2, 7))
        replay.inserted()
    assert (replay.added, replay.size) == (12, 7)
    numbers = torch.randint(DeviceReplay.NUMBERS, (2, 500), generator=g)
    rewards = replay.batch(numbers).reward
    assert sorted(set(rewards[0].tolist())) == [5, 6, 7, 8, 9, 10, 11]
    assert sorted(set(rewards[1].tolist())) == [105, 106, 107, 108, 109, 110, 111]
    stored = [replay.rows(member, 0)["reward"].tolist() for member in range(2)]
    assert stored == [list(range(5, 12)), list(range(105, 112))]


def test_what_cannot_be_captured_learns_in_the_ordinary_way():
    c = composed(*ALIKE, "share_next_obs=true")
    assert type(learners.new_learner(c, new_algorithm(c, 2, 1, CPU), 2, 1, captured=True)) is Learner


def test_a_compiled_update_is_the_same_update():
    """By the compiler's own interpreter, which needs no C++ compiler."""
    plain, traced = new_learner("algo=td3"), new_learner("algo=td3", autograd=True)
    run = torch.compile(traced._learn_once, backend="aot_eager", fullgraph=True, dynamic=False)

    def with_grad_off(number):
        with torch.no_grad():
            run(number)

    traced._update = {kind: (lambda n=number: with_grad_off(n)) for kind, number in traced.algorithm.kinds().items()}
    for each in (plain, traced):
        learn(each, updates=6)
    torch.testing.assert_close(traced.algorithm.state(0), plain.algorithm.state(0), rtol=1e-12, atol=1e-14)
    torch._dynamo.reset()
