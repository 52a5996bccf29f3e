"""Twin delayed deep deterministic policy gradient: Fujimoto et al. 2018, arXiv:1802.09477."""

from dataclasses import dataclass

from dpg_cli.algorithms.base import Algorithm, Batch, Learned, register, saturation, without_autograd
from dpg_cli.ranges import Count, NonNegative


@register
@dataclass(kw_only=True, eq=False)
class TD3(Algorithm):
    """DDPG with three remedies against overestimated values (Fujimoto et al. 2018, Algorithm 1)."""

    num_critics: Count
    policy_noise: NonNegative  # standard deviation of the smoothing noise on target actions
    noise_clip: NonNegative
    policy_delay: Count  # critic updates for each update of actor and targets

    def declare(self) -> None:
        """An actor and `num_critics` critics, each with a target."""
        self.declare_actor_and_critics(self.num_critics)
        if (self.target_copy_every or self.policy_delay) % self.policy_delay:
            raise ValueError(
                f"target_copy_every={self.target_copy_every}: must be a multiple of policy_delay={self.policy_delay}, "
                "since targets are updated with the actor"
            )

    @property
    def actor_every(self) -> int:
        """See `Algorithm.actor_every`."""
        return self.policy_delay

    @without_autograd
    def update(self, batch: Batch) -> Learned:
        """One update of the critics and, every `policy_delay`-th time, of actor and targets; see `Algorithm.update`."""
        obs, action, reward, next_obs, terminated, discount, _ = batch

        # Target policy smoothing.
        noise = self.policy_noise * self.standard_normal(action.shape)
        noise = noise.clamp(-self.noise_clip, self.noise_clip)
        next_action = (self.target_actor(next_obs) + noise).clamp(-1, 1)
        # Clipped double Q: (K, S, B) -> (S, B).
        next_q = self.target_critic(next_obs, next_action).amin(dim=0)
        target = reward + discount * (1 - terminated) * next_q

        q, critic_backward = self.critic.with_backward(obs, action)
        critic_loss, loss_gradient, td_error = self.critic_error(q, target)
        critic_norm = self.step(self.critic_optimizer, critic_backward(loss_gradient))
        scalars = {
            "loss/critic": critic_loss,
            "value/q_mean": q.mean(dim=(0, -1)),
            "value/target_mean": target.mean(dim=-1),
            "grad/critic_norm": critic_norm,
        }

        # Delayed policy updates, up the deterministic policy gradient (Silver et al. 2014): the mean of
        # ∇θ μ(s) ∇a Q1(s, a) at a = μ(s).
        self.updates += 1
        if self.due(self.policy_delay):
            policy_action, actor_backward = self.actor.with_backward(obs)
            q1, action_gradient = self.critic.q1_with_action_gradient(obs, policy_action)
            actor_norm = self.step(self.actor_optimizer, actor_backward(-action_gradient / q1.shape[-1]))
            self.update_targets()
            scalars |= {
                "loss/actor": -q1.mean(dim=-1),
                "policy/saturation": saturation(policy_action),
                "grad/actor_norm": actor_norm,
            }
        return Learned(scalars, td_error)
