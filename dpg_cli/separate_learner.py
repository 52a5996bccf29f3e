"""Members that learn at different times, such as at the ends of their own episodes: each is a learner of its own."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor

from dpg_cli.algorithms import Algorithm
from dpg_cli.environments.rollout import Episode
from dpg_cli.learner import Learner
from dpg_cli.metrics import Averages
from dpg_cli.replay import Replay, Step


class SeparateLearner(Learner):
    """Learners of one member each, in the place of a learner of S members.

    Args:
        learners: one per member.
    """

    def __init__(self, learners: Sequence[Learner]):
        self._learners = learners
        self.algorithm = cast(Algorithm, _Algorithms([own.algorithm for own in learners]))
        self.replay = cast(Replay, _Replays([own.replay for own in learners]))
        self.averages = cast(Averages, _Averages([own.averages for own in learners]))

    def prepare(self) -> None:
        """See `Learner.prepare`."""
        for own in self._learners:
            own.prepare()

    @property
    def unfinished(self) -> bool:
        """See `Learner.unfinished`."""
        return any(own.unfinished for own in self._learners)

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
        """See `Learner.learn`."""
        for member, own in enumerate(self._learners):
            its_step = Step(*(part[member : member + 1] for part in step))
            its_ended = [episode for episode in ended if episode.member == member]
            its_observed = observed[member : member + 1]
            own.learn(its_step, observed=its_observed, updates=updates, acts_next=acts_next, ended=its_ended, stop=stop)

    def catch_up(self, stop: Callable[[], bool]) -> None:
        """See `Learner.catch_up`."""
        for own in self._learners:
            own.catch_up(stop)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """See `Learner.act`."""
        return np.concatenate([own.act(its_obs) for own, its_obs in self._each(obs)])

    def act_to_evaluate(self, obs: np.ndarray) -> np.ndarray:
        """See `Learner.act_to_evaluate`."""
        return np.concatenate([own.act_to_evaluate(its_obs) for own, its_obs in self._each(obs)])

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """See `Learner.saving`."""
        with contextlib.ExitStack() as entered:
            for own in self._learners:
                entered.enter_context(own.saving())
            yield

    def restored(self) -> None:
        """See `Learner.restored`."""
        for own in self._learners:
            own.restored()

    def _each(self, obs: np.ndarray) -> Iterable[tuple[Learner, np.ndarray]]:
        return zip(self._learners, obs[:, None], strict=True)


class _Algorithms:
    """What a training uses of an algorithm of S members, from S algorithms of one."""

    def __init__(self, own: Sequence[Algorithm]):
        self._own = own
        self.generators = [generator for each in own for generator in each.generators]

    def __getattr__(self, name: str) -> Any:  # hyperparameters and sizes are the same for all
        return getattr(self._own[0], name)

    @property
    def updates(self) -> float:
        return sum(each.updates for each in self._own) / len(self._own)

    def observe(self, obs: np.ndarray) -> None:
        for each, its_obs in zip(self._own, obs[:, None], strict=True):
            each.observe(its_obs)

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.concatenate([each.act(its_obs) for each, its_obs in zip(self._own, obs[:, None], strict=True)])

    def act_to_evaluate(self, obs: np.ndarray) -> np.ndarray:
        actions = [each.act_to_evaluate(its_obs) for each, its_obs in zip(self._own, obs[:, None], strict=True)]
        return np.concatenate(actions)

    def value(self, obs: np.ndarray) -> np.ndarray:
        return np.concatenate([each.value(its_obs) for each, its_obs in zip(self._own, obs[:, None], strict=True)])

    def policy_state(self, member: int) -> dict[str, Tensor]:
        return self._own[member].policy_state(0)

    def networks_state(self, member: int) -> dict[str, dict[str, Tensor]]:
        return self._own[member].networks_state(0)

    def state(self, member: int) -> dict[str, Any]:
        return self._own[member].state(0)

    def load_networks(self, states: Sequence[Mapping[str, Any]]) -> None:
        for each, state in zip(self._own, states, strict=True):
            each.load_networks([state])

    def load_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        for each, state in zip(self._own, states, strict=True):
            each.load_state([state])


class _Replays:
    """What a training uses of a replay of S members, from S replays of one, which all store at the same time."""

    def __init__(self, own: Sequence[Replay]):
        self._own = own

    @property
    def added(self) -> int:
        return self._own[0].added

    @property
    def size(self) -> int:
        return self._own[0].size

    def cut(self, anew: np.ndarray) -> None:
        for each, its_anew in zip(self._own, anew[:, None], strict=True):
            each.cut(its_anew)

    def rows(self, member: int, first: int) -> np.ndarray:
        return self._own[member].rows(0, first)

    def state(self, member: int) -> dict[str, Any]:
        return self._own[member].state(0)

    def load_state(self, states: Sequence[Mapping[str, Any]], rows: Sequence[Iterable[np.ndarray]]) -> None:
        for each, state, its_rows in zip(self._own, states, rows, strict=True):
            each.load_state([state], [its_rows])


class _Averages:
    """What a training uses of averages of S members, from S averages of one."""

    def __init__(self, own: Sequence[Averages]):
        self._own = own

    def add_noise_scale(self, scale: float) -> None:
        for each in self._own:
            each.add_noise_scale(scale)

    def add_episodes(self, episodes: Sequence[Episode]) -> None:
        for episode in episodes:
            self._own[episode.member].add_episodes([episode._replace(member=0)])

    def take(self) -> list[dict[str, float]]:
        return [record for each in self._own for record in each.take()]

    def state(self, member: int) -> dict[str, Any]:
        return self._own[member].state(0)

    def load_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        for each, state in zip(self._own, states, strict=True):
            each.load_state([state])
