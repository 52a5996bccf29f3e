"""Deep deterministic policy gradient: Lillicrap et al. 2016, arXiv:1509.02971."""

from dataclasses import dataclass

from dpg_cli.algorithms.base import Algorithm, Batch, Learned, register, saturation, without_autograd


@register
@dataclass(kw_only=True, eq=False)
class DDPG(Algorithm):
    """A critic regressed on bootstrapped targets; an actor that ascends it (Lillicrap et al. 2016, Algorithm 1)."""

    def declare(self) -> None:
        """An actor and a critic, each with a target."""
        self.declare_actor_and_critics(num_critics=1)

    @without_autograd
    def update(self, batch: Batch) -> Learned:
        """One update of critic, actor and targets; see `Algorithm.update`."""
        obs, action, reward, next_obs, terminated, discount, _ = batch

        next_q = self.target_critic.q1(next_obs, self.target_actor(next_obs))
        target = reward + discount * (1 - terminated) * next_q

        q, critic_backward = self.critic.with_backward(obs, action)
        critic_loss, loss_gradient, td_error = self.critic_error(q, target)
        critic_norm = self.step(self.critic_optimizer, critic_backward(loss_gradient))

        # Up the deterministic policy gradient (Silver et al. 2014): the mean of ∇θ μ(s) ∇a Q(s, a) at a = μ(s).
        policy_action, actor_backward = self.actor.with_backward(obs)
        policy_q, action_gradient = self.critic.q1_with_action_gradient(obs, policy_action)
        actor_norm = self.step(self.actor_optimizer, actor_backward(-action_gradient / policy_q.shape[-1]))

        self.updates += 1
        self.update_targets()
        scalars = {
            "loss/critic": critic_loss,
            "loss/actor": -policy_q.mean(dim=-1),
            "value/q_mean": q.mean(dim=(0, -1)),
            "value/target_mean": target.mean(dim=-1),
            "policy/saturation": saturation(policy_action),
            "grad/critic_norm": critic_norm,
            "grad/actor_norm": actor_norm,
        }
        return Learned(scalars, td_error)
