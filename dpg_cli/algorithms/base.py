"""The shared mechanics of deterministic policy gradient algorithms: networks, targets, optimizers, acting, randomness.

The mathematics of an update is complete in each algorithm's own file.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from itertools import chain, combinations
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from dpg_cli.adam import Adam
from dpg_cli.networks import (
    Actor,
    Architecture,
    Critic,
    Expectation,
    Gradient,
    Mlp,
    Network,
    Normalizer,
    Numbers,
    copy_tensors,
)
from dpg_cli.ranges import Count, Fraction, NonNegative, Positive, PositiveFraction, WindowSteps
from dpg_cli.seeding import Purpose, restore_generator, torch_generator

DEVIATION_OFFSET = 1e-3  # added to a data set's deviations, as in the code of TD3+BC's author
Kind = tuple[bool, ...]
REGISTRY: dict[str, type["Algorithm"]] = {}
A = TypeVar("A", bound="type[Algorithm]")
Own = TypeVar("Own", bound="Algorithm")
Part = TypeVar("Part", Network, Adam)


class Batch(NamedTuple):
    """A batch of B windows of n steps for each of S members; n is 1 unless `algo.n_steps` says otherwise."""

    obs: Tensor  # (S, B, obs_dim)
    action: Tensor  # (S, B, action_dim), in [-1, 1]
    reward: Tensor  # (S, B); of n steps, discounted to the first
    next_obs: Tensor  # (S, B, obs_dim); after the last step; the true final observation where an episode ended
    terminated: Tensor  # (S, B); 1 if next_obs is terminal, else 0, also at a time limit
    discount: Tensor | float  # (S, B), or one number; of next_obs: γ to the power of the steps made
    second_obs: Tensor  # (S, B, obs_dim); after the first step


class Learned(NamedTuple):
    """The result of an update."""

    scalars: dict[str, Tensor]  # detached, by tag, each (S,)
    td_error: Tensor  # (K, S, B), Q(s, a) minus its target, of each critic
    resets_largest: bool = False  # whether the largest priority so far becomes the largest that is stored


@dataclass(kw_only=True, eq=False)
class Algorithm:
    """A learner for S seeds at once. Its fields are its hyperparameters, as in `configs/algo/<name>.yaml`.

    What `declare` assigns to attributes is saved, loaded and counted: networks and optimizers under their attributes'
    names, and further tensors in `member_state`.

    Args:
        obs_dim: size of an observation.
        action_dim: size of an action; actions are in [-1, 1].
        seeds: one per member.
        architecture: of the networks; None: `Mlp`.
        numbers: device and precision of all tensors; None: the CPU and float32.
        huber: whether the critics' error is `huber_error` instead of `squared_error`.
        offline: whether it learns from a data set alone. A normaliser is then not clipped, and set by `normalize_by`.

    Raises:
        ValueError: hyperparameters contradict each other.

    Attributes:
        learns_offline: the argument `offline`.
        updates: made so far.
        owed: updates that are still to be made for the last step of the environments.
    """

    offline_only: ClassVar[bool] = False  # whether it only makes sense with a data set

    discount: Fraction
    tau: PositiveFraction  # share of the online networks in each soft update of the targets
    actor_lr: Positive
    critic_lr: Positive
    batch_size: Count
    hidden_sizes: list[Count]
    critic_weight_decay: NonNegative  # L2 penalty
    critic_action_layer: Count
    normalize_obs: bool
    n_steps: WindowSteps = 1  # older runs lack this key and the next three
    weight_decay: NonNegative = 0.0  # AdamW's, of all networks
    max_grad_norm: Positive | None = None  # of each network of a member
    target_copy_every: Count | None = None  # updates; None: soft updates

    obs_dim: InitVar[int]
    action_dim: InitVar[int]
    seeds: InitVar[Sequence[int]]
    architecture: InitVar[Architecture | None] = None
    numbers: InitVar[Numbers | None] = None
    huber: InitVar[bool] = False
    offline: InitVar[bool] = False

    initial: ClassVar[Mapping[str, str]] = MappingProxyType({})  # names of networks that start as copies of others
    inherited: ClassVar[tuple[str, ...]] = ()  # what of `member_state` goes with the networks to another run

    def __post_init__(
        self,
        obs_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        architecture: Architecture | None,
        numbers: Numbers | None,
        huber: bool,
        offline: bool,
    ) -> None:
        """Build networks and optimizers."""
        self._architecture, self._numbers = architecture or Mlp(), numbers or Numbers()
        self.device, self._dtype = torch.device(self._numbers.device), self._numbers.parameters
        self._sizes = (obs_dim, action_dim)
        self.critic_error = huber_error if huber else squared_error
        self.learns_offline = offline
        random_device = "cpu" if self.device.type == "meta" else self.device
        self.generators = [torch_generator(seed, Purpose.ALGORITHM, random_device) for seed in seeds]
        self._starts = [torch_generator(seed, Purpose.NETWORKS) for seed in seeds]  # for the networks' parameters
        self.drawn_ahead: Callable[[Sequence[int]], Tensor] | None = None
        self._normalizer: Normalizer | None = None
        if self.normalize_obs:
            clip = None if offline else self._architecture.clip
            self._normalizer = Normalizer(len(seeds), obs_dim, clip, self.device)
        # Arguments of every network.
        self._shared: tuple[Sequence[torch.Generator], Numbers, Normalizer | None]
        self._shared = (self._starts, self._numbers, self._normalizer)
        self.member_state: dict[str, Tensor] = {}  # further tensors, (S, ...)
        self.updates = self.owed = 0
        self.declare()

    def declare(self) -> None:
        """Create the networks, their targets and their optimizers, each as an attribute.

        Raises:
            ValueError: hyperparameters contradict each other.
        """
        raise NotImplementedError

    def declare_actor_and_critics(
        self, num_critics: int, support: Expectation | None = None, *, target_actor: bool = True
    ) -> None:
        """An actor and `num_critics` critics, with a target and an optimizer each.

        Args:
            num_critics: K.
            support: of the critics' distributions; None: they learn values.
            target_actor: whether the actor has a target.
        """
        sizes = (*self._sizes, self.hidden_sizes)
        self.actor = Actor(self._architecture.actor(*sizes), *self._shared)
        layers = self._architecture.critic(*sizes, self.critic_action_layer, support.num_atoms if support else 1)
        self.critic = Critic([*layers, support] if support else layers, *self._shared, (num_critics,))
        self.target_critic = self.critic.target()
        self._targets: list[tuple[Network, Network]] = [(self.critic, self.target_critic)]
        if target_actor:
            self.target_actor = self.actor.target()
            self._targets.append((self.actor, self.target_actor))
        self.actor_optimizer = self.new_optimizer(self.actor, "actor_lr")
        self.critic_optimizer = self.new_optimizer(self.critic, "critic_lr", self.critic_weight_decay)

    def new_optimizer(self, network: Network, key: str, l2: float = 0.0) -> Adam:
        """An optimizer of a network with the learning rate of a hyperparameter, such as `actor_lr`.

        Raises:
            ValueError: with the weight decay, a step would turn parameters around.
        """
        lr = getattr(self, key)
        if lr * self.weight_decay >= 1:
            raise ValueError(f"weight_decay={self.weight_decay}: times {key}={lr} it must be below 1")
        return Adam(network, lr, l2, self.weight_decay)

    def networks(self) -> dict[str, Network]:
        """All networks by name, targets too."""
        return _declared(self, Network)

    def optimizers(self) -> dict[str, Adam]:
        """All optimizers by name."""
        return _declared(self, Adam)

    @property
    def periods(self) -> tuple[int, ...]:
        """Numbers of updates after which something is due."""
        return (self.actor_every, self.target_copy_every or 1)

    @property
    def actor_every(self) -> int:
        """Updates per change of the actor: an update changes it when `updates` becomes a multiple of this."""
        return 1

    def changes_policy(self, number: int) -> bool:
        """Whether update `number`, counted from 1, changes how the policy acts."""
        return number % self.actor_every == 0

    @property
    def separate(self) -> bool:
        """Whether members learn at different times, so that each needs an algorithm of its own."""
        return False

    def updates_now(self, due: int, episode_returns: Sequence[float]) -> int:
        """How many updates to make after a step of the environments.

        Args:
            due: the step's own updates.
            episode_returns: of the episodes that the step ended. Only a `separate` algorithm gets to know them.
        """
        return due

    def update(self, batch: Batch) -> Learned:
        """Learn from one batch.

        Only what is `due` depends on `updates`; nothing else depends on numbers on the host. Each kind of update can
        therefore be captured or compiled once.

        Args:
            batch: B windows for each member.
        """
        raise NotImplementedError

    def due(self, period: int) -> bool:
        """Whether `updates` is a multiple of one of `periods`.

        Raises:
            ValueError: it is not one of them. A captured update would never do what is due then.
        """
        if period not in self.periods:
            raise ValueError(f"{period} is not among the periods {self.periods}")
        return self.updates % period == 0

    def kind(self, number: int) -> Kind:
        """Which of `periods` are due in update `number`, counted from 1."""
        return tuple(number % period == 0 for period in self.periods)

    def kinds(self) -> dict[Kind, int]:
        """All kinds of update, each with the number of its first."""
        subsets = chain.from_iterable(combinations(self.periods, n) for n in range(len(self.periods) + 1))
        return {self.kind(number): number for number in sorted({math.lcm(*own) for own in subsets}, reverse=True)}

    def action(self, obs: Tensor) -> Tensor:
        """The deterministic policy in training: `(S, N, obs_dim)` to actions `(S, N, action_dim)` in [-1, 1]."""
        return self.actor(obs, exact=True)

    def policy(self, obs: Tensor) -> Tensor:
        """The policy that is evaluated and saved; otherwise as `action`."""
        return self.action(obs)

    @torch.inference_mode()
    def act(self, obs: np.ndarray) -> np.ndarray:
        """`action` of an array."""
        return self.action(self._tensor(obs)).cpu().numpy()

    @torch.inference_mode()
    def act_to_evaluate(self, obs: np.ndarray) -> np.ndarray:
        """`policy` of an array."""
        return self.policy(self._tensor(obs)).cpu().numpy()

    @torch.inference_mode()
    def value(self, obs: np.ndarray) -> np.ndarray:
        """Q(s, μ(s)) by the first critic, for the policy μ that is evaluated: `(S, N, obs_dim)` to `(S, N)`."""
        tensor = self._tensor(obs)
        return self.critic.q1(tensor, self.actor(tensor, exact=True), exact=True).cpu().numpy()

    def observe(self, obs: np.ndarray) -> None:
        """Update the normaliser, if there is one, with new observations `(S, N, obs_dim)`."""
        if self._normalizer is not None:
            self._normalizer.update(self._tensor(obs))

    def normalize_by(self, mean: np.ndarray, deviation: np.ndarray, count: int) -> None:
        """Set the statistics of the normaliser, if there is one, to those of a data set.

        Args:
            mean: of its observations, `(obs_dim,)`.
            deviation: of its observations, `(obs_dim,)`.
            count: of its observations.
        """
        if self._normalizer is not None:
            self._normalizer.fix(torch.from_numpy(mean), torch.from_numpy(deviation + DEVIATION_OFFSET), count)

    def policy_tensors(self) -> dict[str, Tensor]:
        """The tensors of `policy` by name, `(S, rows, columns)`, as views."""
        return self.actor.tensors()

    def describe_policy(self) -> list[dict[str, Any]]:
        """The layers of `policy`, as plain data for a policy file; see `dpg_cli.layers`."""
        return self.actor.description()

    def policy_state(self, member: int) -> dict[str, Tensor]:
        """The tensors of one member's policy, by name, with a member axis of 1."""
        return {name: tensor[member : member + 1].cpu() for name, tensor in self.policy_tensors().items()}

    def load_policy(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a policy that `policy_state` returned, for an algorithm of one member.

        Raises:
            ValueError: names or shapes differ.
        """
        copy_tensors(tensors, self.policy_tensors())

    def networks_state(self, member: int) -> dict[str, dict[str, Tensor]]:
        """The networks' part of `state(member)`: tensors by network and name, without a member axis."""
        networks = {
            name: {key: _of_member(tensor, member) for key, tensor in network.tensors().items()}
            for name, network in self.networks().items()
        }
        inherited = {name: self.member_state[name][member] for name in self.inherited}
        return networks | ({"member_state": inherited} if inherited else {})

    def state(self, member: int) -> dict[str, Any]:
        """The state of one member, from which learning resumes exactly; tensors have no member axis."""
        state: dict[str, Any] = dict(self.networks_state(member))
        for name, optimizer in self.optimizers().items():
            state[name] = {
                "mean": [_of_member(tensor, member) for tensor in optimizer.network.views(optimizer.mean)],
                "square": [_of_member(tensor, member) for tensor in optimizer.network.views(optimizer.square)],
                "count": optimizer.count,
            }
        state["member_state"] = {name: tensor[member] for name, tensor in self.member_state.items()}
        return state | {"updates": self.updates, "owed": self.owed, "random": self.generators[member].get_state()}

    def static_tensors(self) -> list[Tensor]:
        """Every tensor that acting and updates read or write and that persists between them."""
        parts: list[Network | Adam] = [*self.networks().values(), *self.optimizers().values()]
        return [tensor for part in parts for tensor in part.static_tensors()] + list(self.member_state.values())

    @torch.no_grad()
    def load_networks(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Copy the networks from states of `state()` or `networks_state()`, one per member.

        Raises:
            ValueError: a tensor has another shape.
        """
        for name, network in self.networks().items():
            for key, tensor in network.tensors().items():
                for member, state in enumerate(states):
                    _restore(_of_member(tensor, member), state[name][key])
        for name in self.inherited:
            for member, state in enumerate(states):
                _restore(self.member_state[name][member], state["member_state"][name])

    def load_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore states from `state()`, one per member.

        Raises:
            ValueError: a tensor has another shape, or a count is negative.
        """
        self.load_networks(states)
        with torch.no_grad():
            for name, optimizer in self.optimizers().items():
                optimizer.set_count(states[0][name]["count"])
                for key, own in (("mean", optimizer.mean), ("square", optimizer.square)):
                    for index, tensor in enumerate(optimizer.network.views(own)):
                        for member, state in enumerate(states):
                            _restore(_of_member(tensor, member), state[name][key][index])
            for name, tensor in self.member_state.items():
                for member, state in enumerate(states):
                    _restore(tensor[member], state["member_state"][name])
        self.updates, self.owed = states[0]["updates"], states[0]["owed"]
        if min(self.updates, self.owed) < 0:
            raise ValueError(f"updates={self.updates}, owed={self.owed}: must not be negative")
        for generator, state in zip(self.generators, states, strict=True):
            restore_generator(generator, state["random"], self.updates)

    # --- for the updates ---

    def standard_normal(self, shape: Sequence[int]) -> Tensor:
        """N(0, 1) of shape `(S, ...)`: from each member's own stream, or from `drawn_ahead` if it is set."""
        if self.drawn_ahead is not None:
            return self.drawn_ahead(shape)
        draws = [torch.randn(*shape[1:], generator=g, device=self.device, dtype=self._dtype) for g in self.generators]
        return draws[0].unsqueeze(0) if len(draws) == 1 else torch.stack(draws)

    def step(self, optimizer: Adam, gradient: Gradient) -> Tensor:
        """Take one step of `optimizer`, against the gradient.

        Args:
            optimizer: of a network.
            gradient: with respect to that network's parameters. With `max_grad_norm`, it is scaled in place.

        Returns:
            The norm of each member's gradient before that, `(S,)`.
        """
        if isinstance(gradient, Tensor) and len(self.generators) == 1:
            norm = gradient.dot(gradient).sqrt().view(1)
        else:
            norm = member_norm(_parts(optimizer.network, gradient))
        if self.max_grad_norm is not None:
            factor = (self.max_grad_norm / norm).clamp(max=1.0)
            for part in _parts(optimizer.network, gradient):
                part.mul_(factor[:, None, None])
        optimizer.step(gradient)
        return norm

    def descend(self, optimizer: Adam, loss: Tensor) -> Tensor:
        """Take one step of `optimizer` that decreases `loss`, by automatic differentiation.

        Args:
            optimizer: of the only network that is differentiated.
            loss: `(S,)`. The sum over members is differentiated, so that each member gets its own gradient.

        Returns:
            The norm of each member's gradient, `(S,)`.
        """
        (gradient,) = torch.autograd.grad(loss.sum(), optimizer.network.flat)
        with torch.no_grad():
            return self.step(optimizer, gradient)

    @torch.no_grad()
    def update_targets(self) -> None:
        """Soft updates of all targets, θ' ← τ θ + (1 - τ) θ', or with `target_copy_every` copies when they are due."""
        for online, target in self._targets:
            if self.target_copy_every is None:
                target.flat.lerp_(online.flat, self.tau)
            elif self.due(self.target_copy_every):
                target.flat.copy_(online.flat)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, self._dtype)


def _declared(algorithm: Algorithm, kind: type[Part]) -> dict[str, Part]:
    return {name: value for name, value in vars(algorithm).items() if isinstance(value, kind)}


def _parts(network: Network, gradient: Gradient) -> list[Tensor]:
    """A gradient by tensors of the network, each `(*members, rows, columns)`."""
    return network.views(gradient) if isinstance(gradient, Tensor) else gradient


def _of_member(tensor: Tensor, member: int) -> Tensor:
    """One member's part of `(*critics, S, rows, columns)`."""
    return tensor.select(tensor.dim() - 3, member)


def _restore(own: Tensor, stored: Tensor) -> None:
    """Copy a member's stored tensor back. The shape is checked, since `copy_` silently broadcasts a smaller tensor."""
    if stored.shape != own.shape:
        raise ValueError(f"a stored tensor has shape {tuple(stored.shape)}, not {tuple(own.shape)}")
    own.copy_(stored)


CriticError = Callable[[Tensor, Tensor], "Errors"]


class Errors(NamedTuple):
    """The error of critics' values `(K, S, B)` against targets `(S, B)`."""

    loss: Tensor  # (S,): mean over the batch, sum over the critics
    gradient: Tensor  # (K, S, B), of the loss with respect to the values
    td_error: Tensor  # (K, S, B), values minus targets


def without_autograd(update: Callable[[Own, Batch], Learned]) -> Callable[[Own, Batch], Learned]:
    """Decorate an update that asks its networks for gradients, so that torch records none beside them.

    Inference mode is fastest. Where torch differentiates, the ordinary mode is used, which its compiler needs.
    """
    by_torch, by_hand = torch.no_grad()(update), torch.inference_mode()(update)

    @functools.wraps(update)
    def chosen(algorithm: Own, batch: Batch) -> Learned:
        return by_hand(algorithm, batch) if algorithm.actor.by_hand else by_torch(algorithm, batch)

    return chosen


def register(algorithm: A) -> A:
    """Register an algorithm under its class's name in lower case."""
    REGISTRY[algorithm.__name__.lower()] = algorithm
    return algorithm


def member_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Each member's norm over all of `tensors`, each `(*critics, S, rows, columns)`: `(S,)`."""
    norms = [torch.linalg.vector_norm(t, dim=[d for d in range(t.dim()) if d != t.dim() - 3]) for t in tensors]
    stacked: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return stacked


def squared_error(q: Tensor, target: Tensor) -> Errors:
    """δ² with δ = Q - y."""
    error = q - target
    return Errors(error.square().mean(dim=-1).sum(dim=0), error * (2 / error.shape[-1]), error)


def huber_error(q: Tensor, target: Tensor) -> Errors:
    """0.5 δ² where |δ| is below 1, |δ| - 0.5 elsewhere (Huber 1964), as LAP needs it."""
    error = q - target
    clipped = error.clamp(-1, 1)
    loss = clipped * (error - 0.5 * clipped)
    return Errors(loss.mean(dim=-1).sum(dim=0), clipped / error.shape[-1], error)


def saturation(action: Tensor) -> Tensor:
    """Share of saturated action components, beyond ±0.99: `(S, B, A)` to `(S,)`."""
    return (action.abs() > 0.99).mean(dim=(-2, -1), dtype=action.dtype)
