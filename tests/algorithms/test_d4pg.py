"""D4PG and its settings for FastTD3: the projection in plain loops, and updates in plain torch with a single seed."""

import copy
import math

import numpy as np
import pytest
import torch
from tiny_algorithms import make, make_batch
from torch.nn.functional import linear

from dpg_cli.algorithms.d4pg import project
from dpg_cli.networks import Expectation

SUPPORT = Expectation(-2.0, 3.0, 6)  # the atoms -2, -1, 0, 1, 2, 3
RANGE = {"v_min": -2.0, "v_max": 3.0, "num_atoms": 7}
FAST_TD3 = {"num_critics": 2, "policy_noise": 0.3, "noise_clip": 0.4, "policy_delay": 2, "use_target_actor": False}
FAST_TD3 |= {"target_copy_every": None, "tau": 0.1, "weight_decay": 0.1, "max_grad_norm": None}


def projected(p, values, support):
    """As in Bellemare et al. 2017, Algorithm 1, with the mass of a value that hits an atom kept."""
    width = (support.v_max - support.v_min) / (support.num_atoms - 1)
    m = np.zeros(support.num_atoms)
    for mass, value in zip(p, values, strict=True):
        b = (min(max(value, support.v_min), support.v_max) - support.v_min) / width
        low, high = math.floor(b), math.ceil(b)
        if low == high:
            m[low] += mass
        else:
            m[low] += mass * (high - b)
            m[high] += mass * (b - low)
    return m


def both(p, values, support):
    """The projections of the code and of the loops."""
    ours = project(torch.tensor(p), torch.tensor(values), support).numpy()
    return ours, np.array([projected(*row, support) for row in zip(p, values, strict=True)])


@pytest.mark.parametrize(
    "support", [SUPPORT, Expectation(-150.0, 150.0, 51), Expectation(-1e6, 3.0, 101), Expectation(0.1, 0.7, 2)]
)
def test_the_projection_is_that_of_plain_loops_and_keeps_the_mass(support):
    g = np.random.default_rng(0)
    p = g.dirichlet(np.ones(support.num_atoms), size=200)
    low, high = support.v_min, support.v_max
    values = g.uniform(low - 0.3 * (high - low), high + 0.3 * (high - low), p.shape)
    ours, loops = both(p, values, support)
    np.testing.assert_allclose(ours, loops, rtol=0, atol=1e-12)
    assert np.abs(ours.sum(axis=-1) - 1).max() < 1e-12


@pytest.mark.parametrize(
    ("reward", "discount", "atoms"),
    [
        (0.0, 1.0, [0, 1, 2, 3, 4, 5]),  # every value hits its own atom
        (1.0, 1.0, [1, 2, 3, 4, 5, 5]),  # the next one; the last is clipped
        (-2.0, 1.0, [0, 0, 0, 1, 2, 3]),
        (2.0, 0.0, [4] * 6),  # no bootstrap
        (3.0, 0.0, [5] * 6),  # v_max itself
        (-2.0, 0.0, [0] * 6),  # v_min itself
        (1e9, 1.0, [5] * 6),
        (-1e9, 1.0, [0] * 6),
    ],
)
def test_no_mass_is_lost_where_atoms_are_hit(reward, discount, atoms):
    p = np.random.default_rng(0).dirichlet(np.ones(6), size=3)
    expected = np.zeros_like(p)
    for j, i in enumerate(atoms):
        expected[:, i] += p[:, j]
    values = np.broadcast_to(reward + discount * np.arange(-2.0, 4.0), p.shape).copy()
    ours, loops = both(p, values, SUPPORT)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(loops, expected, rtol=0, atol=1e-15)
    assert np.abs(ours.sum(axis=-1) - 1).max() < 1e-15


def test_float32_keeps_the_mass_too():
    support = Expectation(-1630.0, 0.0, 51)
    p = torch.softmax(torch.randn(1000, 51, generator=torch.Generator().manual_seed(0)), dim=-1)
    values = -16.3 * torch.rand(1000, 1, generator=torch.Generator().manual_seed(1)) + 0.95 * support.atoms(p)
    assert (project(p, values, support).sum(dim=-1) - 1).abs().max() < 1e-6
    torch.testing.assert_close(support.mean(project(p, values, support)), (p * values).sum(dim=-1), rtol=1e-5, atol=0)


def test_the_share_of_clipped_targets_is_that_of_probability():
    """r = 1 and γ = 0.5: the atoms -2 … 3 become 0 … 2.5, none beyond; with r = 2 the last becomes 3.5."""
    algorithm = make("d4pg", v_min=-2.0, v_max=3.0, num_atoms=6)
    batch = make_batch(size=2, discount=0.5)
    batch.terminated.zero_()
    batch.reward[:] = torch.tensor([[1.0, 2.0]])
    with torch.no_grad():
        next_p = algorithm.target_critic.logits(batch.next_obs, algorithm.target_actor(batch.next_obs)).softmax(dim=-1)
    clipped = algorithm.update(batch).scalars["value/clipped_targets"]
    assert clipped.item() == pytest.approx(next_p[0, 0, 1, 5].item() / 2, rel=1e-12)


def test_a_value_is_the_mean_of_a_distribution():
    algorithm = make("d4pg", num_critics=2, **RANGE)
    batch = make_batch()
    z = torch.linspace(-2, 3, 7, dtype=torch.float64)
    with torch.no_grad():
        mean = (algorithm.critic.logits(batch.obs, batch.action).softmax(dim=-1) * z).sum(dim=-1)
        torch.testing.assert_close(algorithm.critic(batch.obs, batch.action), mean, rtol=1e-13, atol=1e-14)
        policy = torch.from_numpy(algorithm.act(batch.obs.numpy()))
        q1 = (algorithm.critic.logits(batch.obs, policy)[0].softmax(dim=-1) * z).sum(dim=-1)
    np.testing.assert_allclose(algorithm.value(batch.obs.numpy()), q1, rtol=1e-13)


# --- whole updates ---


class Plain:
    """A plain ReLU network of one seed and one critic, with torch's own optimizer."""

    def __init__(self, network, *member):
        self.parameters = [tensor[member].clone().requires_grad_() for tensor in network.tensors().values()]

    def __call__(self, x):
        layers = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        for weight, bias in layers[:-1]:
            x = torch.relu(linear(x, weight.T, bias[0]))
        weight, bias = layers[-1]
        return linear(x, weight.T, bias[0])

    def assert_equal(self, network, *member):
        for own, tensor in zip(self.parameters, network.tensors().values(), strict=True):
            torch.testing.assert_close(tensor[member], own.detach(), rtol=0, atol=1e-10)


def follow(target, online, tau):
    """θ' ← τ θ + (1 - τ) θ'"""
    with torch.no_grad():
        for old, new in zip(target.parameters, online.parameters, strict=True):
            old.copy_(tau * new + (1 - tau) * old)


def clip(parameters, limit):
    """Scale the gradients of a network down to a norm."""
    norm = torch.cat([parameter.grad.flatten() for parameter in parameters]).norm()
    for parameter in parameters:
        parameter.grad *= min(1.0, limit / norm.item())


def next_distribution(critic, obs, action, z):
    p = critic(torch.cat([obs, action], dim=-1)).softmax(dim=-1)
    return p, p @ z


def loss(critic, obs, action, target):
    return -(target * critic(torch.cat([obs, action], dim=-1)).log_softmax(dim=-1)).sum(dim=-1).mean()


def test_an_update_is_that_of_the_paper():
    """Copies of both targets at each second update, gradients clipped, n-step discounts."""
    limit = 0.05
    algorithm = make("d4pg", target_copy_every=2, max_grad_norm=limit, actor_lr=1e-3, critic_lr=2e-3, **RANGE)
    z = torch.linspace(-2, 3, 7, dtype=torch.float64)
    actor, critic = Plain(algorithm.actor, 0), Plain(algorithm.critic, 0, 0)
    target_actor, target_critic = copy.deepcopy(actor), copy.deepcopy(critic)
    adams = [torch.optim.Adam(n.parameters, lr) for n, lr in ((actor, 1e-3), (critic, 2e-3))]
    for update in range(1, 6):
        discount = 0.9 ** torch.randint(1, 6, (1, 5), generator=torch.Generator().manual_seed(update))
        batch = make_batch(seed=update, discount=discount.double())
        obs, action, reward, next_obs, terminated, discount = (tensor[0] for tensor in batch[:6])
        with torch.no_grad():
            p, _ = next_distribution(target_critic, next_obs, target_actor(next_obs).tanh(), z)
            values = reward[:, None] + (discount * (1 - terminated))[:, None] * z
            rows = [projected(*row, Expectation(**RANGE)) for row in zip(p.numpy(), values.numpy(), strict=True)]
            target = torch.from_numpy(np.array(rows))
            outside = ((values < -2) | (values > 3)) * p
            q = next_distribution(critic, obs, action, z)[1]
        critic_loss = loss(critic, obs, action, target)
        adams[1].zero_grad()
        critic_loss.backward()
        clip(critic.parameters, limit)
        adams[1].step()
        policy = actor(obs).tanh()
        actor_loss = -next_distribution(critic, obs, policy, z)[1].mean()
        adams[0].zero_grad()
        actor_loss.backward()
        clip(actor.parameters, limit)
        adams[0].step()
        if update % 2 == 0:
            follow(target_actor, actor, 1.0)
            follow(target_critic, critic, 1.0)

        learned = algorithm.update(batch)
        expected = {"loss/critic": critic_loss, "loss/actor": actor_loss, "value/q_mean": q.mean()}
        expected |= {"value/target_mean": (target @ z).mean(), "value/clipped_targets": outside.sum(dim=-1).mean()}
        for tag, value in expected.items():
            assert learned.scalars[tag].item() == pytest.approx(value.item(), abs=1e-10), tag
        torch.testing.assert_close(learned.td_error[0, 0], q - target @ z, rtol=0, atol=1e-10)
        assert learned.scalars["grad/critic_norm"] > limit
        actor.assert_equal(algorithm.actor, 0)
        critic.assert_equal(algorithm.critic, 0, 0)
        target_actor.assert_equal(algorithm.target_actor, 0)
        target_critic.assert_equal(algorithm.target_critic, 0, 0)


def test_with_its_settings_an_update_is_that_of_fast_td3():
    """Two critics, smoothing by the actor itself, AdamW, soft updates, a delay of two."""
    algorithm = make("d4pg", actor_lr=1e-3, critic_lr=2e-3, **RANGE, **FAST_TD3)
    assert sorted(algorithm.networks()) == ["actor", "critic", "target_critic"]
    with torch.no_grad():  # the critics' means differ more than at the start
        algorithm.critic.flat.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
        algorithm.target_critic.flat.copy_(algorithm.critic.flat)
    z = torch.linspace(-2, 3, 7, dtype=torch.float64)
    actor, critics = Plain(algorithm.actor, 0), [Plain(algorithm.critic, k, 0) for k in (0, 1)]
    targets = copy.deepcopy(critics)
    both_critics = critics[0].parameters + critics[1].parameters
    adams = [torch.optim.AdamW(p, lr, weight_decay=0.1) for p, lr in ((actor.parameters, 1e-3), (both_critics, 2e-3))]
    drawn, draw = [], algorithm.standard_normal
    algorithm.standard_normal = lambda shape: drawn.append(draw(shape)) or drawn[-1]
    smaller = []
    for update in range(1, 6):
        batch = make_batch(seed=update, size=20)
        learned = algorithm.update(batch)
        obs, action, reward, next_obs, terminated = (tensor[0] for tensor in batch[:5])
        with torch.no_grad():
            noise = (0.3 * drawn[-1][0]).clamp(-0.4, 0.4)
            next_action = (actor(next_obs).tanh() + noise).clamp(-1, 1)
            (p1, q1), (p2, q2) = (next_distribution(critic, next_obs, next_action, z) for critic in targets)
            p = torch.where((q1 < q2)[:, None], p1, p2)
            smaller.append((q1 < q2).double().mean().item())
            values = reward[:, None] + 0.99 * (1 - terminated)[:, None] * z
            rows = [projected(*row, Expectation(**RANGE)) for row in zip(p.numpy(), values.numpy(), strict=True)]
            target = torch.from_numpy(np.array(rows))
        critic_loss = loss(critics[0], obs, action, target) + loss(critics[1], obs, action, target)
        adams[1].zero_grad()
        critic_loss.backward()
        adams[1].step()
        assert learned.scalars["loss/critic"].item() == pytest.approx(critic_loss.item(), abs=1e-10)
        if update % 2 == 0:
            policy = actor(obs).tanh()
            q1, q2 = (next_distribution(critic, obs, policy, z)[1] for critic in critics)
            actor_loss = -torch.minimum(q1, q2).mean()
            adams[0].zero_grad()
            actor_loss.backward()
            adams[0].step()
            assert learned.scalars["loss/actor"].item() == pytest.approx(actor_loss.item(), abs=1e-10)
        assert ("loss/actor" in learned.scalars) is (update % 2 == 0)
        actor.assert_equal(algorithm.actor, 0)
        for k in (0, 1):
            follow(targets[k], critics[k], 0.1)  # after every update of the critics
            critics[k].assert_equal(algorithm.critic, k, 0)
            targets[k].assert_equal(algorithm.target_critic, k, 0)
    assert 0 < np.mean(smaller) < 1  # each critic has the smaller mean somewhere


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v_min": 1.0, "v_max": 1.0}, "v_min=1.0: must be below v_max=1.0"),
        ({"v_min": 2.0, "v_max": 1.0}, "v_min=2.0: must be below v_max=1.0"),
        ({"v_min": -1e308, "v_max": 1e308}, "do not fit"),
        ({"v_min": 1.0, "v_max": 1.0 + 1e-15}, "do not fit"),
    ],
)
def test_a_range_without_room_for_the_atoms_is_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        make("d4pg", **changes)


def test_a_range_may_not_fit_into_float32_alone():
    for values in ({"v_min": 1.0, "v_max": 1.0 + 1e-7}, {"v_min": -1e39, "v_max": 1e39}):
        make("d4pg", **values)
        with pytest.raises(ValueError, match="do not fit"):
            make("d4pg", dtype=torch.float32, **values)
