"""Learning and acting with graphs that are captured on a device once and replayed.

On a GPU an update of a small network is about a hundred kernels of a few microseconds. The host cannot launch them fast
enough one by one. So each kind of update is captured once, including the choice of its batch and its noise. Storing
and acting are captured too. The host waits for the device only when it needs an action.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dpg_cli.algorithms import Algorithm
from dpg_cli.algorithms.base import Kind
from dpg_cli.capture import Static, compiled_and_captured, new_event
from dpg_cli.environments.rollout import Episode
from dpg_cli.learner import Learner
from dpg_cli.networks import Network
from dpg_cli.replay import DeviceReplay, Step

AHEAD = 16  # updates per drawing of random numbers: each replay of a graph that draws costs two kernels per generator


class CapturedLearner(Learner):
    """A learner that runs captured graphs on a device.

    Args:
        algorithm: learns and acts.
        replay: on the algorithm's device.
        compiled: whether `torch.compile` fuses the kernels of each graph.
    """

    replay: DeviceReplay

    def __init__(self, algorithm: Algorithm, replay: DeviceReplay, *, compiled: bool = False):
        super().__init__(algorithm, replay)
        if compiled:
            torch.compiler.reset()  # earlier runs in this process count towards its limit of recompilations
        self._compiled = compiled
        self._asked = False  # whether the next action has been requested
        self._evaluation: tuple[Staging, CapturedPolicy] | None = None

    def prepare(self) -> None:
        """Capture everything. Networks, optimizers and random streams are unchanged afterwards."""
        algorithm, replay = self.algorithm, self.replay
        members = range(len(algorithm.generators))
        before = tree_map(_copied_to_the_host, [(algorithm.state(m), replay.state(m)) for m in members])
        if not replay.fixed:
            self._prepare_to_store_and_act()
        self._draws = Draws(self._try_updates(), algorithm, replay)
        algorithm.drawn_ahead = self._draws.take
        used = (algorithm, replay, self.averages, self._draws)
        self._update = {
            kind: self._captured(functools.partial(self._learn_once, number), *used)
            for kind, number in algorithm.kinds().items()
        }
        draws, device = self._draws, algorithm.device
        self._draw = compiled_and_captured(draws.draw, [draws], device, compiled=False, generators=draws.generators)
        algorithm.load_state([state for state, _ in before])
        replay.load_state([state for _, state in before], [()] * len(before))
        self.averages.take()

    def _prepare_to_store_and_act(self) -> None:
        algorithm, replay = self.algorithm, self.replay
        *shape, width = replay.row_shape
        self._staging = Staging((*shape, width + algorithm.actor.obs_dim), algorithm.actor)
        rows, obs = torch.split(self._staging.on_device, [width, algorithm.actor.obs_dim], dim=-1)
        self._no_rows = np.zeros(replay.row_shape)
        self._policy = CapturedPolicy(algorithm, algorithm.action, obs, compiled=self._compiled)
        self._insert = self._captured(lambda: replay.insert(rows), self._staging, replay)
        self._observe = None
        if (normalizer := algorithm.actor.normalizer) is not None:
            self._observe = self._captured(lambda: normalizer.update(obs), algorithm, self._staging)

    def learn(
        self,
        step: Step,
        *,
        observed: np.ndarray,
        updates: int,
        acts_next: bool,
        ended: Sequence[Episode] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """As `Learner.learn`. The next action is requested once no remaining update changes the policy."""
        algorithm = self.algorithm
        algorithm.owed = algorithm.updates_now(updates, [episode.episode_return for episode in ended])
        numbers = range(algorithm.updates + 1, algorithm.updates + 1 + algorithm.owed)
        last_change = max((n for n in numbers if algorithm.changes_policy(n)), default=None)
        self._staging.load(*step.in_a_row(), observed)
        if self._observe is not None:
            self._observe()
        if acts_next and last_change is None:
            self._policy.run()
        self._insert()
        self.replay.inserted()
        for n in numbers:
            self.update_once()
            algorithm.owed -= 1
            if acts_next and n == last_change:
                self._policy.run()
            if self.unfinished and stop():
                return
        self._asked = acts_next

    def update_once(self) -> None:
        """Make one update."""
        number = self.algorithm.updates + 1
        if (number - 1) % AHEAD == 0:
            self._draw_ahead()
        kind = self.algorithm.kind(number)
        self._update[kind]()
        self.algorithm.updates = number
        self.averages.count(self._tags[kind])

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The policy in training; `learn` may have requested the action already."""
        if not self._asked:
            self._staging.load(self._no_rows, obs)
            self._policy.run()
        self._asked = False
        return self._policy.action()

    def act_to_evaluate(self, obs: np.ndarray) -> np.ndarray:
        """The policy in evaluations, which all have the same number of environments."""
        if self._evaluation is None:
            staging = Staging(obs.shape, self.algorithm.actor)
            algorithm = self.algorithm
            policy = CapturedPolicy(algorithm, algorithm.policy, staging.on_device, compiled=self._compiled)
            self._evaluation = staging, policy
        staging, policy = self._evaluation
        staging.load(obs)
        policy.run()
        return policy.action()

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """A context in which the generators are set back, so that a resumed run draws the current block again."""
        generators = self._draws.generators
        now = [g.get_state() for g in generators]
        before = self._draws.before if self.algorithm.updates % AHEAD else now
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
        try:
            yield
        finally:
            for generator, state in zip(generators, now, strict=True):
                generator.set_state(state)

    def restored(self) -> None:
        """Draw the block again that was in use at the checkpoint."""
        if used := self.algorithm.updates % AHEAD:
            self._draw_ahead()
            self._draws.used.fill_(used)
        self._asked = False

    def drawn(self) -> tuple[Tensor, Tensor]:
        """The current block: numbers that choose batches, `(S, AHEAD, B)`, and N(0, 1) numbers, `(S, AHEAD, n)`."""
        numbers, normals, _ = self._draws.static_tensors()
        return numbers.cpu(), normals.cpu()

    def _draw_ahead(self) -> None:
        self._draws.before = [g.get_state() for g in self._draws.generators]
        self._draw()

    def _learn_once(self, number: int) -> None:
        self.algorithm.updates = number - 1
        learned = self.algorithm.update(self.replay.batch(self._draws.next()))
        self.averages.sum_up(learned.scalars)
        self.replay.learned(learned.td_error, reset_largest=learned.resets_largest)

    def _try_updates(self) -> int:
        """Make each kind of update once; returns the most N(0, 1) numbers that one draws per member."""
        algorithm, most, drawn = self.algorithm, 0, 0

        def zeros(shape: Sequence[int]) -> Tensor:
            nonlocal drawn
            drawn += math.prod(shape[1:])
            return torch.zeros(*shape, device=algorithm.device, dtype=algorithm.actor.flat.dtype)

        numbers = torch.zeros(self.replay.row_shape[0], algorithm.batch_size, dtype=torch.int64)
        batch = self.replay.batch(numbers.to(algorithm.device))
        algorithm.drawn_ahead = zeros
        self._tags: dict[Kind, list[str]] = {}  # of an update's scalars
        for kind, number in algorithm.kinds().items():
            algorithm.updates, drawn = number - 1, 0
            scalars = algorithm.update(batch).scalars
            self.averages.sum_up(scalars)
            self._tags[kind] = list(scalars)
            most = max(most, drawn)
        return most

    def _captured(self, function: Callable[[], None], *used: Static) -> Callable[[], None]:
        return compiled_and_captured(function, used, self.algorithm.device, compiled=self._compiled)


@torch.no_grad()
def follow(algorithm: Algorithm, replay: DeviceReplay, numbers: Tensor, normals: Tensor) -> None:
    """Repeat the updates of a captured learner from the same transitions and draws.

    Args:
        algorithm: on a CPU.
        replay: on a CPU.
        numbers: choose the batches, `(S, n, B)` for n updates.
        normals: N(0, 1) numbers, `(S, n, ·)`.
    """
    draws = Draws(normals.shape[-1], algorithm, replay)
    algorithm.drawn_ahead = draws.take
    for number in range(numbers.shape[1]):
        draws.give(normals[:, number])
        learned = algorithm.update(replay.batch(numbers[:, number]))
        replay.learned(learned.td_error, reset_largest=learned.resets_largest)


class Draws:
    """The random numbers of `AHEAD` updates at once, drawn for each member from its own generators.

    Args:
        normals: how many N(0, 1) numbers an update takes per member.
        algorithm: its generators draw the N(0, 1) numbers.
        replay: its generators draw the numbers that choose batches.

    Attributes:
        generators: those of replay and algorithm.
        used: `(1,)`, the number of updates made from the current block.
        before: the states of the generators before they drew the current block.
    """

    def __init__(self, normals: int, algorithm: Algorithm, replay: DeviceReplay):
        flat, members = algorithm.actor.flat.detach(), len(algorithm.generators)
        self._of = (replay.generators, algorithm.generators)
        self.generators = [*replay.generators, *algorithm.generators]
        self._numbers = flat.new_zeros(members, AHEAD, algorithm.batch_size, dtype=torch.int64)
        self._normals = flat.new_zeros(members, AHEAD, normals)
        self.used = flat.new_zeros(1, dtype=torch.int64)
        self.before: list[Tensor] = []

    def static_tensors(self) -> list[Tensor]:
        """All tensors, for `capture.Static`."""
        return [self._numbers, self._normals, self.used]

    def draw(self) -> None:
        """Draw for the next `AHEAD` updates."""
        choosing, of_noise = self._of
        for numbers, generator in zip(self._numbers, choosing, strict=True):
            numbers.random_(0, DeviceReplay.NUMBERS, generator=generator)
        if self._normals.shape[-1]:
            for normals, generator in zip(self._normals, of_noise, strict=True):
                normals.normal_(generator=generator)
        self.used.zero_()

    def next(self) -> Tensor:
        """Move to the next update; returns the numbers that choose its batch, `(S, B)`."""
        numbers = self._numbers.index_select(1, self.used).squeeze(1)
        self.give(self._normals.index_select(1, self.used).squeeze(1))
        self.used.add_(1)
        return numbers

    def give(self, normals: Tensor) -> None:
        """Set the numbers that `take` returns from now on, `(S, n)`."""
        self._now, self._taken = normals.to(self._normals.dtype), 0

    def take(self, shape: Sequence[int]) -> Tensor:
        """The update's next N(0, 1) numbers, of shape `(S, ...)`."""
        first, self._taken = self._taken, self._taken + math.prod(shape[1:])
        return self._now[:, first : self._taken].view(*shape)


class Staging:
    """Copies arrays to a device, through pinned memory on a GPU.

    Args:
        shape: of the arrays side by side.
        network: gives the device and the precision.

    Attributes:
        on_device: the arrays of the last `load`, side by side.
    """

    def __init__(self, shape: Sequence[int], network: Network):
        flat = network.flat.detach()
        self._host = torch.zeros(*shape, dtype=flat.dtype, pin_memory=flat.is_cuda)
        self._array: np.ndarray = self._host.numpy()
        self.on_device = flat.new_zeros(*shape)
        self._copied = new_event(flat.device)

    def static_tensors(self) -> list[Tensor]:
        """The tensor on the device, for `capture.Static`."""
        return [self.on_device]

    def load(self, *parts: np.ndarray) -> None:
        """Copy arrays, side by side in their last axis."""
        self._copied.synchronize()  # the device may still be copying the previous arrays
        np.concatenate(parts, axis=-1, out=self._array, casting="unsafe")
        self.on_device.copy_(self._host, non_blocking=True)
        self._copied.record()


class CapturedPolicy:
    """A policy on observations at a fixed place. `run()` starts it, `action()` waits for the actions.

    Args:
        algorithm: of the policy.
        policy: from observations to actions.
        obs: holds the observations, `(S, N, obs_dim)`.
        compiled: as for `CapturedLearner`.
    """

    def __init__(self, algorithm: Algorithm, policy: Callable[[Tensor], Tensor], obs: Tensor, *, compiled: bool):
        flat = algorithm.actor.flat.detach()
        self._obs = obs
        self._action = flat.new_zeros(*obs.shape[:-1], algorithm.actor.action_dim)
        self._on_host = torch.zeros(self._action.shape, dtype=flat.dtype, pin_memory=flat.is_cuda)
        self._done = new_event(flat.device)

        @torch.no_grad()
        def act() -> None:
            self._action.copy_(policy(obs))

        self._act = compiled_and_captured(
            act,
            (algorithm, self),
            flat.device,
            compiled=compiled,
        )

    def static_tensors(self) -> list[Tensor]:
        """Observations and actions, for `capture.Static`."""
        return [self._obs, self._action]

    def run(self) -> None:
        """Start to compute the actions with the present actor."""
        self._act()
        self._on_host.copy_(self._action, non_blocking=True)
        self._done.record()

    def action(self) -> np.ndarray:
        """Wait for the actions, `(S, N, action_dim)` in [-1, 1]."""
        self._done.synchronize()
        return self._on_host.numpy().copy()


def _copied_to_the_host(value: object) -> object:
    return value.cpu().clone() if isinstance(value, Tensor) else value
