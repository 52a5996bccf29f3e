"""Distributed distributional deep deterministic policy gradient: Barth-Maron et al. 2018, arXiv:1804.08617."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpg_cli.algorithms.base import Algorithm, Batch, Learned, register, saturation
from dpg_cli.networks import Expectation
from dpg_cli.ranges import Atoms, Count, NonNegative


@register
@dataclass(kw_only=True, eq=False)
class D4PG(Algorithm):
    """DDPG whose critic learns the distribution of the return (Barth-Maron et al. 2018, Algorithm 1).

    The last five keys are for FastTD3 (Seo et al. 2025, arXiv:2505.22642), which has the same critic.
    """

    v_min: float  # the least return that the critic can express
    v_max: float  # the largest
    num_atoms: Atoms
    num_critics: Count
    policy_noise: NonNegative  # standard deviation of the smoothing noise on target actions
    noise_clip: NonNegative
    policy_delay: Count  # critic updates for each update of the actor
    use_target_actor: bool  # whether target actions are the target actor's, else the actor's

    def declare(self) -> None:
        """An actor and `num_critics` critics; the critics have a target, the actor only if it is used."""
        if self.v_min >= self.v_max:
            raise ValueError(f"v_min={self.v_min}: must be below v_max={self.v_max}")
        self._support = Expectation(self.v_min, self.v_max, self.num_atoms)
        atoms = self._support.atoms(torch.empty((), dtype=torch.float64)).to(self._dtype)
        if not (atoms.isfinite().all() and (atoms.diff() > 0).all()):
            raise ValueError(
                f"v_min={self.v_min}, v_max={self.v_max}: {self.num_atoms} increasing numbers do not fit between them"
            )
        self.declare_actor_and_critics(self.num_critics, self._support, target_actor=self.use_target_actor)

    @property
    def actor_every(self) -> int:
        """See `Algorithm.actor_every`."""
        return self.policy_delay

    def update(self, batch: Batch) -> Learned:
        """One update of critics and targets and, every `policy_delay`-th time, of the actor; see `Algorithm.update`."""
        obs, action, reward, next_obs, terminated, discount, _ = batch
        support = self._support
        atoms = support.atoms(reward)  # z

        with torch.no_grad():
            noise = self.policy_noise * self.standard_normal(action.shape)
            noise = noise.clamp(-self.noise_clip, self.noise_clip)
            policy = self.target_actor if self.use_target_actor else self.actor
            next_action = (policy(next_obs) + noise).clamp(-1, 1)
            # Z'(s', a'), with several critics that of the smaller mean: (K, S, B, atoms) -> (S, B, atoms).
            next_p = torch.softmax(self.target_critic.logits(next_obs, next_action), dim=-1)
            smallest = support.mean(next_p).argmin(dim=0, keepdim=True)
            next_p = next_p.take_along_dim(smallest.unsqueeze(-1), dim=0).squeeze(0)
            # r + γ Z', moved to the atoms.
            bootstrap = discount * (1 - terminated)
            value = reward.unsqueeze(-1) + bootstrap.unsqueeze(-1) * atoms
            target_p = project(next_p, value, support)
            clipped = ((value < self.v_min) | (value > self.v_max)) * next_p

        logits = self.critic.logits(obs, action)
        critic_loss = -(target_p * logits.log_softmax(dim=-1)).sum(dim=-1).mean(dim=-1).sum(dim=0)
        critic_norm = self.descend(self.critic_optimizer, critic_loss)
        q, target = support.mean(logits.detach().softmax(dim=-1)), support.mean(target_p)
        scalars = {
            "loss/critic": critic_loss.detach(),
            "value/q_mean": q.mean(dim=(0, -1)),
            "value/target_mean": target.mean(dim=-1),
            "value/clipped_targets": clipped.sum(dim=-1).mean(dim=-1),
            "grad/critic_norm": critic_norm,
        }

        self.updates += 1
        if self.due(self.policy_delay):
            policy_action = self.actor(obs)
            actor_loss = -self.critic(obs, policy_action).amin(dim=0).mean(dim=-1)
            scalars |= {
                "loss/actor": actor_loss.detach(),
                "policy/saturation": saturation(policy_action.detach()),
                "grad/actor_norm": self.descend(self.actor_optimizer, actor_loss),
            }
        self.update_targets()
        return Learned(scalars, q - target)


def project(p: Tensor, value: Tensor, support: Expectation) -> Tensor:
    """Project a distribution onto the atoms: each value's probability goes to the two nearest, in proportion.

    Bellemare et al. 2017 (arXiv:1707.06887), equation 7. Values beyond the atoms go to the outermost ones. Distances
    are measured in atoms, so that the two shares of a value add up to 1, also where it hits an atom.

    Args:
        p: `(..., num_atoms)`.
        value: `(..., num_atoms)`, the value of each probability.
        support: of the result.

    Returns:
        Probabilities of the atoms, `(..., num_atoms)`.
    """
    last = support.num_atoms - 1
    position = ((value - support.v_min) * (last / (support.v_max - support.v_min))).clamp(0, last)
    index = torch.arange(support.num_atoms, dtype=value.dtype, device=value.device)
    share = position.unsqueeze(-1) - index  # (..., of values, of atoms); large, hence changed in place
    share.abs_().neg_().add_(1).clamp_(min=0)
    return share.mul_(p.unsqueeze(-1)).sum(dim=-2)
