"""Each switch of an update by hand, in float64: Huber error, windows, weight decay, clipping, hard copies."""

import numpy as np
import pytest
import torch
from test_algorithms import Q_NEXT, Q_ONLINE, linear, mu, numpy_batch, q, scalar
from test_trainer import Run, composed
from tiny_algorithms import make, make_batch, of_member

from dpg_cli.algorithms import ALGORITHMS, Batch
from dpg_cli.algorithms.base import huber_error, squared_error
from dpg_cli.algorithms.ddpg import DDPG
from dpg_cli.cli.memory import learner_bytes
from dpg_cli.storage.shapes import check_form
from dpg_cli.storage.state_tree import pack, unpack

BOTH = [("ddpg", {}), ("td3", {"policy_noise": 0.0})]
NAMES = sorted(ALGORITHMS)


def transitions(rewards, discount, terminated=0.0):
    """s = 1, a = 0.5, s' = 3, with these rewards and discounts."""
    size = len(rewards)
    values = [torch.full((1, size, 1), value, dtype=torch.float64) for value in (1.0, 0.5, 3.0)]
    reward, discount = (torch.tensor(numbers, dtype=torch.float64)[None] for numbers in (rewards, discount))
    ends = torch.full((1, size), terminated, dtype=torch.float64)
    return Batch(*values[:2], reward, values[2], ends, discount, values[2])


def recorded(optimizer):
    """The gradients that an optimizer is given, by tensors of its network."""
    found, step = [], optimizer.step

    def remember(gradient):
        parts = optimizer.network.views(gradient) if isinstance(gradient, torch.Tensor) else gradient
        found.append([part.clone() for part in parts])
        step(gradient)

    optimizer.step = remember
    return found


def optimizers(algorithm):
    return [optimizer for _, optimizer in sorted(algorithm.optimizers().items())]


# --- the critics' error ---


def test_errors_by_hand():
    """δ of ±0.5, 1, -3 and 2.5; the mean over the batch, the sum over the critics."""
    values = torch.tensor([[[0.5, 1.0, -3.0]], [[-0.5, 0.0, 2.5]]], dtype=torch.float64)
    target = torch.zeros(1, 3, dtype=torch.float64)
    huber, squared = huber_error(values, target), squared_error(values, target)
    assert huber.loss.item() == pytest.approx((0.125 + 0.5 + 2.5) / 3 + (0.125 + 0 + 2.0) / 3, rel=1e-15)
    assert squared.loss.item() == pytest.approx((0.25 + 1 + 9) / 3 + (0.25 + 0 + 6.25) / 3, rel=1e-15)
    expected = np.array([[[0.5, 1, -1]], [[-0.5, 0, 1]]]) / 3
    np.testing.assert_allclose(huber.gradient, expected, rtol=1e-15)
    np.testing.assert_allclose(squared.gradient, 2 * values / 3, rtol=1e-15)
    for errors in (huber, squared):
        assert torch.equal(errors.td_error, values)


@pytest.mark.parametrize(("name", "changes"), BOTH)
def test_an_update_with_huber_error(name, changes):
    """Two terminal transitions with rewards below and above Q by less and by more than 1."""
    algorithm = scalar(name, huber=True, **changes)
    near, far = Q_ONLINE - 0.25, Q_ONLINE + 3.0
    learned = algorithm.update(transitions([near, far], [0.9, 0.9], terminated=1.0))
    critics = 2 if name == "td3" else 1
    loss = critics * (0.5 * 0.25**2 + (3.0 - 0.5)) / 2
    assert learned.scalars["loss/critic"].item() == pytest.approx(loss, rel=1e-12)
    # dL/dw = mean of clip(Q - y, ±1) (s, a, 1)
    norm = abs(0.25 - 1.0) / 2 * np.sqrt((1 + 0.25 + 1) * critics)
    assert learned.scalars["grad/critic_norm"].item() == pytest.approx(norm, rel=1e-12)
    np.testing.assert_allclose(learned.td_error, np.broadcast_to([0.25, -3.0], (critics, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize(("name", "changes"), BOTH)
def test_td_errors_are_values_minus_targets_before_the_update(name, changes):
    algorithm, batch = make(name, seeds=(3, 8), **changes), make_batch(members=2, size=7)
    expected = []
    for member in range(2):
        alone = make(name, seeds=((3, 8)[member],), **changes)
        obs, action, reward, next_obs, terminated = numpy_batch(of_member(batch, member))
        critics = range(alone.critic.members[0])
        next_action = mu(alone.target_actor, next_obs)
        next_q = np.min([q(alone.target_critic, k, next_obs, next_action) for k in critics], axis=0)
        target = reward + 0.99 * (1 - terminated) * next_q
        expected.append([q(alone.critic, k, obs, action) - target for k in critics])
    td_error = algorithm.update(batch).td_error
    np.testing.assert_allclose(td_error.numpy(), np.moveaxis(expected, 0, 1), rtol=1e-10)
    assert not td_error.requires_grad


# --- windows ---


@pytest.mark.parametrize("terminated", [0.0, 1.0])
@pytest.mark.parametrize(("name", "changes"), BOTH)
def test_each_window_has_the_discount_of_its_own_steps(name, changes, terminated):
    """Windows of 1, 2 and 3 steps of reward 2 at γ = 0.9, as a replay returns them."""
    rewards, discounts = [2.0, 2 + 0.9 * 2, 2 + 0.9 * 2 + 0.81 * 2], [0.9, 0.81, 0.729]
    learned = scalar(name, **changes).update(transitions(rewards, discounts, terminated))
    targets = np.array(rewards) + np.array(discounts) * (1 - terminated) * Q_NEXT
    np.testing.assert_allclose(learned.td_error[0, 0], Q_ONLINE - targets, rtol=1e-12)
    assert learned.scalars["value/target_mean"].item() == pytest.approx(targets.mean(), rel=1e-12)


# --- optimizers ---


@pytest.mark.parametrize("autograd", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_of_all_networks_is_torchs_adamw(name, l2, autograd):
    algorithm = make(name, autograd=autograd, weight_decay=0.3, critic_weight_decay=l2, actor_lr=0.01, critic_lr=0.02)
    given, references = {}, {}
    for optimizer in optimizers(algorithm):
        given[optimizer] = recorded(optimizer)
        start = optimizer.network.flat.detach().clone().requires_grad_()
        decay = {"weight_decay": 0.3} if optimizer.l2 == 0 else {"weight_decay": optimizer.l2}
        kind = torch.optim.AdamW if optimizer.l2 == 0 else torch.optim.Adam
        references[optimizer] = start, kind([start], lr=optimizer.lr, **decay)
    assert {optimizer.l2 for optimizer in optimizers(algorithm)} == {0.0, l2}
    for update in range(8):
        algorithm.update(make_batch(seed=update))
    for optimizer, (parameters, reference) in references.items():
        for gradient in given[optimizer]:
            if optimizer.l2:  # which torch does not combine with decoupled decay
                parameters.data.mul_(1 - optimizer.lr * 0.3)
            parameters.grad = torch.cat([part.flatten() for part in gradient])
            reference.step()
        assert len(given[optimizer]) >= 4
        torch.testing.assert_close(optimizer.network.flat.detach(), parameters.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("autograd", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_clipped_for_each_network_of_each_member(name, autograd):
    """Beside a member whose gradients are a thousand times as large, a small gradient stays as it is."""
    seeds = (3, 8)
    plain = make(name, seeds=seeds, autograd=autograd, max_grad_norm=None)
    batch = make_batch(members=2)
    batch.reward[1] *= 1e3
    batch.obs[1] *= 1e3  # the gradient of a cross-entropy is bounded, whatever the reward is
    unclipped = recorded(plain.critic_optimizer)
    norms = plain.update(batch).scalars["grad/critic_norm"]
    limit = float(norms.log().mean().exp())
    assert norms[0] < limit / 5 < limit * 5 < norms[1]

    algorithm = make(name, seeds=seeds, autograd=autograd, max_grad_norm=limit)
    clipped = recorded(algorithm.critic_optimizer)
    torch.testing.assert_close(algorithm.update(batch).scalars["grad/critic_norm"], norms, rtol=1e-14, atol=0)
    for member in range(2):
        own, before = ([part.select(part.dim() - 3, member) for part in found[0]] for found in (clipped, unclipped))
        parameters = [torch.zeros_like(part).requires_grad_() for part in before]
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        assert norm.item() == pytest.approx(norms[member].item(), rel=1e-12)
        for part, gradient, parameter in zip(own, before, parameters, strict=True):
            torch.testing.assert_close(part, parameter.grad, rtol=1e-5, atol=0)  # torch adds 1e-6 to the norm
            assert torch.equal(part, gradient) is (member == 0)
    after = torch.cat([part.select(part.dim() - 3, 1).flatten() for part in clipped[0]]).norm()
    assert after.item() == pytest.approx(limit, rel=1e-12)


def test_a_single_member_is_clipped_too():
    plain, clipped = make("ddpg"), make("ddpg", max_grad_norm=1e-3)
    given = [recorded(algorithm.actor_optimizer) for algorithm in (plain, clipped)]
    norm = clipped.update(make_batch()).scalars["grad/actor_norm"].item()
    plain.update(make_batch())
    assert norm > 1e-3
    assert torch.cat([part.flatten() for part in given[1][0]]).norm().item() == pytest.approx(1e-3, rel=1e-12)


def test_a_gradient_of_zero_is_not_divided_by():
    algorithm = scalar("ddpg", max_grad_norm=0.5)
    linear(algorithm.critic, [0.0, 0.0])
    learned = algorithm.update(transitions([0.0], [0.9], terminated=1.0))
    assert learned.scalars["grad/critic_norm"].item() == 0
    assert algorithm.critic.flat.isfinite().all()


# --- targets ---


@pytest.mark.parametrize(
    ("name", "every", "changes"),
    [("ddpg", 3, {}), ("ddpg", 1, {}), ("td3", 4, {"policy_delay": 2}), ("td3", 3, {"policy_delay": 3})],
)
def test_hard_copies_come_at_each_multiple_and_never_between(name, every, changes):
    algorithm = make(name, target_copy_every=every, **changes)
    pairs = [(algorithm.actor, algorithm.target_actor), (algorithm.critic, algorithm.target_critic)]
    for update in range(1, 10):
        before = [target.flat.clone() for _, target in pairs]
        algorithm.update(make_batch(seed=update))
        for (online, target), old in zip(pairs, before, strict=True):
            assert torch.equal(target.flat, online.flat if update % every == 0 else old)


@pytest.mark.parametrize(("delay", "every"), [(2, 3), (2, 1), (5, 12)])
def test_td3_copies_targets_with_the_actor(delay, every):
    message = f"^target_copy_every={every}: must be a multiple of policy_delay={delay}, since targets are updated with"
    with pytest.raises(ValueError, match=message):
        make("td3", policy_delay=delay, target_copy_every=every)


@pytest.mark.parametrize(
    ("name", "changes", "kinds"),
    [
        ("ddpg", {}, {(True, True)}),
        ("ddpg", {"target_copy_every": 7}, {(True, False), (True, True)}),
        ("td3", {"policy_delay": 1}, {(True, True)}),
        ("td3", {"policy_delay": 3}, {(False, True), (True, True)}),
        ("td3", {"policy_delay": 2, "target_copy_every": 2}, {(False, False), (True, True)}),
        ("td3", {"policy_delay": 2, "target_copy_every": 6}, {(False, False), (True, False), (True, True)}),
        ("td3", {"policy_delay": 1, "target_copy_every": 10**15}, {(True, False), (True, True)}),
    ],
)
def test_kinds_are_all_that_occur_each_with_its_first_update(name, changes, kinds):
    algorithm = make(name, **changes)
    assert algorithm.kinds().keys() == kinds
    for kind, number in algorithm.kinds().items():
        earlier = [algorithm.kind(n) for n in range(1, min(number, 100))]
        assert algorithm.kind(number) == kind
        assert kind not in earlier
    assert {algorithm.kind(number) for number in range(1, 100)} <= kinds


# --- further state of an algorithm ---


class Bounded(DDPG):
    """DDPG that keeps the largest targets of each member, as an algorithm with value bounds would."""

    def declare(self):
        super().declare()
        self.member_state["largest"] = torch.zeros(len(self.generators), 3, device=self.device, dtype=self._dtype)

    def update(self, batch):
        learned = super().update(batch)
        largest = self.member_state["largest"]
        largest.copy_(torch.maximum(largest, learned.scalars["value/target_mean"][:, None] * largest.new_ones(3)))
        return learned


@pytest.fixture
def bounded(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "ddpg", Bounded)


@pytest.mark.usefixtures("bounded")
def test_member_state_is_saved_and_loaded_for_each_member():
    algorithm, other = make("ddpg", seeds=(3, 8)), make("ddpg", seeds=(3, 8))
    batch = make_batch(members=2)
    batch.reward.add_(torch.tensor([[5.0], [9.0]]))
    algorithm.update(batch)
    largest = algorithm.member_state["largest"]
    assert 0 < largest[0, 0] < largest[1, 0]
    states = [unpack(*pack(algorithm.state(member))) for member in (0, 1)]
    assert torch.equal(states[1]["member_state"]["largest"], largest[1])
    other.load_state(states)
    assert torch.equal(other.member_state["largest"], largest)
    assert any(tensor is other.member_state["largest"] for tensor in other.static_tensors())

    swapped = make("ddpg", seeds=(3, 8))
    swapped.load_state(states[::-1])
    assert torch.equal(swapped.member_state["largest"], largest.flip(0))


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("wrong", [{}, {"largest": torch.zeros(1, dtype=torch.float64)}, {"largest": None}])
def test_other_member_state_is_rejected(wrong):
    algorithm = make("ddpg")
    state = algorithm.state(0)
    with pytest.raises(ValueError, match="member_state"):
        check_form(state, state | {"member_state": wrong}, "seed 0")
    with pytest.raises((ValueError, KeyError, AttributeError)):
        algorithm.load_state([state | {"member_state": wrong}])


def test_member_state_is_counted(monkeypatch):
    config = composed("num_seeds=4")
    without = learner_bytes(config, 2, 1)
    monkeypatch.setitem(ALGORITHMS, "ddpg", Bounded)
    assert learner_bytes(config, 2, 1) == without + 4 * 3 * 4


@pytest.mark.usefixtures("bounded")
def test_a_run_with_member_state_resumes_exactly(tmp_path):
    given = ["num_seeds=2", "truncation_bootstraps=false"]
    whole = Run(tmp_path / "whole", *given)
    Run(tmp_path / "parts", *given, stop_at=33)
    resumed = Run(tmp_path / "parts", *given, start=33)
    for member in range(2):
        own, other = (run.training.algorithm.state(member) for run in (resumed, whole))
        torch.testing.assert_close(own, other, rtol=0, atol=0)


def test_only_declared_periods_can_be_due():
    """Another one would be in no captured or compiled kind of update, and its branch would never run there."""
    algorithm = make("td3", target_copy_every=6)
    assert algorithm.periods == (2, 6)
    with pytest.raises(ValueError, match="7 is not among the periods"):
        algorithm.due(7)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_decay_that_turns_signs_is_rejected(name):
    with pytest.raises(ValueError, match=r"weight_decay=1000\.0: times actor_lr=0\.001 it must be below 1"):
        make(name, weight_decay=1e3, actor_lr=1e-3)
