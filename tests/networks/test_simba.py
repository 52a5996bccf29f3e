"""Layers with member axes: each member must be the plain torch network it stands for."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dpg_cli.networks import Actor, Critic, Mlp, Network, Numbers, SimBa
from dpg_cli.networks.layers import Dense, Elu, LayerNorm, Relu, Residual, Tanh, he_normal, orthogonal
from dpg_cli.seeding import Purpose, torch_generator

OBS, ACTION = 5, 3
DOUBLE = Numbers("cpu", torch.float64, torch.float64)
SIMBA = SimBa(actor_size=8, actor_blocks=2, critic_size=6, critic_blocks=1)


def generators(*seeds):
    return [torch_generator(seed, Purpose.NETWORKS) for seed in seeds]


def inputs(members=2, size=4):
    g = torch.Generator().manual_seed(0)
    obs = torch.randn(members, size, OBS, generator=g, dtype=torch.float64)
    return obs, torch.rand(members, size, ACTION, generator=g, dtype=torch.float64) * 2 - 1


def shaken(network):
    """Parameters that are not at the special values where they start, such as zero biases."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        network.flat.add_(0.3 * torch.randn(len(network.flat), generator=g, dtype=torch.float64))
    return network


def as_torch(layers, tensors, *member):
    """One member's layers as modules of torch."""
    modules = []
    for layer in layers:
        if isinstance(layer, Dense):
            module = nn.Linear(layer.inputs, layer.outputs, dtype=torch.float64)
            module.weight.data = tensors[f"{layer.name}.weight"][member].T.clone()
            module.bias.data = tensors[f"{layer.name}.bias"][member][0].clone()
        elif isinstance(layer, LayerNorm):
            module = nn.LayerNorm(layer.size, eps=layer.epsilon, dtype=torch.float64)
            module.weight.data = tensors[f"{layer.name}.weight"][member][0].clone()
            module.bias.data = tensors[f"{layer.name}.bias"][member][0].clone()
        elif isinstance(layer, Residual):
            module = Plus(as_torch(layer.layers, tensors, *member))
        else:
            module = {Relu: nn.ReLU, Elu: nn.ELU, Tanh: nn.Tanh}[type(layer)]()
        modules.append(module)
    return nn.Sequential(*modules)


class Plus(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def test_a_simba_actor_is_torchs():
    actor = shaken(Actor(SIMBA.actor(OBS, ACTION, []), generators(0, 1), DOUBLE, None))
    obs, _ = inputs()
    with torch.no_grad():
        action = actor(obs)
    assert not actor.by_hand
    for s in range(2):
        wanted = torch.tanh(as_torch(actor.layers, actor.tensors(), s)(obs[s]))
        torch.testing.assert_close(action[s], wanted.detach(), rtol=1e-12, atol=1e-14)


def test_simba_critics_are_torchs_with_all_gradients():
    critic = shaken(Critic(SIMBA.critic(OBS, ACTION, [], 1), generators(0, 1), DOUBLE, None, (2,)))
    obs, action = inputs()
    weights = torch.randn(2, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        q, backward = critic.with_backward(obs, action)
        gradient = dict(zip(critic.shapes, backward(weights), strict=True))
        q1, of_action = critic.q1_with_action_gradient(obs, action)
        assert torch.equal(critic(obs, action), q)
        assert torch.equal(critic.q1(obs, action), q1)
    for k in range(2):
        for s in range(2):
            theirs = as_torch(critic.layers[1:], critic.tensors(), k, s)
            x = torch.cat([obs[s], action[s]], dim=-1).requires_grad_()
            y = theirs(x).squeeze(-1)
            torch.testing.assert_close(q[k, s], y.detach(), rtol=1e-12, atol=1e-13)
            (y * weights[k, s]).sum().backward()
            dense = [m for m in theirs.modules() if isinstance(m, nn.Linear | nn.LayerNorm)]
            named = [name for name in critic.shapes if name.endswith("weight")]
            for name, module in zip(named, dense, strict=True):
                wanted = module.weight.grad.T if isinstance(module, nn.Linear) else module.weight.grad[None]
                torch.testing.assert_close(gradient[name][k, s], wanted, rtol=1e-10, atol=1e-12)
                bias = gradient[name.replace("weight", "bias")][k, s]
                torch.testing.assert_close(bias[0], module.bias.grad, rtol=1e-10, atol=1e-12)
            if k == 0:
                (of_x,) = torch.autograd.grad(theirs(x).sum(), x)
                torch.testing.assert_close(of_action[s], of_x[:, OBS:], rtol=1e-10, atol=1e-12)
                torch.testing.assert_close(q1[s], y.detach(), rtol=1e-12, atol=1e-13)


def test_elu_and_layer_norm_by_hand():
    layers = [LayerNorm("norm", 2, epsilon=0.0), Elu()]
    network = Network(layers, generators(0), DOUBLE, None)
    with torch.no_grad():
        network.named()["norm.weight"].copy_(torch.tensor([[2.0, 3.0]]))
        network.named()["norm.bias"].copy_(torch.tensor([[0.5, 1.0]]))
        y = network._forward(torch.tensor([[[1.0, 5.0]]], dtype=torch.float64))
    # mean 3, deviation 2: normalised -1 and 1, so -1.5 and 4.
    assert y.flatten().tolist() == pytest.approx([math.exp(-1.5) - 1, 4.0], rel=1e-12)


@pytest.mark.parametrize("critics", [(), (2,)])
@pytest.mark.parametrize(("rows", "columns"), [(5, 16), (16, 5), (8, 8)])
def test_orthogonal_weights_for_each_member(rows, columns, critics):
    network = Network([Dense("a", rows, columns, orthogonal)], generators(0, 1), DOUBLE, None, critics)
    weight = network.named()["a.weight"].detach()
    few = weight if rows <= columns else weight.mT
    eye = torch.eye(min(rows, columns), dtype=torch.float64).expand(*few.shape[:-2], -1, -1)
    torch.testing.assert_close(few @ few.mT, eye, rtol=1e-12, atol=1e-12)
    flat = weight.flatten(0, -3)
    assert not any(torch.allclose(flat[0], other) for other in flat[1:])


def test_orthogonal_weights_favour_no_sign():
    g = torch_generator(0, Purpose.NETWORKS)
    draws = torch.stack([orthogonal((3, 3), 3, g) for _ in range(4000)])
    assert draws.mean(dim=0).abs().max() < 0.05
    assert (torch.linalg.det(draws) > 0).double().mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("critics", [(), (2,)])
def test_he_weights_have_the_fan_in_of_one_member(critics):
    network = Network([Dense("a", 400, 300, he_normal)], generators(0, 1, 2), DOUBLE, None, critics)
    std = math.sqrt(2 / 400)
    for weight in network.named()["a.weight"].detach().flatten(0, -3):
        assert weight.std().item() == pytest.approx(std, rel=0.01)
        assert weight.mean().item() == pytest.approx(0, abs=4 * std / math.sqrt(weight.numel()))
        # Truncated at two standard deviations of the normal distribution before truncation.
        assert weight.abs().max().item() == pytest.approx(2 * std / 0.87962566103423978, rel=1e-3)


def test_simba_starts_as_its_paper_says():
    network = Actor(
        SimBa(actor_size=64, actor_blocks=2, critic_size=6, critic_blocks=1).actor(OBS, ACTION, []),
        generators(0),
        DOUBLE,
        None,
    )
    own = {name: tensor[0] for name, tensor in network.tensors().items()}
    assert [*own] == [
        *("embedding.weight", "embedding.bias"),
        *(
            f"blocks.{i}.{name}.{part}"
            for i in range(2)
            for name in ("norm", "expand", "project")
            for part in ("weight", "bias")
        ),
        *("norm.weight", "norm.bias", "head.weight", "head.bias"),
    ]
    assert own["blocks.1.expand.weight"].shape == (64, 256)
    assert all(tensor.abs().max() == 0 for name, tensor in own.items() if name.endswith("bias"))
    assert all((own[name] == 1).all() for name in own if name.endswith("norm.weight"))
    assert own["blocks.0.expand.weight"].std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.03)
    assert own["blocks.0.project.weight"].std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.03)


@pytest.mark.parametrize("kind", ["actor", "critic"])
def test_a_seed_starts_the_same_beside_others_and_alone(kind):
    def make(*seeds):
        if kind == "actor":
            return Actor(SIMBA.actor(OBS, ACTION, []), generators(*seeds), DOUBLE, None)
        return Critic(SIMBA.critic(OBS, ACTION, [], 1), generators(*seeds), DOUBLE, None, (2,))

    together, alone = make(3, 8, 5), make(8)
    for both, own in zip(together.tensors().values(), alone.tensors().values(), strict=True):
        assert torch.equal(both.narrow(-3, 1, 1), own)


def test_large_products_are_rounded_and_nothing_else():
    sizes = SimBa(actor_size=64, actor_blocks=1, critic_size=64, critic_blocks=1)
    numbers = Numbers("cpu", torch.float64, torch.bfloat16)
    rounded = Critic(sizes.critic(OBS, ACTION, [], 1), generators(0), numbers, None, (2,))
    exact = Critic(sizes.critic(OBS, ACTION, [], 1), generators(0), DOUBLE, None, (2,))
    obs, action = inputs(1, 32)
    with torch.no_grad():
        q, reference = rounded(obs, action), exact(obs, action)
        assert q.dtype is torch.float64
        assert 0 < (q - reference).abs().max() < 0.05
        assert torch.equal(rounded.q1(obs, action, exact=True), exact.q1(obs, action))


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_plain_layers_have_the_same_gradients_by_hand_and_by_torch(layer):
    obs, action = inputs(2, 9)
    weights = torch.randn(2, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = []
    for autograd in (False, True):
        layers = Mlp().critic(OBS, ACTION, [8, 6], layer)
        critic = Critic(layers, generators(0, 1), DOUBLE._replace(autograd=autograd), None, (2,))
        assert critic.by_hand is not autograd
        with torch.no_grad():
            q, backward = critic.with_backward(obs, action)
            gradient = backward(weights)
            parts = critic.views(gradient) if isinstance(gradient, torch.Tensor) else gradient
            found.append([q, *(part.clone() for part in parts), *critic.q1_with_action_gradient(obs, action)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_description_names_every_tensor():
    actor = Actor(SIMBA.actor(OBS, ACTION, []), generators(0), DOUBLE, None)

    def named(layers):
        for layer in layers:
            yield from (layer[key] for key in ("weight", "bias") if key in layer)
            yield from named(layer.get("layers", []))

    description = actor.description()
    assert [layer["type"] for layer in description] == ["dense", "residual", "residual", "layer_norm", "dense", "tanh"]
    assert [*named(description)] == [*actor.tensors()]


def test_networks_on_the_meta_device_have_shapes_and_take_no_memory():
    layers = SimBa(actor_size=10**6, actor_blocks=1, critic_size=1, critic_blocks=1).actor(OBS, ACTION, [])
    actor = Actor(layers, generators(0), Numbers("meta"), None)
    assert actor.flat.numel() > 8 * 10**12
    assert actor.tensors()["head.weight"].shape == (1, 10**6, ACTION)
    assert np.prod(actor.shapes["blocks.0.expand.weight"]) == 4 * 10**12
