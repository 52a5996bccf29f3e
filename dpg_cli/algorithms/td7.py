"""TD3 with learned embeddings, prioritised replay, bounded values and policy checkpoints.

"For SALE: State-Action Representation Learning for Deep Reinforcement Learning", Fujimoto et al. 2023,
arXiv:2306.02451.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dpg_cli.algorithms.base import Algorithm, Batch, Learned, register, saturation
from dpg_cli.networks import Actor, Mlp
from dpg_cli.networks.sale import Encoder, SaleCritic, describe_policy, sale_actor
from dpg_cli.ranges import Count, NonNegative, Positive, PositiveFraction

LIMIT = 1e8  # beyond all values and returns


@register
@dataclass(kw_only=True, eq=False)
class TD7(Algorithm):
    """TD3 on embeddings of states and actions that an encoder learns beside it (Fujimoto et al. 2023, Algorithm 1)."""

    initial: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"checkpoint_actor": "actor", "checkpoint_encoder": "fixed_encoder"}
    )
    inherited: ClassVar[tuple[str, ...]] = (
        "low",
        "high",
        "lowest",
        "highest",
    )  # bounds of what the critics have learned

    encoder_lr: Positive
    encoder_sizes: list[Count]
    embedding_size: Count
    num_critics: Count
    policy_noise: NonNegative  # standard deviation of the smoothing noise on target actions
    noise_clip: NonNegative
    policy_delay: Count  # updates for each update of the actor
    bc_weight: NonNegative  # of behaviour cloning, with a data set
    policy_checkpoints: bool
    checkpoint_episodes: Count
    checkpoint_start: Count  # updates
    checkpoint_reset: PositiveFraction

    def declare(self) -> None:
        """Networks with fixed copies, bounds of the values, and a checkpoint of the policy."""
        self._check()
        obs_dim, action_dim = self._sizes
        sizes = (obs_dim, action_dim, self.hidden_sizes, self.embedding_size)
        self.encoder = Encoder(obs_dim, action_dim, self.encoder_sizes, self.embedding_size, *self._shared)
        self.actor = Actor(sale_actor(*sizes), *self._shared)
        self.critic: SaleCritic = SaleCritic(*sizes, *self._shared, self.num_critics)
        self.encoder_optimizer = self.new_optimizer(self.encoder, "encoder_lr")
        self.actor_optimizer = self.new_optimizer(self.actor, "actor_lr")
        self.critic_optimizer = self.new_optimizer(self.critic, "critic_lr", self.critic_weight_decay)
        self.fixed_encoder, self.target_encoder = self.encoder.target(), self.encoder.target()
        self.target_actor = self.actor.target()
        self.target_critic: SaleCritic = self.critic.target()
        one = torch.ones(len(self.generators), 1, dtype=self._dtype, device=self.device)
        self.member_state |= {"low": 0 * one, "high": 0 * one, "lowest": LIMIT * one, "highest": -LIMIT * one}
        if self.separate:
            self.checkpoint_actor, self.checkpoint_encoder = self.actor.target(), self.encoder.target()
            one = torch.ones(len(self.generators), 1, dtype=torch.float64)
            self.member_state |= {"due": 0 * one, "episodes": 0 * one, "worst": LIMIT * one, "best_worst": -LIMIT * one}

    def _check(self) -> None:
        if not isinstance(self._architecture, Mlp):
            raise ValueError("name=td7: it has networks of its own; use network=mlp")
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes=[]: must hold at least one size with td7")
        if self.critic_action_layer != 1:
            raise ValueError(f"critic_action_layer={self.critic_action_layer}: must be 1 with td7")
        if self.target_copy_every is None:
            raise ValueError("target_copy_every=null: must be a number of updates with td7, which copies its targets")

    @property
    def actor_every(self) -> int:
        """See `Algorithm.actor_every`."""
        return self.policy_delay

    def changes_policy(self, number: int) -> bool:
        """The policy acts on the fixed encoder, too."""
        return number % self.policy_delay == 0 or number % self._copy_every == 0

    @property
    def _copy_every(self) -> int:
        assert self.target_copy_every is not None
        return self.target_copy_every

    def update(self, batch: Batch) -> Learned:
        """One update of encoder and critics, every `policy_delay`-th time of the actor; see `Algorithm.update`."""
        obs, action, reward, next_obs, terminated, discount, second_obs = batch

        # The embedding of a state and an action predicts that of the next state.
        with torch.no_grad():
            second_zs = self.encoder.of_state(second_obs)
        predicted_zs = self.encoder.of_pair(self.encoder.of_state(obs), action)
        encoder_loss = (predicted_zs - second_zs).square().mean(dim=(-2, -1))
        encoder_norm = self.descend(self.encoder_optimizer, encoder_loss)

        with torch.no_grad():
            next_zs = self.target_encoder.of_state(next_obs)
            # Target policy smoothing.
            noise = self.policy_noise * self.standard_normal(action.shape)
            noise = noise.clamp(-self.noise_clip, self.noise_clip)
            next_action = (self.target_actor(next_obs, next_zs) + noise).clamp(-1, 1)
            next_zsa = self.target_encoder.of_pair(next_zs, next_action)
            # Clipped double Q, within the bounds of earlier targets: (K, S, B) -> (S, B).
            next_q = self.target_critic(next_obs, next_action, next_zsa, next_zs).amin(dim=0)
            next_q = next_q.clamp(self.member_state["low"], self.member_state["high"])
            target = reward + discount * (1 - terminated) * next_q
            self._track(target)
            zs = self.fixed_encoder.of_state(obs)
            zsa = self.fixed_encoder.of_pair(zs, action)

        q = self.critic(obs, action, zsa, zs)
        critic_loss, _, td_error = self.critic_error(q, target)
        critic_norm = self.descend(self.critic_optimizer, critic_loss)
        scalars = {
            "loss/encoder": encoder_loss,
            "loss/critic": critic_loss,
            "value/q_mean": q.mean(dim=(0, -1)),
            "value/target_mean": target.mean(dim=-1),
            "grad/encoder_norm": encoder_norm,
            "grad/critic_norm": critic_norm,
        }

        # Delayed policy updates, up the mean of all critics.
        self.updates += 1
        if self.due(self.policy_delay):
            policy_action = self.actor(obs, zs)
            policy_q = self.critic(obs, policy_action, self.fixed_encoder.of_pair(zs, policy_action), zs)
            actor_loss = -policy_q.mean(dim=(0, -1))
            if self.learns_offline:
                cloning = (policy_action - action).square().mean(dim=(-2, -1))
                actor_loss = actor_loss + self.bc_weight * policy_q.abs().mean(dim=(0, -1)).detach() * cloning
                scalars["loss/behavior_cloning"] = cloning
            actor_norm = self.descend(self.actor_optimizer, actor_loss)
            scalars |= {
                "loss/actor": actor_loss,
                "policy/saturation": saturation(policy_action),
                "grad/actor_norm": actor_norm,
            }
        copied = self.due(self._copy_every)
        if copied:
            self.update_targets()
        return Learned({tag: value.detach() for tag, value in scalars.items()}, td_error.detach(), copied)

    def _track(self, target: Tensor) -> None:
        """Keep the lowest and the highest target so far."""
        lowest, highest = self.member_state["lowest"], self.member_state["highest"]
        lowest.copy_(torch.minimum(lowest, target.amin(dim=-1, keepdim=True)))
        highest.copy_(torch.maximum(highest, target.amax(dim=-1, keepdim=True)))

    @torch.no_grad()
    def update_targets(self) -> None:
        """Copy all networks to their fixed copies. The target encoder gets the fixed one before that is replaced."""
        self.target_actor.flat.copy_(self.actor.flat)
        self.target_critic.flat.copy_(self.critic.flat)
        self.target_encoder.flat.copy_(self.fixed_encoder.flat)
        self.fixed_encoder.flat.copy_(self.encoder.flat)
        self.member_state["low"].copy_(self.member_state["lowest"])
        self.member_state["high"].copy_(self.member_state["highest"])

    # --- acting ---

    def action(self, obs: Tensor) -> Tensor:
        """See `Algorithm.action`."""
        return self.actor(obs, self.fixed_encoder.of_state(obs, exact=True), exact=True)

    def policy(self, obs: Tensor) -> Tensor:
        """See `Algorithm.policy`: that of the checkpoint, if there are policy checkpoints."""
        actor, encoder = self._policy_networks()
        return actor(obs, encoder.of_state(obs, exact=True), exact=True)

    @torch.inference_mode()
    def value(self, obs: np.ndarray) -> np.ndarray:
        """See `Algorithm.value`."""
        tensor = self._tensor(obs)
        action, zs = self.policy(tensor), self.fixed_encoder.of_state(tensor, exact=True)
        zsa = self.fixed_encoder.of_pair(zs, action, exact=True)
        return self.critic(tensor, action, zsa, zs, exact=True)[0].cpu().numpy()

    def policy_tensors(self) -> dict[str, Tensor]:
        """See `Algorithm.policy_tensors`."""
        actor, encoder = self._policy_networks()
        return actor.tensors() | encoder.state_tensors()

    def describe_policy(self) -> list[dict[str, Any]]:
        """See `Algorithm.describe_policy`."""
        return describe_policy(*self._policy_networks())

    def _policy_networks(self) -> tuple[Actor, Encoder]:
        if self.separate:
            return self.checkpoint_actor, self.checkpoint_encoder
        return self.actor, self.fixed_encoder

    # --- policy checkpoints ---

    @property
    def separate(self) -> bool:
        """With policy checkpoints members learn when their episodes end."""
        return self.policy_checkpoints and not self.learns_offline

    def load_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """See `Algorithm.load_state`."""
        super().load_state(states)
        for name in ("due", "episodes") if self.separate else ():
            numbers = self.member_state[name]
            if not ((numbers >= 0) & (numbers < LIMIT) & (numbers == numbers.floor())).all():
                raise ValueError(f"{name} must be a count, got {numbers.flatten().tolist()}")

    @torch.no_grad()
    def updates_now(self, due: int, episode_returns: Sequence[float]) -> int:
        """The policy stays the same for a window of episodes, then all updates follow at once (Algorithm 2).

        If the worst return of the window is not worse than that of the checkpoint, this policy becomes the checkpoint.
        Otherwise the window ends early. A window is one episode long until `checkpoint_start` updates have been made,
        then `checkpoint_episodes`. With several environments it is longer where episodes end at the same step.
        """
        if not self.separate:
            return due
        state = self.member_state
        state["due"] += due
        if not episode_returns or self.updates + int(state["due"]) == 0:  # without updates actions are still random
            return 0
        state["episodes"] += len(episode_returns)
        state["worst"].clamp_(max=min(episode_returns))
        length = self.checkpoint_episodes if self.updates > self.checkpoint_start else 1
        worse = bool(state["worst"] < state["best_worst"])
        if not worse and state["episodes"] < length:
            return 0
        if not worse:
            state["best_worst"].copy_(state["worst"])
            self.checkpoint_actor.flat.copy_(self.actor.flat)
            self.checkpoint_encoder.flat.copy_(self.fixed_encoder.flat)
        updates = int(state["due"])
        state["due"].zero_()
        state["episodes"].zero_()
        state["worst"].fill_(LIMIT)
        if self.updates <= self.checkpoint_start < self.updates + updates:
            state["best_worst"] *= self.checkpoint_reset  # a longer window has a lower minimum
        return updates
