"""The networks of D4PG in Acme: each member must be the plain torch network it stands for."""

import math

import pytest
import torch
from test_simba import ACTION, DOUBLE, OBS, as_torch, generators, inputs, shaken

from dpg_cli.networks import Actor, Critic, Expectation, LayerNormMlp
from dpg_cli.networks.layers import Dense, Elu, LayerNorm, Tanh

SIZES = LayerNormMlp(actor_sizes=[8, 6], critic_sizes=[10, 7, 5])
SUPPORT = Expectation(-3.0, 1.0, 9)


def test_an_actor_is_torchs():
    actor = shaken(Actor(SIZES.actor(OBS, ACTION, [99]), generators(0, 1), DOUBLE, None))
    assert [type(layer) for layer in actor.layers] == [Dense, LayerNorm, Tanh, Dense, Elu, Dense]
    obs, _ = inputs()
    with torch.no_grad():
        action = actor(obs)
    for s in range(2):
        wanted = torch.tanh(as_torch(actor.layers, actor.tensors(), s)(obs[s]))
        torch.testing.assert_close(action[s], wanted.detach(), rtol=1e-12, atol=1e-14)
    types = ["dense", "layer_norm", "tanh", "dense", "elu", "dense", "tanh"]
    assert [about["type"] for about in actor.description()] == types


def test_critics_are_torchs_and_their_values_have_all_gradients():
    layers = [*SIZES.critic(OBS, ACTION, [99], 1, SUPPORT.num_atoms), SUPPORT]
    critic = shaken(Critic(layers, generators(0, 1), DOUBLE, None, (2,)))
    obs, action = inputs()
    z = torch.linspace(-3, 1, 9, dtype=torch.float64)
    with torch.no_grad():
        logits = critic.logits(obs, action)
        q, backward = critic.with_backward(obs, action)
        q1, of_action = critic.q1_with_action_gradient(obs, action)
        gradient = dict(zip(critic.shapes, backward(torch.ones_like(q)), strict=True))
    for k in range(2):
        for s in range(2):
            theirs = as_torch(critic.layers[1:-1], critic.tensors(), k, s)
            x = torch.cat([obs[s], action[s]], dim=-1).requires_grad_()
            torch.testing.assert_close(logits[k, s], theirs(x).detach(), rtol=1e-12, atol=1e-13)
            mean = theirs(x).softmax(dim=-1) @ z
            torch.testing.assert_close(q[k, s], mean.detach(), rtol=1e-12, atol=1e-13)
            mean.sum().backward()
            wanted = theirs[0].weight.grad.T
            torch.testing.assert_close(gradient["layers.0.weight"][k, s], wanted, rtol=1e-10, atol=1e-12)
            if k == 0:
                torch.testing.assert_close(q1[s], mean.detach(), rtol=1e-12, atol=1e-13)
                torch.testing.assert_close(of_action[s], x.grad[:, OBS:], rtol=1e-10, atol=1e-12)


def test_they_start_as_in_acme():
    sizes = LayerNormMlp(actor_sizes=[400, 300], critic_sizes=[400, 300])
    layers = {"actor": sizes.actor(50, 20, []), "critic": sizes.critic(30, 20, [], 1, 51)}
    own = {
        name: Actor(made[name == "critic" :], generators(0), DOUBLE, None).tensors() for name, made in layers.items()
    }
    for tensors in own.values():
        for name, tensor in tensors.items():
            if name.endswith("bias"):
                assert not tensor.any()
        assert (tensors["norm.weight"] == 1).all()
        for name, fan_in in (("layers.0.weight", 50), ("layers.1.weight", 400)):
            bound = 0.577 / math.sqrt(fan_in)
            assert tensors[name].abs().max().item() == pytest.approx(bound, rel=0.01)
            assert tensors[name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert own["critic"]["layers.2.weight"].abs().max().item() == pytest.approx(0.577 / math.sqrt(300), rel=0.01)
    assert own["actor"]["layers.2.weight"].std().item() == pytest.approx(0.01 / math.sqrt(300), rel=0.03)
