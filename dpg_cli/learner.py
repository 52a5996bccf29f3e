"""Learning and acting for the training loop, one operation at a time."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dpg_cli.algorithms import Algorithm
from dpg_cli.environments.rollout import Episode
from dpg_cli.metrics import Averages
from dpg_cli.replay import Replay, Step


class Learner:
    """Stores transitions, learns from them and acts.

    Args:
        algorithm: learns and acts.
        replay: stores the transitions to learn from.

    Attributes:
        averages: of the scalars of updates, and of other scalars that the training loop adds.
    """

    def __init__(self, algorithm: Algorithm, replay: Replay):
        self.algorithm, self.replay = algorithm, replay
        self.averages = Averages(len(algorithm.generators), algorithm.device)

    def prepare(self) -> None:
        """Prepare to learn and act. Call it before anything is stored or restored."""

    @property
    def unfinished(self) -> bool:
        """Whether a stop has left updates to make, by `catch_up`."""
        return self.algorithm.owed > 0

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
        """Store one step of E environments, and make updates.

        Args:
            step: of E environments.
            observed: `(S, E, obs_dim)`, the current observations; after a reset, the first of the new episode.
            updates: how many updates are due for this step.
            acts_next: whether `act(observed)` comes next.
            ended: the episodes that the step ended.
            stop: as for `catch_up`.
        """
        self.replay.add(*step)
        self.algorithm.observe(observed)
        self.algorithm.owed = self.algorithm.updates_now(updates, [episode.episode_return for episode in ended])
        self.catch_up(stop)

    def catch_up(self, stop: Callable[[], bool]) -> None:
        """Make the updates that are owed, until `stop` returns True between two of them."""
        while self.algorithm.owed:
            self.update_once()
            self.algorithm.owed -= 1
            if self.unfinished and stop():
                return

    def update_once(self) -> None:
        """Make one update."""
        learned = self.algorithm.update(self.replay.sample(self.algorithm.batch_size))
        self.averages.add(learned.scalars)
        self.replay.learned(learned.td_error, reset_largest=learned.resets_largest)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The policy in training: `(S, E, obs_dim)` to actions `(S, E, action_dim)` in [-1, 1]."""
        return self.algorithm.act(obs)

    def act_to_evaluate(self, obs: np.ndarray) -> np.ndarray:
        """The policy in evaluations, which may have another number of environments."""
        return self.algorithm.act_to_evaluate(obs)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """A context in which states are read for a checkpoint."""
        yield

    def restored(self) -> None:
        """Call it once the states of algorithm, replay and averages have been loaded."""
