"""Networks with member axes: each member must be the plain network it stands for."""

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_algorithms import layers
from torch import nn
from torch.nn.functional import linear

from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.config import config_dir
from dpg_cli.networks import Actor, Critic, Mlp, Network, Normalizer, Numbers
from dpg_cli.networks.layers import AppendExtra, Dense, Relu
from dpg_cli.seeding import Purpose, torch_generator

OBS, ACTION = 5, 3
DOUBLE = Numbers("cpu", torch.float64, torch.float64)


def generators(*seeds):
    return [torch_generator(seed, Purpose.NETWORKS) for seed in seeds]


def make_actor(*seeds, dtype=torch.float64, normalizer=None, hidden_sizes=(8, 6)):
    own = Mlp().actor(OBS, ACTION, hidden_sizes)
    return Actor(own, generators(*seeds), Numbers("cpu", dtype, dtype), normalizer)


def make_critic(
    *seeds, num_critics=2, action_layer=1, normalizer=None, hidden_sizes=(8, 6), products=torch.float64, autograd=False
):
    own = Mlp().critic(OBS, ACTION, hidden_sizes, action_layer)
    numbers = Numbers("cpu", torch.float64, products, autograd)
    return Critic(own, generators(*seeds), numbers, normalizer, (num_critics,))


def inputs(members=2, size=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(members, size, OBS, generator=g, dtype=torch.float64)
    return obs, torch.rand(members, size, ACTION, generator=g, dtype=torch.float64) * 2 - 1


def plain(layer, x, *member):
    """One member of a layer, as torch's own dense layer computes it."""
    return linear(x, layer.weight[member].T, layer.bias[member][0])


def distance_from_uniform(values, bound):
    """Kolmogorov's statistic times √n: above 2.3 once in twenty thousand."""
    values = np.sort(values)
    expected = (values + bound) / (2 * bound)
    observed = np.arange(len(values)) / len(values)
    return np.abs(expected - observed).max() * math.sqrt(len(values))


@pytest.mark.parametrize("critics", [(), (2,)])
@pytest.mark.parametrize("in_features", [1, 4, 300])
def test_layers_start_as_nn_linear_does(in_features, critics):
    numbers = Numbers("cpu", torch.float64, torch.float64)
    network = Network([Dense("layers.0", in_features, 2000)], generators(0, 1), numbers, None, critics)
    (layer,) = layers(network)
    assert layer.weight.shape == (*critics, 2, in_features, 2000)
    assert layer.bias.shape == (*critics, 2, 1, 2000)
    bound = 1 / math.sqrt(in_features)
    for parameter in layer:
        for member in parameter.flatten(0, -3):
            assert member.abs().max() <= bound
            assert member.abs().max() > 0.99 * bound
            assert distance_from_uniform(member.numpy().ravel(), bound) < 2.3
    torch.manual_seed(0)
    reference = nn.Linear(in_features, 2000)
    assert layer.weight.std().item() == pytest.approx(reference.weight.std().item(), rel=0.05)
    assert layer.bias.std().item() == pytest.approx(reference.bias.std().item(), rel=0.05)


def test_no_two_members_or_critics_start_alike():
    weights = [*layers(make_critic(0, 1, num_critics=2))[0].weight.flatten(0, 1)]
    for i, one in enumerate(weights):
        assert not any(torch.isclose(one, other).all() for other in weights[:i])


def test_a_seed_starts_the_same_beside_others_and_alone():
    for make in (make_actor, make_critic):
        together, alone = make(3, 8, 5), make(8)
        for both, own in zip(together.tensors().values(), alone.tensors().values(), strict=True):
            assert torch.equal(both.narrow(-3, 1, 1), own)


def test_precision_only_rounds_the_start():
    single, double = make_actor(0, dtype=torch.float32).flat, make_actor(0).flat
    assert single.dtype is torch.float32
    assert torch.equal(single, double.float())


def test_actor_by_hand_for_each_member():
    actor, (obs, _) = make_actor(0, 1), inputs()
    with torch.no_grad():
        action = actor(obs)
    assert action.shape == (2, 4, ACTION)
    for s in range(2):
        first, second, last = layers(actor)
        x = torch.relu(plain(second, torch.relu(plain(first, obs[s], s)), s))
        torch.testing.assert_close(action[s], torch.tanh(plain(last, x, s)), rtol=1e-12, atol=1e-14)


def test_actions_stay_in_range():
    obs = inputs()[0] * 1e6
    assert make_actor(0, 1)(obs).abs().max() <= 1


@pytest.mark.parametrize(
    ("layer", "hidden_sizes"), [(1, ()), (1, (8,)), (2, (8,)), (1, (8, 6)), (2, (8, 6)), (3, (8, 6))]
)
def test_the_action_enters_the_critic_at_its_layer(layer, hidden_sizes):
    critic = make_critic(0, 1, action_layer=layer, hidden_sizes=hidden_sizes)
    obs, action = inputs()
    with torch.no_grad():
        q, q1 = critic(obs, action), critic.q1(obs, action)
    assert q.shape == (2, 2, 4)
    for k in range(2):
        for s in range(2):
            x = obs[s]
            for number, module in enumerate(layers(critic), start=1):
                if number == layer:
                    x = torch.cat([x, action[s]], dim=-1)
                x = plain(module, x, k, s)
                if number <= len(hidden_sizes):
                    x = torch.relu(x)
            torch.testing.assert_close(q[k, s], x[:, 0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(q1, q[0], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("critics", [(), (3,)])
@pytest.mark.parametrize("index", [None, 0, 1, 2])
def test_gradients_are_those_of_torchs_own_differentiation(index, critics, outputs):
    """The backward pass is written out."""
    sizes = [(OBS, 8), (8, 6), (6, outputs)]
    sizes = [(m + (ACTION if i == index else 0), n) for i, (m, n) in enumerate(sizes)]
    dense = [Dense(f"layers.{i}", *size) for i, size in enumerate(sizes)]
    own = [part for layer in dense for part in (layer, Relu())][:-1]
    if index is not None:
        own.insert(2 * index, AppendExtra())
    numbers = Numbers("cpu", torch.float64, torch.float64)
    network = Network(own, generators(0, 1), numbers, None, critics)
    assert network.by_hand
    obs, action = inputs(size=7)
    extra = None if index is None else action
    with torch.no_grad():
        y, backward = network._with_backward(obs, extra)
        weights = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        gradient = backward(weights).clone()
    reference = network._forward(obs, extra)  # where gradients are recorded, the plain form is used
    torch.testing.assert_close(y, reference.detach(), rtol=1e-12, atol=1e-14)
    (wanted,) = torch.autograd.grad((reference * weights).sum(), network.flat)
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_first_critics_value_differentiates_by_the_action_alone(layer):
    critic, (obs, action) = make_critic(0, 1, action_layer=layer), inputs()
    with torch.no_grad():
        _, by_hand = critic.q1_with_action_gradient(obs, action)
    action.requires_grad_()
    (of_q1,) = torch.autograd.grad(critic.q1(obs, action).sum(), action)
    (of_first,) = torch.autograd.grad(critic(obs, action)[0].sum(), action)
    torch.testing.assert_close(of_q1, of_first, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(by_hand, of_first, rtol=1e-12, atol=1e-14)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(critic.q1(obs, action).sum(), critic.flat)


@pytest.mark.parametrize("autograd", [False, True])
def test_products_in_bfloat16_round_and_nothing_else(autograd):
    sizes = {"hidden_sizes": (64, 64), "autograd": autograd}
    critic, reference = make_critic(0, 1, **sizes, products=torch.bfloat16), make_critic(0, 1, **sizes)
    obs, action = inputs(size=32)
    found = []
    for network in (critic, reference):
        with torch.no_grad():
            q, backward = network.with_backward(obs, action)
            gradient = backward(torch.ones_like(q))
            parts = network.views(gradient) if isinstance(gradient, torch.Tensor) else gradient
            found.append((q, [part.clone() for part in parts]))
    (q, gradient), (exact, wanted) = found
    assert q.dtype is torch.float64
    assert 0 < (q - exact).abs().max() < 0.02
    for got, want in zip(gradient, wanted, strict=True):
        assert got.dtype is torch.float64
        assert (got - want).norm() < 0.03 * want.norm()
    with torch.no_grad():
        torch.testing.assert_close(critic.q1(obs, action, exact=True), exact[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_fan_in_counts_the_action_where_it_enters(layer):
    critic = make_critic(0, action_layer=layer, hidden_sizes=(400, 300))
    for number, (module, features) in enumerate(zip(layers(critic), (OBS, 400, 300), strict=True), start=1):
        fan_in = features + (ACTION if number == layer else 0)
        assert module.weight.shape[-2] == fan_in
        assert module.weight.abs().max() <= 1 / math.sqrt(fan_in)


@pytest.mark.parametrize("layer", [-1, 0, 4, 100])
def test_a_critic_without_that_layer_is_refused(layer):
    with pytest.raises(ValueError, match="critic_action_layer"):
        make_critic(0, action_layer=layer)


@pytest.mark.parametrize("pieces", [[1000], [1, 999], [1, 1, 498, 500], [100] * 10])
def test_normalizer_knows_mean_and_variance_of_all_it_has_seen(pieces):
    g = np.random.default_rng(0)
    seen = g.normal([0.0, 1e3, -5.0], [1.0, 0.1, 30.0], size=(2, 1000, 3))
    normalizer = Normalizer(2, 3, 10.0)
    start = 0
    for size in pieces:
        normalizer.update(torch.from_numpy(seen[:, start : start + size]))
        start += size
    np.testing.assert_allclose(normalizer.mean.numpy()[:, 0], seen.mean(axis=1), rtol=1e-10)
    np.testing.assert_allclose(normalizer.var.numpy()[:, 0], seen.var(axis=1), rtol=1e-8)
    obs = g.normal([0.0, 1e3, -5.0], [1.0, 0.1, 30.0], size=(2, 6, 3))
    expected = (obs - seen.mean(axis=1, keepdims=True)) / seen.std(axis=1, keepdims=True)
    np.testing.assert_allclose(normalizer(torch.from_numpy(obs)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_normalizer_keeps_members_apart():
    normalizer, alone = Normalizer(2, OBS, 10.0), Normalizer(1, OBS, 10.0)
    obs, _ = inputs()
    normalizer.update(obs)
    alone.update(obs[1:])
    assert torch.equal(normalizer(obs)[1:], alone(obs[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalizer_clips_and_keeps_the_precision(dtype):
    normalizer = Normalizer(1, 2, 10.0)
    normalizer.update(torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]]))  # the second never moved: its variance is 0
    out = normalizer(torch.tensor([[[1e9, 1.0], [-1e9, -1.0], [0.0, 0.0]]], dtype=dtype))
    assert out.dtype is dtype
    assert out.tolist() == [[[10.0, 10.0], [-10.0, -10.0], [0.0, 0.0]]]


@pytest.mark.parametrize("make", [make_actor, make_critic])
def test_targets_share_the_statistics_and_no_parameter(make):
    normalizer = Normalizer(2, OBS, 10.0)
    network = make(0, 1, normalizer=normalizer)
    target = network.target()
    obs, action = inputs()
    arguments = (obs,) if make is make_actor else (obs, action)
    normalizer.update(obs * 3 + 7)  # after the target was made
    assert torch.equal(network(*arguments), target(*arguments))
    with torch.no_grad():
        network.flat.add_(0.1)
    assert not torch.equal(network(*arguments), target(*arguments))
    assert not target.flat.requires_grad


def test_the_statistics_are_part_of_the_actors_state():
    normalizer = Normalizer(2, OBS, 10.0)
    actor = make_actor(0, 1, normalizer=normalizer)
    obs, _ = inputs()
    normalizer.update(obs * 3 + 7)
    restored = make_actor(8, 9, normalizer=Normalizer(2, OBS, 10.0))
    restored.load(actor.tensors())
    assert torch.equal(restored(obs), actor(obs))
    normalizer.update(obs)
    restored.normalizer.update(obs)
    assert torch.equal(restored(obs), actor(obs))  # it continues from the same count


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_shares_one_normaliser_among_its_networks(name):
    values = OmegaConf.to_container(OmegaConf.load(config_dir() / "algo" / f"{name}.yaml"))
    values.pop("name")
    values.pop("defaults", None)
    values |= {"hidden_sizes": [4], "normalize_obs": True}
    algorithm = ALGORITHMS[name](**values, obs_dim=OBS, action_dim=ACTION, seeds=[0, 1], numbers=DOUBLE)
    obs, action = inputs()
    algorithm.observe(obs.numpy() * 3 + 7)
    assert torch.equal(algorithm.actor(obs), algorithm.target_actor(obs))
    assert torch.equal(algorithm.critic(obs, action), algorithm.target_critic(obs, action))
