"""Every equation of an update, in float64 with tiny networks, against values computed by hand."""

import numpy as np
import pytest
import torch
from tiny_algorithms import in_float32, layers, make, make_batch, of_member, plain_update

from dpg_cli.algorithms import ALGORITHMS, Batch
from dpg_cli.theory import SteepestDescent


def mlp(network, x, members=(0,)):
    """The layers of one member, by hand in NumPy."""
    weights = [(layer.weight.numpy()[members], layer.bias.numpy()[members][0]) for layer in layers(network)]
    for weight, bias in weights[:-1]:
        x = np.maximum(x @ weight + bias, 0)
    return x @ weights[-1][0] + weights[-1][1]


def mu(actor, obs):
    return np.tanh(mlp(actor, obs))


def q(critic, k, obs, action):
    return mlp(critic, np.concatenate([obs, action], axis=-1), (k, 0))[:, 0]


def parameters(algorithm):
    return [tensor.clone() for network in algorithm.networks().values() for tensor in network.tensors().values()]


def numpy_batch(batch):
    return [tensor[0].numpy() for tensor in batch[:5]]


def linear(network, weight, bias=0.0):
    """Make a network without hidden layers compute given weights."""
    with torch.no_grad():
        layer = layers(network)[0]
        layer.weight.copy_(torch.as_tensor(weight, dtype=torch.float64).reshape(layer.weight.shape))
        layer.bias.fill_(bias)


def one_transition(terminated, discount=0.9):
    """s = 1, a = 0.5, r = 2, s' = 3."""
    values = ([[[1.0]]], [[[0.5]]], [[2.0]], [[[3.0]]], [[terminated]])
    tensors = [torch.tensor(value, dtype=torch.float64) for value in values]
    return Batch(*tensors, discount, tensors[3])


def scalar(name, **changes):
    """μ(s) = tanh(0.1 s); Q(s, a) = 0.4 s + 0.7 a; targets μ'(s) = tanh(0.2 s), Q'(s, a) = 0.5 s + 0.6 a."""
    algorithm = make(name, obs_dim=1, action_dim=1, hidden_sizes=[], batch_size=1, **changes)
    linear(algorithm.actor, [0.1])
    linear(algorithm.target_actor, [0.2])
    with torch.no_grad():
        for critic, weight in ((algorithm.critic, [0.4, 0.7]), (algorithm.target_critic, [0.5, 0.6])):
            layers(critic)[0].weight.copy_(
                torch.tensor(weight, dtype=torch.float64)[:, None].expand_as(layers(critic)[0].weight)
            )
            layers(critic)[0].bias.zero_()
    return algorithm


Q_ONLINE = 0.4 * 1 + 0.7 * 0.5
Q_NEXT = 0.5 * 3 + 0.6 * np.tanh(0.2 * 3)


@pytest.mark.parametrize("terminated", [0.0, 1.0])
@pytest.mark.parametrize(("name", "changes"), [("ddpg", {}), ("td3", {"policy_noise": 0.0})])
def test_target_bootstraps_unless_the_episode_terminated(name, changes, terminated):
    metrics = scalar(name, **changes).update(one_transition(terminated)).scalars
    target = 2 + 0.9 * (1 - terminated) * Q_NEXT
    assert metrics["value/target_mean"].item() == pytest.approx(target, rel=1e-12)
    assert metrics["value/q_mean"].item() == pytest.approx(Q_ONLINE, rel=1e-12)
    critics = 2 if name == "td3" else 1
    assert metrics["loss/critic"].item() == pytest.approx(critics * (Q_ONLINE - target) ** 2, rel=1e-12)
    # dL/dw = 2 (Q - y) (s, a, 1) for each critic
    norm = 2 * abs(Q_ONLINE - target) * np.sqrt((1 + 0.25 + 1) * critics)
    assert metrics["grad/critic_norm"].item() == pytest.approx(norm, rel=1e-12)


def test_ddpg_update_by_hand():
    algorithm = scalar("ddpg", tau=0.01, actor_lr=0.02, critic_lr=0.03)
    metrics = algorithm.update(one_transition(0.0)).scalars
    # Adam's first step moves each parameter by its rate against the gradient's sign (up to its ε of 1e-8).
    sign = np.sign(Q_ONLINE - (2 + 0.9 * Q_NEXT))
    critic = np.array([0.4, 0.7]) - 0.03 * sign
    weight = layers(algorithm.critic)[0].weight.numpy().ravel()
    np.testing.assert_allclose(weight, critic, atol=1e-8)
    # The actor ascends the *updated* critic: loss = -Q(1, μ(1)), dloss/dw = -(∂Q/∂a) (1 - μ²) s.
    action = np.tanh(0.1)
    assert metrics["loss/actor"].item() == pytest.approx(-(weight @ [1, action] - 0.03 * sign), abs=1e-8)
    gradient = weight[1] * (1 - action**2)
    assert metrics["grad/actor_norm"].item() == pytest.approx(abs(gradient) * np.sqrt(2), rel=1e-12)
    actor = layers(algorithm.actor)[0].weight.item()
    assert actor == pytest.approx(0.1 + 0.02 * np.sign(gradient), abs=1e-8)
    # θ' ← τ θ + (1 - τ) θ'
    np.testing.assert_allclose(
        layers(algorithm.target_critic)[0].weight.numpy().ravel(),
        0.01 * weight + 0.99 * np.array([0.5, 0.6]),
        rtol=1e-12,
    )
    assert layers(algorithm.target_actor)[0].weight.item() == pytest.approx(0.01 * actor + 0.99 * 0.2, rel=1e-12)


def test_td3_target_takes_the_minimum_of_the_critics_for_each_transition():
    algorithm, batch = make("td3", policy_noise=0.0, hidden_sizes=[]), make_batch(size=64)
    obs, action, reward, next_obs, terminated = numpy_batch(batch)
    next_action = mu(algorithm.target_actor, next_obs)
    q1, q2 = (q(algorithm.target_critic, k, next_obs, next_action) for k in (0, 1))
    assert 0 < (q1 < q2).mean() < 1  # each is the smaller one somewhere
    target = reward + 0.99 * (1 - terminated) * np.minimum(q1, q2)
    loss = sum(((q(algorithm.critic, k, obs, action) - target) ** 2).mean() for k in (0, 1))
    metrics = algorithm.update(batch).scalars
    assert metrics["value/target_mean"].item() == pytest.approx(target.mean(), rel=1e-12)
    assert metrics["loss/critic"].item() == pytest.approx(loss, rel=1e-12)


def test_td3_smooths_target_actions_with_clipped_noise():
    algorithm, batch = make("td3", policy_noise=0.4, noise_clip=0.3), make_batch(size=200)
    drawn = {}
    draw = algorithm.standard_normal

    def remember(shape):
        drawn["noise"] = draw(shape)
        return drawn["noise"]

    algorithm.standard_normal = remember
    _, _, reward, next_obs, terminated = numpy_batch(batch)
    policy = mu(algorithm.target_actor, next_obs)
    q_target = [lambda a, k=k: q(algorithm.target_critic, k, next_obs, a) for k in (0, 1)]
    # the values are taken before the update moves the targets: policy_delay is 2
    metrics = algorithm.update(batch).scalars
    noise = np.clip(0.4 * drawn["noise"][0].numpy(), -0.3, 0.3)
    assert (np.abs(noise) == 0.3).any()
    action = np.clip(policy + noise, -1, 1)
    target = reward + 0.99 * (1 - terminated) * np.minimum(q_target[0](action), q_target[1](action))
    assert metrics["value/target_mean"].item() == pytest.approx(target.mean(), rel=1e-12)


def test_td3_target_actions_stay_in_range():
    algorithm = scalar("td3", policy_noise=5.0, noise_clip=5.0)
    linear(algorithm.target_actor, [1.0])  # μ'(3) is near 1
    targets = [algorithm.update(one_transition(0.0, 1.0)).scalars["value/target_mean"].item() for _ in range(1)]
    assert targets[0] <= 2 + 0.5 * 3 + 0.6 + 1e-12
    assert targets[0] >= 2 + 0.5 * 3 - 0.6 - 1e-12


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_td3_delays_actor_and_targets(delay):
    algorithm = make("td3", policy_delay=delay)
    for update in range(1, 7):
        before = parameters(algorithm)
        metrics = algorithm.update(make_batch(seed=update)).scalars
        changed = [not torch.equal(a, b) for a, b in zip(before, parameters(algorithm), strict=True)]
        actor, critic, target_actor, target_critic = np.array_split(changed, 4)
        assert all(critic)
        due = update % delay == 0
        assert all(actor) is due
        assert all(target_actor) is due
        assert all(target_critic) is due
        assert ("loss/actor" in metrics) is due


def test_td3_actor_ascends_the_first_critic_alone():
    """Q₁(s, a) = s + 0.7 a and Q₂(s, a) = -s - 0.6 a, so that each is the smaller one on some states."""
    algorithm = make("td3", obs_dim=1, action_dim=1, hidden_sizes=[], policy_delay=1, critic_lr=1e-3)
    linear(algorithm.actor, [0.5])
    linear(algorithm.critic, [[1.0, 0.7], [-1.0, -0.6]])
    algorithm.actor_optimizer = SteepestDescent(algorithm.actor)
    batch = make_batch(obs_dim=1, action_dim=1)
    obs = batch.obs[0].numpy()
    action = mu(algorithm.actor, obs)
    metrics = algorithm.update(batch).scalars
    q1, q2 = (q(algorithm.critic, k, obs, action) for k in (0, 1))  # of the updated critics
    assert 0 < (q1 < q2).mean() < 1
    assert metrics["loss/actor"].item() == pytest.approx(-q1.mean(), rel=1e-12)
    slope = layers(algorithm.critic)[0].weight[0, 0, 1].item()
    step = slope * (1 - action**2)  # by the action before tanh
    assert layers(algorithm.actor)[0].weight.item() - 0.5 == pytest.approx((step * obs).mean(), rel=1e-10)
    assert layers(algorithm.actor)[0].bias.item() == pytest.approx(step.mean(), rel=1e-10)


def test_td3_without_its_parts_is_ddpg():
    """One critic, no smoothing, no delay: the same update, to the last bit of the drawn initial weights."""
    changes = {"actor_lr": 1e-3, "critic_lr": 1e-3}
    ddpg = make("ddpg", **changes)
    td3 = make("td3", num_critics=1, policy_noise=0.0, policy_delay=1, **changes)
    for update in range(5):
        batch = make_batch(seed=update)
        left, right = ddpg.update(batch).scalars, td3.update(batch).scalars
        for tag, value in left.items():
            assert value.item() == pytest.approx(right[tag].item(), rel=1e-12), tag
    for a, b in zip(parameters(ddpg), parameters(td3), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_critic_weight_decay_is_l2_on_the_critic_alone():
    plain, decayed = make("ddpg"), make("ddpg", critic_weight_decay=0.1)
    batch = make_batch()
    norms = [algorithm.update(batch).scalars["grad/critic_norm"].item() for algorithm in (plain, decayed)]
    assert norms[0] == norms[1]  # the loss's own gradient is what is reported
    assert [a.critic_optimizer.l2 for a in (plain, decayed)] == [0.0, 0.1]
    assert decayed.actor_optimizer.l2 == 0.0
    # Where the loss is flat only the decay moves a weight: towards zero, by Adam's first step.
    algorithm = scalar("ddpg", critic_weight_decay=0.1, critic_lr=0.01)
    batch = Batch(*(torch.zeros_like(t) if isinstance(t, torch.Tensor) else 0.0 for t in one_transition(1.0)))
    algorithm.update(batch)
    np.testing.assert_allclose(layers(algorithm.critic)[0].weight.numpy().ravel(), [0.4 - 0.01, 0.7 - 0.01], atol=1e-6)


def test_normalised_observations_reach_every_network():
    algorithm = make("ddpg", normalize_obs=True)
    g = np.random.default_rng(0)
    seen = g.normal(3.0, 2.0, size=(1, 1000, 3))
    algorithm.observe(seen)
    mean, std = seen.mean(axis=1), np.sqrt(seen.var(axis=1) + 1e-8)
    obs = g.normal(3.0, 2.0, size=(1, 4, 3))
    normalized = (obs[0] - mean) / std
    np.testing.assert_allclose(algorithm.act(obs)[0], mu(algorithm.actor, normalized), rtol=1e-10)
    np.testing.assert_allclose(
        algorithm.value(obs)[0],
        q(algorithm.critic, 0, normalized, mu(algorithm.actor, normalized)),
        rtol=1e-10,
    )
    batch = make_batch(size=20)
    next_obs = (batch.next_obs[0].numpy() - mean) / std
    next_q = q(algorithm.target_critic, 0, next_obs, mu(algorithm.target_actor, next_obs))
    target = batch.reward[0].numpy() + 0.99 * (1 - batch.terminated[0].numpy()) * next_q
    assert algorithm.update(batch).scalars["value/target_mean"].item() == pytest.approx(target.mean(), rel=1e-10)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_members_train_as_if_alone(name):
    """Two members' updates equal each one's alone."""
    together = make(name, seeds=(3, 8))
    alone = [make(name, seeds=(seed,)) for seed in (3, 8)]
    for update in range(20):
        batch = make_batch(members=2, seed=update)
        metrics = together.update(batch).scalars
        for member, algorithm in enumerate(alone):
            own = algorithm.update(of_member(batch, member)).scalars
            for tag, value in own.items():
                torch.testing.assert_close(metrics[tag][member : member + 1], value, rtol=1e-10, atol=1e-12)
    for member, algorithm in enumerate(alone):
        for both, own in zip(parameters(together), parameters(algorithm), strict=True):
            axis = both.dim() - 3
            torch.testing.assert_close(both.narrow(axis, member, 1), own, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_targets_start_equal_and_share_no_memory(name):
    algorithm = make(name)
    for online, target in ((algorithm.actor, algorithm.target_actor), (algorithm.critic, algorithm.target_critic)):
        assert torch.equal(online.flat, target.flat)
        assert online.flat.data_ptr() != target.flat.data_ptr()
        assert not target.flat.requires_grad


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_same_seed_same_updates_and_another_seed_others(name):
    def trained(seed):
        algorithm = make(name, seeds=(seed,), dtype=torch.float32)
        for update in range(10):
            algorithm.update(in_float32(make_batch(seed=update)))
        return [tensor.clone() for network in algorithm.networks().values() for tensor in network.named().values()]

    first, again, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_update_returns_detached_scalars_for_each_member(name):
    metrics = make(name, seeds=(0, 1, 2)).update(make_batch(members=3)).scalars
    for tag, value in metrics.items():
        assert value.shape == (3,), tag
        assert not value.requires_grad, tag


@pytest.mark.parametrize("name", [name for name, own in sorted(ALGORITHMS.items()) if not own.offline_only])
def test_learns_the_value_of_a_bandit_and_its_best_action(name):
    """One state, reward -(a - 0.3)², every transition terminal: μ → 0.3 and Q(μ) → 0."""
    sizes = {"obs_dim": 1, "action_dim": 1, "hidden_sizes": [32], "batch_size": 64}
    values = {"v_min": -2.0, "v_max": 0.5, "num_atoms": 11} if name == "d4pg" else {}
    algorithm = make(name, actor_lr=3e-3, critic_lr=3e-3, **sizes, **values)
    g = np.random.default_rng(0)
    for _ in range(800):
        action = torch.from_numpy(g.uniform(-1, 1, size=(1, 64, 1)))
        obs = torch.ones(1, 64, 1, dtype=torch.float64)
        reward = -((action - 0.3) ** 2).squeeze(-1)
        algorithm.update(Batch(obs, action, reward, obs, torch.ones(1, 64, dtype=torch.float64), 0.99, obs))
    obs = np.ones((1, 1, 1))
    assert algorithm.act(obs).item() == pytest.approx(0.3, abs=0.1)
    assert algorithm.value(obs).item() == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("seeds", [(3,), (3, 8)])
@pytest.mark.parametrize("action_layer", [1, 2, 3])
@pytest.mark.parametrize("name", ["ddpg", "td3", "td3_bc"])
def test_an_update_is_its_plain_form(name, action_layer, seeds):
    """The chain rule is written out in the update; torch's own differentiation must agree."""
    ours, plain = (make(name, seeds=seeds, critic_action_layer=action_layer, normalize_obs=True) for _ in range(2))
    for update in range(20):
        batch = make_batch(members=len(seeds), seed=update)
        for algorithm in (ours, plain):
            algorithm.observe(batch.obs.numpy())
        metrics, expected = ours.update(batch).scalars, plain_update(plain, batch).scalars
        for tag, value in expected.items():
            torch.testing.assert_close(metrics[tag], value, rtol=1e-10, atol=1e-12)
    for own, other in zip(parameters(ours), parameters(plain), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_goes_on_is_what_went_on_to_the_last_moment(name):
    """Over the step at which vanished moments are cleared, for every optimizer."""
    whole, resumed = make(name), make(name, seeds=(1,))
    batches = [make_batch(seed=seed) for seed in range(5)]
    for step in range(230):
        if step == 70:
            resumed.load_state([whole.state(0)])
        if step >= 70:
            resumed.update(batches[step % 5])
        whole.update(batches[step % 5])
    for optimizer in ("critic_optimizer", "actor_optimizer"):
        ours, theirs = getattr(resumed, optimizer), getattr(whole, optimizer)
        assert vars(ours).keys() == vars(theirs).keys()
        assert ours._until_cleared == theirs._until_cleared
        assert torch.equal(ours.mean, theirs.mean)
        assert torch.equal(ours.square, theirs.square)
    assert all(map(torch.equal, parameters(resumed), parameters(whole)))
