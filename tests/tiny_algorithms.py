"""Algorithms with tiny networks in float64, batches for them, and their updates in plain automatic differentiation."""

from typing import NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf

from dpg_cli.algorithms import ALGORITHMS, Algorithm, Batch, Learned
from dpg_cli.algorithms.td3 import TD3
from dpg_cli.config import config_dir
from dpg_cli.networks import Numbers

DISCOUNT = 0.99


class Layer(NamedTuple):
    """Views of a dense layer's parameters, with their member axes."""

    weight: torch.Tensor
    bias: torch.Tensor


def layers(network) -> list[Layer]:
    """The dense layers of a plain network, in order."""
    views = network.views(network.flat.detach())
    return [Layer(*pair) for pair in zip(views[::2], views[1::2], strict=True)]


def make(
    name, *, seeds=(0,), obs_dim=3, action_dim=2, dtype=torch.float64, products=None, autograd=False, **changes
) -> Algorithm:
    values = OmegaConf.to_container(OmegaConf.load(config_dir() / "algo" / f"{name}.yaml"))
    values.pop("name")
    values.pop("defaults", None)
    values |= {"hidden_sizes": [8, 8], "batch_size": 5} | changes
    numbers = Numbers("cpu", dtype, products or dtype, autograd)
    return ALGORITHMS[name](**values, obs_dim=obs_dim, action_dim=action_dim, seeds=seeds, numbers=numbers)


def make_batch(size=5, members=1, obs_dim=3, action_dim=2, seed=0, discount=DISCOUNT) -> Batch:
    g = np.random.default_rng(seed)
    return Batch(
        torch.from_numpy(g.normal(size=(members, size, obs_dim))),
        torch.from_numpy(g.uniform(-1, 1, size=(members, size, action_dim))),
        torch.from_numpy(g.normal(size=(members, size))),
        torch.from_numpy(g.normal(size=(members, size, obs_dim))),
        torch.from_numpy((g.random((members, size)) < 0.4).astype(np.float64)),
        discount,
    )


def of_member(batch, member) -> Batch:
    """One member's part of a batch, with a member axis of 1."""
    *tensors, discount = batch
    return Batch(*(tensor[member : member + 1] for tensor in tensors), discount)


def plain_update(self, batch):
    """The same update by torch's automatic differentiation, as in a textbook; docs/algorithms/ quotes its lines."""
    obs, action, reward, next_obs, terminated, discount = batch
    with torch.no_grad():
        next_action = self.target_actor(next_obs)
        if isinstance(self, TD3):
            noise = self.policy_noise * self.standard_normal(action.shape)
            noise = noise.clamp(-self.noise_clip, self.noise_clip)
            next_action = (next_action + noise).clamp(-1, 1)
        next_q = self.target_critic(next_obs, next_action).amin(dim=0)
        target = reward + discount * (1 - terminated) * next_q
        td_error = self.critic(obs, action) - target

    critic_loss = (self.critic(obs, action) - target).square().mean(dim=-1).sum(dim=0)
    critic_norm = self.descend(self.critic_optimizer, critic_loss)
    scalars = {"grad/critic_norm": critic_norm, "loss/critic": critic_loss.detach()}
    self.updates += 1
    if self.updates % getattr(self, "policy_delay", 1) == 0:
        actor_loss = -self.critic.q1(obs, self.actor(obs)).mean(dim=-1)
        actor_norm = self.descend(self.actor_optimizer, actor_loss)
        self.update_targets()
        scalars |= {"grad/actor_norm": actor_norm, "loss/actor": actor_loss.detach()}
    return Learned(scalars, td_error)
