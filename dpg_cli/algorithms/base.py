"""The shared mechanics of deterministic policy gradient algorithms: networks, targets, optimizers, acting, randomness.

The mathematics of an update is complete in each algorithm's own file.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from dpg_cli.adam import Adam
from dpg_cli.networks import Actor, Critic, Network, Normalizer
from dpg_cli.ranges import Count, Fraction, NonNegative, Positive, PositiveFraction
from dpg_cli.seeding import Purpose, restore_generator, torch_generator

NETWORKS = ("actor", "critic", "target_actor", "target_critic")
REGISTRY: dict[str, type["Algorithm"]] = {}
A = TypeVar("A", bound="type[Algorithm]")
Own = TypeVar("Own", bound="Algorithm")
N = TypeVar("N", Actor, Critic)


class Batch(NamedTuple):
    """A batch of B transitions for each of S members."""

    obs: Tensor  # (S, B, obs_dim)
    action: Tensor  # (S, B, action_dim), in [-1, 1]
    reward: Tensor  # (S, B)
    next_obs: Tensor  # (S, B, obs_dim); the true final observation where an episode ended
    terminated: Tensor  # (S, B); 1 if next_obs is terminal, else 0, also at a time limit


@dataclass(kw_only=True, eq=False)
class Algorithm:
    """A learner for S seeds at once. Its fields are its hyperparameters, as in `configs/algo/<name>.yaml`.

    Args:
        obs_dim: size of an observation.
        action_dim: size of an action; actions are in [-1, 1].
        seeds: one per member.
        device: of all tensors.
        dtype: of parameters and arithmetic.
        products: dtype of the large matrix products of an update; None means `dtype`.

    Raises:
        ValueError: hyperparameters contradict each other.
    """

    discount: Fraction
    tau: PositiveFraction  # share of the online networks in each update of the targets
    actor_lr: Positive
    critic_lr: Positive
    batch_size: Count
    hidden_sizes: list[Count]
    critic_weight_decay: NonNegative
    critic_action_layer: Count
    normalize_obs: bool

    obs_dim: InitVar[int]
    action_dim: InitVar[int]
    seeds: InitVar[Sequence[int]]
    device: InitVar[torch.device | str] = "cpu"
    dtype: InitVar[torch.dtype] = torch.float32
    products: InitVar[torch.dtype | None] = None

    def __post_init__(
        self,
        obs_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        device: torch.device | str,
        dtype: torch.dtype,
        products: torch.dtype | None,
    ) -> None:
        """Build networks, optimizers, and targets that start equal to the networks."""
        self._device, self._dtype = torch.device(device), dtype
        self.generators = [torch_generator(seed, Purpose.ALGORITHM, self._device) for seed in seeds]
        self.drawn_ahead: Callable[[Sequence[int]], Tensor] | None = None
        self._normalizer = Normalizer(len(seeds), obs_dim) if self.normalize_obs else None

        generators = [torch_generator(seed, Purpose.NETWORKS) for seed in seeds]
        shared = (generators, dtype, self._normalizer)
        num_critics = getattr(self, "num_critics", 1)  # a hyperparameter that only some algorithms have
        self.actor = Actor(obs_dim, action_dim, self.hidden_sizes, *shared).to(self._device)
        self.critic = Critic(obs_dim, action_dim, self.hidden_sizes, *shared, num_critics, self.critic_action_layer).to(
            self._device
        )
        for network in (self.actor, self.critic):
            network.passes.products = products or dtype
        self.target_actor, self.target_critic = target_of(self.actor), target_of(self.critic)
        self.actor_optimizer = Adam(self.actor, self.actor_lr)
        self.critic_optimizer = Adam(self.critic, self.critic_lr, self.critic_weight_decay)
        self.updates = 0

    @property
    def actor_every(self) -> int:
        """Updates per change of the actor: an update changes it when `updates` becomes a multiple of this."""
        return getattr(self, "policy_delay", 1)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from one batch.

        Only whether the actor changes depends on `updates`; nothing else depends on numbers on the host. Both kinds of
        update, with and without a change of the actor, can therefore be captured and replayed.

        Args:
            batch: B transitions for each member.

        Returns:
            Detached scalars by tag, each `(S,)`.
        """
        raise NotImplementedError

    @torch.inference_mode()
    def act(self, obs: np.ndarray) -> np.ndarray:
        """The deterministic policy: `(S, N, obs_dim)` to actions `(S, N, action_dim)` in [-1, 1]."""
        action: Tensor = self.actor(self._tensor(obs), exact=True)
        return action.cpu().numpy()

    @torch.inference_mode()
    def value(self, obs: np.ndarray) -> np.ndarray:
        """Q(s, μ(s)) by the first critic: `(S, N, obs_dim)` to `(S, N)`."""
        tensor = self._tensor(obs)
        return self.critic.q1(tensor, self.actor(tensor, exact=True), exact=True).cpu().numpy()

    def observe(self, obs: np.ndarray) -> None:
        """Update the normaliser, if there is one, with new observations `(S, N, obs_dim)`."""
        if self._normalizer is not None:
            self._normalizer.update(self._tensor(obs))

    def policy_state(self, member: int) -> dict[str, Tensor]:
        """The tensors of one member's policy, by name, with a member axis of 1."""
        return {name: tensor[member : member + 1].cpu() for name, tensor in self.actor.tensors().items()}

    def networks_state(self, member: int) -> dict[str, dict[str, Tensor]]:
        """The networks' part of `state(member)`: tensors by network and name, without a member axis."""
        return {
            name: {key: _of_member(tensor, member) for key, tensor in network.tensors().items()}
            for name, network in self._networks()
        }

    def state(self, member: int) -> dict[str, Any]:
        """The state of one member, from which learning resumes exactly; tensors have no member axis."""
        state: dict[str, Any] = dict(self.networks_state(member))
        for name, optimizer in self._optimizers():
            state[name] = {
                "mean": [_of_member(tensor, member) for tensor in optimizer.network.views(optimizer.mean)],
                "square": [_of_member(tensor, member) for tensor in optimizer.network.views(optimizer.square)],
                "count": optimizer.count,
            }
        return state | {"updates": self.updates, "random": self.generators[member].get_state()}

    def static_tensors(self) -> list[Tensor]:
        """Every tensor that acting and updates read or write and that persists between them."""
        networks = [tensor for _, network in self._networks() for tensor in network.static_tensors()]
        return networks + [tensor for _, optimizer in self._optimizers() for tensor in optimizer.static_tensors()]

    @torch.no_grad()
    def load_networks(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Copy the networks from states of `state()` or `networks_state()`, one per member.

        Raises:
            ValueError: a tensor has another shape.
        """
        for name, network in self._networks():
            for key, tensor in network.tensors().items():
                for member, state in enumerate(states):
                    _restore(tensor, member, state[name][key])

    def load_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore states from `state()`, one per member.

        Raises:
            ValueError: a tensor has another shape.
        """
        self.load_networks(states)
        with torch.no_grad():
            for name, optimizer in self._optimizers():
                optimizer.set_count(states[0][name]["count"])
                for key, own in (("mean", optimizer.mean), ("square", optimizer.square)):
                    for index, tensor in enumerate(optimizer.network.views(own)):
                        for member, state in enumerate(states):
                            _restore(tensor, member, state[name][key][index])
        self.updates = states[0]["updates"]
        for generator, state in zip(self.generators, states, strict=True):
            restore_generator(generator, state["random"], self.updates)

    # --- for the updates ---

    def standard_normal(self, shape: Sequence[int]) -> Tensor:
        """N(0, 1) of shape `(S, ...)`: from each member's own stream, or from `drawn_ahead` if it is set."""
        if self.drawn_ahead is not None:
            return self.drawn_ahead(shape)
        draws = [torch.randn(*shape[1:], generator=g, device=self._device, dtype=self._dtype) for g in self.generators]
        return draws[0].unsqueeze(0) if len(draws) == 1 else torch.stack(draws)

    def step(self, optimizer: Adam, gradient: Tensor) -> Tensor:
        """Take one step of `optimizer`, against the gradient.

        Args:
            optimizer: of a network.
            gradient: with respect to that network's parameters, `(P,)`.

        Returns:
            The norm of each member's gradient, `(S,)`.
        """
        optimizer.step(gradient)
        if len(self.generators) == 1:
            return gradient.dot(gradient).sqrt().view(1)
        return member_norm(optimizer.network.views(gradient))

    def descend(self, optimizer: Adam, loss: Tensor) -> Tensor:
        """Take one step of `optimizer` that decreases `loss`, by automatic differentiation.

        Args:
            optimizer: of the only network that is differentiated.
            loss: `(S,)`. The sum over members is differentiated, so that each member gets its own gradient.

        Returns:
            The norm of each member's gradient, `(S,)`.
        """
        return self.step(optimizer, *torch.autograd.grad(loss.sum(), optimizer.network.flat))

    @torch.no_grad()
    def update_targets(self) -> None:
        """Polyak averaging of both targets: θ' ← τ θ + (1 - τ) θ'."""
        for online, target in ((self.critic, self.target_critic), (self.actor, self.target_actor)):
            target.flat.lerp_(online.flat, self.tau)

    # --- private ---

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, self._dtype)

    def _networks(self) -> Iterator[tuple[str, Network]]:
        for name in NETWORKS:
            yield name, getattr(self, name)

    def _optimizers(self) -> Iterator[tuple[str, Adam]]:
        yield "actor_optimizer", self.actor_optimizer
        yield "critic_optimizer", self.critic_optimizer


def _of_member(tensor: Tensor, member: int) -> Tensor:
    """One member's part of `(*critics, S, rows, columns)`."""
    return tensor.select(tensor.dim() - 3, member)


def _restore(tensor: Tensor, member: int, stored: Tensor) -> None:
    """Copy a stored part back. The shape is checked, since `copy_` silently broadcasts a smaller tensor."""
    own = _of_member(tensor, member)
    if stored.shape != own.shape:
        raise ValueError(f"a stored tensor has shape {tuple(stored.shape)}, not {tuple(own.shape)}")
    own.copy_(stored)


def by_hand(update: Callable[[Own, Batch], dict[str, Tensor]]) -> Callable[[Own, Batch], dict[str, Tensor]]:
    """Decorate an update that computes its own gradients: it runs without torch's automatic differentiation.

    Inference mode is fastest, but torch's compiler does not support it.
    """
    compiled, otherwise = torch.no_grad()(update), torch.inference_mode()(update)

    @functools.wraps(update)
    def chosen(algorithm: Own, batch: Batch) -> dict[str, Tensor]:
        return compiled(algorithm, batch) if torch.compiler.is_compiling() else otherwise(algorithm, batch)

    return chosen


def register(algorithm: A) -> A:
    """Register an algorithm under its class's name in lower case."""
    REGISTRY[algorithm.__name__.lower()] = algorithm
    return algorithm


def target_of(network: N) -> N:
    """A target network that starts equal to `network` and shares its normaliser, but no parameters."""
    return copy.deepcopy(network, {id(network.normalizer): network.normalizer}).requires_grad_(False)


def member_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Each member's norm over all of `tensors`, each `(*critics, S, rows, columns)`: `(S,)`."""
    norms = [torch.linalg.vector_norm(t, dim=[d for d in range(t.dim()) if d != t.dim() - 3]) for t in tensors]
    stacked: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return stacked


def squared_error(q: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of values `(K, S, B)` and targets `(S, B)`: mean over the batch, sum over the critics.

    Returns:
        The loss, `(S,)`, and its gradient with respect to the values, `(K, S, B)`.
    """
    error = q - target
    return error.square().mean(dim=-1).sum(dim=0), error * (2 / error.shape[-1])


def saturation(action: Tensor) -> Tensor:
    """Share of saturated action components, beyond ±0.99: `(S, B, A)` to `(S,)`."""
    return (action.abs() > 0.99).mean(dim=(-2, -1), dtype=action.dtype)
