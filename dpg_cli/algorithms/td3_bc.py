"""TD3 with behaviour cloning, for offline learning: Fujimoto and Gu 2021, arXiv:2106.06860."""

from dataclasses import dataclass
from typing import ClassVar

from dpg_cli.algorithms.base import Algorithm, Batch, Learned, register, saturation, without_autograd
from dpg_cli.ranges import Count, NonNegative, Positive


@register
@dataclass(kw_only=True, eq=False)
class TD3_BC(Algorithm):  # noqa: N801, the name in the paper
    """TD3 on a data set; its actor also stays close to the data's actions (Fujimoto and Gu 2021)."""

    offline_only: ClassVar[bool] = True

    num_critics: Count
    policy_noise: NonNegative  # standard deviation of the smoothing noise on target actions
    noise_clip: NonNegative
    policy_delay: Count  # critic updates for each update of actor and targets
    alpha: Positive  # weight of the values against behaviour cloning

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

        # The critics learn as TD3's: target policy smoothing and clipped double Q, (K, S, B) -> (S, B).
        noise = self.policy_noise * self.standard_normal(action.shape)
        noise = noise.clamp(-self.noise_clip, self.noise_clip)
        next_action = (self.target_actor(next_obs) + noise).clamp(-1, 1)
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

        # The actor descends -λ mean Q1(s, π(s)) + mean (π(s) - a)², with λ = α / mean |Q1(s, π(s))|, which has no
        # gradient. The second mean is over batch and action components.
        self.updates += 1
        if self.due(self.policy_delay):
            policy_action, actor_backward = self.actor.with_backward(obs)
            q1, action_gradient = self.critic.q1_with_action_gradient(obs, policy_action)
            weight = self.alpha / q1.abs().mean(dim=-1)  # λ, (S,)
            distance = policy_action - action
            batch_size, action_dim = action.shape[-2:]
            of_values = -weight[:, None, None] * action_gradient / batch_size
            of_cloning = 2 * distance / (batch_size * action_dim)
            actor_norm = self.step(self.actor_optimizer, actor_backward(of_values + of_cloning))
            self.update_targets()
            cloning_loss = distance.square().mean(dim=(-2, -1))
            scalars |= {
                "loss/actor": cloning_loss - weight * q1.mean(dim=-1),
                "loss/behavior_cloning": cloning_loss,
                "policy/saturation": saturation(policy_action),
                "grad/actor_norm": actor_norm,
            }
        return Learned(scalars, td_error)
