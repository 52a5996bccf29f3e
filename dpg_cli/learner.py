"""Learning and acting, as the training loop asks for them: an operation at a time."""

import contextlib
from collections.abc import Iterator

import numpy as np

from dpg_cli.algorithms import Algorithm
from dpg_cli.metrics import Averages
from dpg_cli.replay import Replay, Step


class Learner:
    """Stores transitions, learns from them and acts.

    Args:
        algorithm: learns and acts.
        replay: what it learns from.

    Attributes:
        averages: of the scalars of updates, and of whatever else is added to them.
    """

    def __init__(self, algorithm: Algorithm, replay: Replay):
        self.algorithm, self.replay = algorithm, replay
        self.averages = Averages(len(algorithm.generators), algorithm.actor.flat.device)

    def prepare(self) -> None:
        """Prepare to learn and act. Call it before anything is stored or restored."""

    def learn(self, step: Step, *, observed: np.ndarray, updates: int, acts_next: bool) -> None:
        """Store one step of E environments, and learn.

        Args:
            step: of E environments.
            observed: `(S, E, obs_dim)`, what the environments show now; after a reset its first observation.
            updates: how many to make.
            acts_next: whether `act(observed)` comes next.
        """
        self.replay.add(*step)
        self.algorithm.observe(observed)
        for _ in range(updates):
            self.averages.add(self.algorithm.update(self.replay.sample(self.algorithm.batch_size)))

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The policy in training: `(S, E, obs_dim)` to actions `(S, E, action_dim)` in [-1, 1]."""
        return self.algorithm.act(obs)

    def act_to_evaluate(self, obs: np.ndarray) -> np.ndarray:
        """The policy in evaluations, which may have another number of environments."""
        return self.algorithm.act(obs)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """While states are taken for a checkpoint."""
        yield

    def restored(self) -> None:
        """The states of algorithm, replay and averages have been loaded."""
