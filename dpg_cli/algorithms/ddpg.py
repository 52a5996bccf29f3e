"""Deep deterministic policy gradient: Lillicrap et al. 2016, arXiv:1509.02971."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpg_cli.algorithms.base import Algorithm, Batch, register, saturation, squared_error


@register
@dataclass(kw_only=True, eq=False)
class DDPG(Algorithm):
    """One critic regressed on a one-step target; an actor that ascends it (Lillicrap et al. 2016, Algorithm 1)."""

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One update of critic, actor and targets; see `Algorithm.update`."""
        obs, action, reward, next_obs, terminated = batch

        with torch.no_grad():
            next_q = self.target_critic.q1(next_obs, self.target_actor(next_obs))
            target = reward + self.discount * (1 - terminated) * next_q

        q = self.critic(obs, action)
        critic_loss = squared_error(q, target)
        critic_norm = self.descend(self.critic_optimizer, critic_loss)

        # The deterministic policy gradient (Silver et al. 2014): ∇θ μ(s) ∇a Q(s, a) at a = μ(s).
        policy_action = self.actor(obs)
        actor_loss = -self.critic.q1(obs, policy_action).mean(dim=-1)
        actor_norm = self.descend(self.actor_optimizer, actor_loss)

        self.update_targets()
        self.updates += 1
        return {
            "loss/critic": critic_loss.detach(),
            "loss/actor": actor_loss.detach(),
            "value/q_mean": q.detach().mean(dim=(0, -1)),
            "value/target_mean": target.mean(dim=-1),
            "policy/saturation": saturation(policy_action.detach()),
            "grad/critic_norm": critic_norm,
            "grad/actor_norm": actor_norm,
        }
