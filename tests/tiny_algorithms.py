"""Algorithms with tiny networks in float64, batches for them, and their updates in plain automatic differentiation."""

import numpy as np
import torch
from omegaconf import OmegaConf

from dpg_cli.algorithms import ALGORITHMS, Algorithm, Batch
from dpg_cli.algorithms.td3 import TD3
from dpg_cli.config import config_dir


def make(name, *, seeds=(0,), obs_dim=3, action_dim=2, dtype=torch.float64, **changes) -> Algorithm:
    values = OmegaConf.to_container(OmegaConf.load(config_dir() / "algo" / f"{name}.yaml"))
    values.pop("name")
    values |= {"hidden_sizes": [8, 8], "batch_size": 5} | changes
    return ALGORITHMS[name](**values, obs_dim=obs_dim, action_dim=action_dim, seeds=seeds, dtype=dtype)


def make_batch(size=5, members=1, obs_dim=3, action_dim=2, seed=0) -> Batch:
    g = np.random.default_rng(seed)
    return Batch(
        torch.from_numpy(g.normal(size=(members, size, obs_dim))),
        torch.from_numpy(g.uniform(-1, 1, size=(members, size, action_dim))),
        torch.from_numpy(g.normal(size=(members, size))),
        torch.from_numpy(g.normal(size=(members, size, obs_dim))),
        torch.from_numpy((g.random((members, size)) < 0.4).astype(np.float64)),
    )


def plain_update(algorithm, batch):
    """The same update by torch's automatic differentiation, as an algorithm of one's own may be written."""
    obs, action, reward, next_obs, terminated = batch
    with torch.no_grad():
        next_action = algorithm.target_actor(next_obs)
        if isinstance(algorithm, TD3):
            noise = algorithm.policy_noise * algorithm.standard_normal(action.shape)
            noise = noise.clamp(-algorithm.noise_clip, algorithm.noise_clip)
            next_action = (next_action + noise).clamp(-1, 1)
        next_q = algorithm.target_critic(next_obs, next_action).amin(dim=0)
        target = reward + algorithm.discount * (1 - terminated) * next_q

    critic_loss = (algorithm.critic(obs, action) - target).square().mean(dim=-1).sum(dim=0)
    metrics = {"grad/critic_norm": algorithm.descend(algorithm.critic_optimizer, critic_loss)}
    algorithm.updates += 1
    if algorithm.updates % getattr(algorithm, "policy_delay", 1) == 0:
        actor_loss = -algorithm.critic.q1(obs, algorithm.actor(obs)).mean(dim=-1)
        metrics["grad/actor_norm"] = algorithm.descend(algorithm.actor_optimizer, actor_loss)
        metrics["loss/actor"] = actor_loss.detach()
        algorithm.update_targets()
    return metrics | {"loss/critic": critic_loss.detach()}
