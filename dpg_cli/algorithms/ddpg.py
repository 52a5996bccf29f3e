"""Deep deterministic policy gradient: Lillicrap et al. 2016, arXiv:1509.02971."""

from dataclasses import dataclass

from torch import Tensor

from dpg_cli.algorithms.base import Algorithm, Batch, by_hand, register, saturation, squared_error


@register
@dataclass(kw_only=True, eq=False)
class DDPG(Algorithm):
    """One critic regressed on a one-step target; an actor that ascends it (Lillicrap et al. 2016, Algorithm 1)."""

    @by_hand
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One update of critic, actor and targets; see `Algorithm.update`."""
        obs, action, reward, next_obs, terminated = batch

        next_q = self.target_critic.q1(next_obs, self.target_actor(next_obs))
        target = reward + self.discount * (1 - terminated) * next_q

        q, critic_backward = self.critic.with_backward(obs, action)
        critic_loss, loss_gradient = squared_error(q, target)
        critic_norm = self.step(self.critic_optimizer, critic_backward(loss_gradient))

        # Up the deterministic policy gradient (Silver et al. 2014): the mean of ∇θ μ(s) ∇a Q(s, a) at a = μ(s).
        policy_action, actor_backward = self.actor.with_backward(obs)
        policy_q, action_gradient = self.critic.q1_with_action_gradient(obs, policy_action)
        actor_norm = self.step(self.actor_optimizer, actor_backward(-action_gradient / policy_q.shape[-1]))

        self.update_targets()
        self.updates += 1
        return {
            "loss/critic": critic_loss,
            "loss/actor": -policy_q.mean(dim=-1),
            "value/q_mean": q.mean(dim=(0, -1)),
            "value/target_mean": target.mean(dim=-1),
            "policy/saturation": saturation(policy_action),
            "grad/critic_norm": critic_norm,
            "grad/actor_norm": actor_norm,
        }
