"""Learning with updates that `torch.compile` compiles, one operation at a time otherwise."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dpg_cli.adam import Adam
from dpg_cli.algorithms import Algorithm, Batch, Learned
from dpg_cli.algorithms.base import Kind
from dpg_cli.capture import compile_for
from dpg_cli.learner import Learner
from dpg_cli.precision import prepare_product
from dpg_cli.replay import Replay, Step


class CompiledLearner(Learner):
    """A learner whose updates are compiled when it is prepared, once for each kind.

    Random numbers are drawn before an update, in the order in which it uses them, since a compiler cannot draw from a
    generator. So the numbers are those of a learner that is not compiled.

    Args:
        algorithm: learns and acts; its networks use torch's automatic differentiation.
        replay: stores the transitions to learn from.
    """

    def __init__(self, algorithm: Algorithm, replay: Replay):
        super().__init__(algorithm, replay)
        torch.compiler.reset()  # earlier runs in this process count towards its limit of recompilations
        self._update: dict[Kind, Callable[[Batch, Sequence[Tensor]], Learned]] = {}
        self._shapes: dict[Kind, list[Sequence[int]]] = {}  # of the draws of an update
        self._has_large = any(network.has_large for network in algorithm.networks().values())

    def prepare(self) -> None:
        """Compile every kind of update. Networks, optimizers and random streams are unchanged afterwards."""
        algorithm, replay = self.algorithm, self.replay
        members = range(len(algorithm.generators))
        before = tree_map(_copied, [(algorithm.state(m), replay.state(m)) for m in members])
        # A batch from the replay itself: the compiler depends on how its tensors lie in memory.
        if not replay.fixed:
            replay.add(*Step(*(np.zeros(shape) for shape in replay.step_shapes)))
        batch = replay.sample(algorithm.batch_size)
        for kind, number in algorithm.kinds().items():
            self._shapes[kind] = self._shapes_drawn(batch, number)
            update = functools.partial(_update, algorithm, number)
            draws = self._draw(kind)
            self._set_products()
            self._update[kind] = compile_for(algorithm.device, update, batch, draws)
        algorithm.load_state([state for state, _ in before])
        replay.load_state([state for _, state in before], [()] * len(before))

    def update_once(self) -> None:
        """Make one update."""
        algorithm = self.algorithm
        number = algorithm.updates + 1
        kind = algorithm.kind(number)
        batch, draws = self.replay.sample(algorithm.batch_size), self._draw(kind)
        self._set_products()
        learned = self._update[kind](batch, draws)
        algorithm.updates = number
        if number % Adam.CLEARED_EVERY == 0:
            for optimizer in algorithm.optimizers().values():
                optimizer.clear_vanished()
        self.averages.add(learned.scalars)
        self.replay.learned(learned.td_error, reset_largest=learned.resets_largest)

    def _draw(self, kind: Kind) -> list[Tensor]:
        return [self.algorithm.standard_normal(shape) for shape in self._shapes[kind]]

    def _shapes_drawn(self, batch: Batch, number: int) -> list[Sequence[int]]:
        """The shapes of the N(0, 1) numbers that update `number` draws, found by making it."""
        algorithm, shapes = self.algorithm, list[Sequence[int]]()

        def zeros(shape: Sequence[int]) -> Tensor:
            shapes.append(tuple(shape))
            return torch.zeros(*shape, dtype=algorithm.actor.flat.dtype, device=algorithm.device)

        algorithm.drawn_ahead, algorithm.updates = zeros, number - 1
        algorithm.update(batch)
        algorithm.drawn_ahead = None
        return shapes

    def _set_products(self) -> None:
        """Choose the library for all large products of an update: compiled code does not choose it for each."""
        prepare_product(self.algorithm.batch_size, large=self._has_large)


def _update(algorithm: Algorithm, number: int, batch: Batch, draws: Sequence[Tensor]) -> Learned:
    """Update `number`, or another one of its kind."""
    left = list(draws)
    algorithm.drawn_ahead = lambda shape: left.pop(0)
    algorithm.updates = number - 1
    learned = algorithm.update(batch)
    algorithm.drawn_ahead = None
    return learned


def _copied(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value
