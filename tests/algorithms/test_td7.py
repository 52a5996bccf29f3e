"""TD7 against an implementation of one seed, written like the paper, and its policy checkpoints by hand."""

import copy
import itertools

import numpy as np
import pytest
import torch
from tiny_algorithms import make
from torch import nn
from torch.nn import functional

from dpg_cli.priorities import Priorities
from dpg_cli.replay import Replay, Step

OBS, ACTION, BATCH, UNITS, EMBEDDING, COPY_EVERY, STORED = 4, 2, 16, 12, 6, 20, 150
SIZES = {"hidden_sizes": [UNITS, UNITS], "encoder_sizes": [UNITS, UNITS], "embedding_size": EMBEDDING}


def avg_l1_norm(x):
    return x / x.abs().mean(-1, keepdim=True).clamp(min=1e-8)


def dense(*sizes):
    return nn.ModuleList(nn.Linear(m, n, dtype=torch.float64) for m, n in itertools.pairwise(sizes))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.state = dense(OBS, UNITS, UNITS, EMBEDDING)
        self.pair = dense(EMBEDDING + ACTION, UNITS, UNITS, EMBEDDING)

    def zs(self, s):
        return avg_l1_norm(self.state[2](functional.elu(self.state[1](functional.elu(self.state[0](s))))))

    def zsa(self, zs, a):
        x = torch.cat([zs, a], -1)
        return self.pair[2](functional.elu(self.pair[1](functional.elu(self.pair[0](x)))))


class Actor(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(OBS, UNITS, dtype=torch.float64)
        self.layers = dense(UNITS + EMBEDDING, UNITS, UNITS, ACTION)

    def forward(self, s, zs):
        x = torch.cat([avg_l1_norm(self.first(s)), zs], -1)
        return torch.tanh(self.layers[2](torch.relu(self.layers[1](torch.relu(self.layers[0](x))))))


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(OBS + ACTION, UNITS, dtype=torch.float64)
        self.layers = dense(UNITS + 2 * EMBEDDING, UNITS, UNITS, 1)

    def forward(self, s, a, zsa, zs):
        x = torch.cat([avg_l1_norm(self.first(torch.cat([s, a], -1))), zsa, zs], -1)
        return self.layers[2](functional.elu(self.layers[1](functional.elu(self.layers[0](x))))).squeeze(-1)


class Paper:
    """One seed, one transition a row, lists of critics: as the paper writes it."""

    def __init__(self, algorithm, data, offline):
        self.offline, self.data = offline, data
        self.encoder, self.actor, self.critics = Encoder(), Actor(), nn.ModuleList([Critic(), Critic()])
        for module, network, critic in (
            (self.encoder, algorithm.encoder, ()),
            (self.actor, algorithm.actor, ()),
            *((own, algorithm.critic, (k,)) for k, own in enumerate(self.critics)),
        ):
            for name, parameter in module.named_parameters():
                parameter.data.copy_(given(network, name, critic))
        self.optimizers = [torch.optim.Adam(m.parameters(), lr=3e-4) for m in (self.encoder, self.critics, self.actor)]
        self.fixed, self.fixed_target = copy.deepcopy(self.encoder), copy.deepcopy(self.encoder)
        self.target_actor, self.target_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.low = self.high = 0.0
        self.lowest, self.highest = np.inf, -np.inf
        self.priority, self.largest, self.steps = torch.ones(STORED, dtype=torch.float64), 1.0, 0
        self.noise = torch.Generator()
        self.noise.set_state(algorithm.generators[0].get_state())
        self.sampling = torch.Generator().manual_seed(7)

    def descend(self, which, loss):
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()

    def train(self):
        self.steps += 1
        cumulative = self.priority.cumsum(0)
        share = torch.rand(BATCH, generator=self.sampling, dtype=torch.float64)
        rows = torch.searchsorted(cumulative, share * cumulative[-1], right=True)
        s, a, r, s2, d = (part[rows] for part in self.data)

        loss = functional.mse_loss(self.encoder.zsa(self.encoder.zs(s), a), self.encoder.zs(s2).detach())
        self.descend(0, loss)

        with torch.no_grad():
            z2 = self.fixed_target.zs(s2)
            noise = (torch.randn(BATCH, ACTION, generator=self.noise, dtype=torch.float64) * 0.2).clamp(-0.5, 0.5)
            a2 = (self.target_actor(s2, z2) + noise).clamp(-1, 1)
            zsa2 = self.fixed_target.zsa(z2, a2)
            q2 = torch.min(*(critic(s2, a2, zsa2, z2) for critic in self.target_critics))
            y = r + (1 - d) * 0.99 * q2.clamp(self.low, self.high)
            self.lowest, self.highest = min(self.lowest, y.min().item()), max(self.highest, y.max().item())
            zs = self.fixed.zs(s)
            zsa = self.fixed.zsa(zs, a)
        errors = torch.stack([(critic(s, a, zsa, zs) - y).abs() for critic in self.critics])
        self.descend(1, torch.where(errors < 1, 0.5 * errors**2, errors).sum(0).mean())
        for row, error in zip(rows.tolist(), errors.max(0).values.tolist(), strict=True):
            same = [e for other, e in zip(rows.tolist(), errors.max(0).values.tolist(), strict=True) if other == row]
            self.priority[row] = max(*same, error, 1.0) ** 0.4
            self.largest = max(self.largest, self.priority[row].item())

        if self.steps % 2 == 0:
            pi = self.actor(s, zs)
            q = torch.stack([critic(s, pi, self.fixed.zsa(zs, pi), zs) for critic in self.critics])
            loss = -q.mean()
            if self.offline:
                loss = loss + 0.1 * q.abs().mean().detach() * functional.mse_loss(pi, a)
            self.descend(2, loss)
        if self.steps % COPY_EVERY == 0:
            self.target_actor.load_state_dict(self.actor.state_dict())
            self.target_critics.load_state_dict(self.critics.state_dict())
            self.fixed_target.load_state_dict(self.fixed.state_dict())
            self.fixed.load_state_dict(self.encoder.state_dict())
            self.low, self.high, self.largest = self.lowest, self.highest, self.priority.max().item()


def given(network, name, critic=()):
    """A network's tensor in the shape of a module's parameter."""
    tensor = network.tensors()[name][(*critic, 0)]
    return tensor.T if name.endswith("weight") else tensor[0]


@pytest.mark.parametrize("offline", [False, True])
def test_200_updates_equal_those_of_the_paper(offline):
    keys = {"target_copy_every": COPY_EVERY, "batch_size": BATCH, **SIZES}
    algorithm = make("td7", obs_dim=OBS, action_dim=ACTION, huber=True, offline=offline, **keys)
    g = np.random.default_rng(0)
    data = [
        g.normal(size=(STORED, OBS)),
        g.uniform(-1, 1, size=(STORED, ACTION)),
        5 * g.normal(size=STORED),
        g.normal(size=(STORED, OBS)),
        (g.random(STORED) < 0.2).astype(float),
    ]
    paper = Paper(algorithm, [torch.from_numpy(part) for part in data], offline)
    streams = [torch.Generator().manual_seed(7)]
    priorities = Priorities(1, STORED, alpha=0.4)
    sizes = STORED, OBS, ACTION
    replay = Replay(*sizes, streams, dtype=torch.float64, discount=0.99, priorities=priorities)
    for row in range(STORED):
        replay.add(*Step(*(part[None, row : row + 1] for part in data), np.zeros((1, 1))))
    for _ in range(200):
        paper.train()
        learned = algorithm.update(replay.sample(BATCH))
        replay.learned(learned.td_error, reset_largest=learned.resets_largest)

    modules = {
        "encoder": paper.encoder,
        "fixed_encoder": paper.fixed,
        "target_encoder": paper.fixed_target,
        "actor": paper.actor,
        "target_actor": paper.target_actor,
    }
    for attribute, module in modules.items():
        for name, parameter in module.named_parameters():
            found = given(getattr(algorithm, attribute), name)
            torch.testing.assert_close(found, parameter.detach(), rtol=0, atol=1e-10, msg=f"{attribute} {name}")
    for attribute, critics in (("critic", paper.critics), ("target_critic", paper.target_critics)):
        for k, critic in enumerate(critics):
            for name, parameter in critic.named_parameters():
                found = given(getattr(algorithm, attribute), name, (k,))
                torch.testing.assert_close(found, parameter.detach(), rtol=0, atol=1e-10)
    bounds = [algorithm.member_state[name].item() for name in ("low", "high", "lowest", "highest")]
    assert bounds == pytest.approx([paper.low, paper.high, paper.lowest, paper.highest], abs=1e-10)
    state = priorities.state(0, torch.arange(STORED))
    torch.testing.assert_close(state["priorities"], paper.priority, rtol=0, atol=1e-10)
    assert state["largest"].item() == pytest.approx(paper.largest, abs=1e-10)
    assert state["largest"] < 25**0.4  # it is the largest that is stored, not the largest so far


def windows(*returns, **keys):
    """The updates after each episode of 10 steps with these returns, and which policy is the checkpoint."""
    algorithm = make("td7", policy_checkpoints=True, **SIZES, **keys)
    found = []
    for number, episode_return in enumerate(returns):
        with torch.no_grad():
            algorithm.actor.flat.fill_(number)
            algorithm.fixed_encoder.flat.fill_(number)
        assert [algorithm.updates_now(1, []) for _ in range(9)] == [0] * 9
        updates = algorithm.updates_now(1, [episode_return])
        algorithm.updates += updates
        tensors = algorithm.policy_tensors()
        assert (tensors["first.weight"] == tensors["state.0.weight"].flatten()[0]).all()
        found.append((updates, int(tensors["first.weight"].flatten()[0].item() if number else 0)))
    return found


def test_a_policy_becomes_the_checkpoint_unless_its_return_is_worse():
    assert windows(-5.0, 3.0, 2.0, 3.0) == [(10, 0), (10, 1), (10, 1), (10, 3)]


def test_later_a_policy_must_pass_several_episodes():
    keys = {"checkpoint_episodes": 3, "checkpoint_start": 15, "checkpoint_reset": 0.5}
    # 8 is worse than none; 20 updates are more than checkpoint_start, so 8 counts as 4 from now on.
    returns = 2.0, 8.0, 9.0, 4.5, 7.0, 3.0, 9.0, 9.0, 4.4
    updates = [10, 10, 0, 0, 30, 10, 0, 0, 30]
    checkpoint = [0, 1, 1, 1, 4, 4, 4, 4, 4]
    assert windows(*returns, **keys) == [*zip(updates, checkpoint, strict=True)]


def test_episodes_of_random_actions_do_not_count():
    algorithm = make("td7", policy_checkpoints=True, **SIZES)
    assert algorithm.updates_now(0, [1000.0]) == 0
    assert [algorithm.updates_now(1, [5.0]), algorithm.updates_now(2, [4.0])] == [1, 2]
    assert algorithm.member_state["best_worst"].item() == 5


def test_several_environments_of_a_seed():
    algorithm = make("td7", policy_checkpoints=True, **SIZES)
    assert algorithm.updates_now(3, [5.0, 4.0, 6.0]) == 3  # all episodes of a step count; the updates follow once
    assert algorithm.member_state["best_worst"].item() == 4
    algorithm.actor.flat.detach().fill_(7)
    assert algorithm.updates_now(3, [9.0, -500.0]) == 3
    assert algorithm.member_state["best_worst"].item() == 4
    assert not (algorithm.checkpoint_actor.flat == 7).any()


def test_with_a_data_set_there_are_no_policy_checkpoints():
    algorithm = make("td7", offline=True, policy_checkpoints=True, **SIZES)
    assert not algorithm.separate
    assert algorithm.updates_now(1, []) == 1
    assert "checkpoint_actor" not in algorithm.networks()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden_sizes": []}, "must hold at least one size"),
        ({"critic_action_layer": 2}, "critic_action_layer=2: must be 1"),
        ({"target_copy_every": None}, "target_copy_every=null: must be a number"),
    ],
)
def test_settings_without_a_meaning_are_rejected(keys, message):
    with pytest.raises(ValueError, match=message):
        make("td7", **keys)
