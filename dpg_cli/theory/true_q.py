"""An algorithm's own update, with the true Q in place of its critics.

Symbols are those of `regulator.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpg_cli.adam import Adam
from dpg_cli.algorithms import Algorithm, Batch
from dpg_cli.networks import Network
from dpg_cli.theory.regulator import Regulator


class LinearActor(nn.Module):
    """μ(s) = K s in place of `networks.Actor`.

    Args:
        gain: K, `(m, n)`.
    """

    by_hand = True

    def __init__(self, gain: Tensor):
        super().__init__()
        self.shape = (1, *gain.T.shape)  # (1, n, m), one member
        self.flat = nn.Parameter(gain.T.clone().flatten())

    def forward(self, obs: Tensor) -> Tensor:
        """`(1, B, n)` to `(1, B, m)`."""
        return obs @ self.flat.view(self.shape)

    def with_backward(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """As in `networks.Actor`."""
        return self(obs), lambda grad: (obs.mT @ grad).flatten()

    def views(self, flat: Tensor) -> list[Tensor]:
        """As in `networks.Network`."""
        return [flat.view(self.shape)]


class TrueCritic(nn.Module):
    """The true Q in place of `networks.Critic`.

    The first critic is the true Q. Critic k + 1 is k `lift` (1 + ‖a‖²) above it. It has another gradient, which reveals
    an actor that ascends anything except the first critic. The first of several critics is not the smallest if `lift`
    is negative, and not the largest if it is positive.

    Args:
        regulator: the problem.
        gain: K of the policy that Q is of, `(m, n)`.
        num_critics: number of critics.
        lift: distance of each critic above the one before it at action 0.
    """

    def __init__(self, regulator: Regulator, gain: Tensor, num_critics: int = 1, lift: float = -1.0):
        super().__init__()
        self._regulator, self._gain, self._lift = regulator, gain.detach().clone(), lift
        # A parameter for the critic's optimizer; the gradient by the action does not depend on it.
        self.flat = nn.Parameter(torch.zeros(num_critics, dtype=gain.dtype))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """`(1, B, n)` and `(1, B, m)` to `(num_critics, 1, B)`."""
        lifts = self._lift * torch.arange(len(self.flat), dtype=obs.dtype)[:, None, None]
        above = lifts * (1 + action.square().sum(dim=-1))
        return self._regulator.q(self._gain, obs, action) + above + self.flat[:, None, None]

    def q1(self, obs: Tensor, action: Tensor) -> Tensor:
        """The first critic's values, `(1, B)`."""
        q: Tensor = self(obs, action)
        return q[0]

    def with_backward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """As in `networks.Critic`."""
        return self(obs, action), lambda grad: grad.sum(dim=(1, 2))

    @torch.inference_mode(False)
    @torch.enable_grad()
    def q1_with_action_gradient(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """As in `networks.Critic`."""
        action = action.clone().requires_grad_()
        q1 = self.q1(obs, action)
        return q1.detach(), torch.autograd.grad(q1.sum(), action)[0]

    def views(self, flat: Tensor) -> list[Tensor]:
        """As in `networks.Network`."""
        return [flat.view(-1, 1, 1, 1)]


class SteepestDescent:
    """Replaces `Adam`; a step subtracts the gradient itself.

    Args:
        network: its parameters are updated in place.
    """

    def __init__(self, network: Network):
        self.network = network

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Subtract the gradient, `(P,)`."""
        self.network.flat.sub_(gradient)


def give_true_q(algorithm: Algorithm, regulator: Regulator, gain: Tensor, lift: float = -1.0) -> None:
    """Replace an algorithm's critics by the true Q, and its actor's optimizer by `SteepestDescent`.

    A step of the actor is then the policy gradient itself, including its sign.

    Args:
        algorithm: of one member, in float64; its `update` does not change.
        regulator: the problem.
        gain: K of the policy that Q is of, `(m, n)`.
        lift: see `TrueCritic`.
    """
    num_critics = algorithm.critic.members[0]
    algorithm.critic = TrueCritic(regulator, gain, num_critics, lift)  # type: ignore[assignment]
    algorithm.target_critic = TrueCritic(regulator, gain, num_critics, lift)  # type: ignore[assignment]
    algorithm.critic_optimizer = Adam(algorithm.critic, algorithm.critic_lr)
    algorithm.actor_optimizer = SteepestDescent(algorithm.actor)  # type: ignore[assignment]


def actor_update(
    algorithm: Algorithm, regulator: Regulator, gain: Tensor, lift: float = -1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """∇J from an algorithm's own `update`, given the true Q and a batch with exactly the moment of ρ.

    Args:
        algorithm: of one member, in float64. Its networks are replaced.
        regulator: the problem.
        gain: K, `(m, n)`.
        lift: see `TrueCritic`.

    Returns:
        The actor's step, `(m, n)`, in ∇J's units, and the update's metrics.
    """
    algorithm.actor, algorithm.target_actor = LinearActor(gain), LinearActor(gain)  # type: ignore[assignment]
    give_true_q(algorithm, regulator, gain, lift)
    n = len(regulator.start)
    # n states whose mean of s sᵀ is (1 - γ) Σ: the columns of a Cholesky root.
    scale = (n * (1 - regulator.discount)) ** 0.5
    obs = scale * torch.linalg.cholesky(regulator.state_moment(gain)).T
    action = obs @ gain.T + 0.1 * torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]
    next_obs = obs @ regulator.dynamics.T + action @ regulator.control.T
    reward = regulator.reward(obs, action)
    batch = Batch(
        obs[None],
        action[None],
        reward[None],
        next_obs[None],
        torch.zeros(1, n, dtype=torch.float64),
        regulator.discount,
        next_obs[None],
    )
    for _ in range(algorithm.actor_every):
        metrics = algorithm.update(batch).scalars
    step: Tensor = algorithm.actor.flat.detach().view(gain.T.shape).T - gain
    return step / (1 - regulator.discount), metrics
