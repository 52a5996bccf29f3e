"""A data set: stored transitions to learn from offline, one copy for all members."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpg_cli.replay import CUT, TERMINATED, TRUNCATED

AT_ONCE = 100_000  # rows whose statistics are computed at once
ROUNDING = 1e-5  # by which a scaled action may leave [-1, 1] unnoticed


class InvalidDataError(ValueError):
    """Transitions hold what no environment and no policy of this project gives."""


@dataclass(frozen=True)
class Dataset:
    """Transitions in the order in which they were made, one environment after another.

    Attributes:
        rows: `(N, width)`, the parts of `replay.ROW` side by side. Nothing leads from one environment's last transition
            to the next one's first: the former ends an episode or is marked `CUT`.
        obs_dim: size of an observation.
        action_dim: size of an action.
        sources: where the transitions come from, one line each.
        env_ids: of the environments that they were made in, as far as the sources tell.
        returns: of the complete episodes, `(n,)`.
        clipped: number of action components that were outside the environment's bounds.
        mean: of the observations, `(obs_dim,)`.
        deviation: their standard deviation (ddof=0), `(obs_dim,)`.
        digest: SHA-256 of the rows.
    """

    rows: Tensor
    obs_dim: int
    action_dim: int
    sources: tuple[str, ...]
    env_ids: tuple[str, ...]
    returns: np.ndarray
    clipped: int
    mean: np.ndarray
    deviation: np.ndarray
    digest: str

    def __len__(self) -> int:
        """The number of transitions."""
        return len(self.rows)

    def describe(self) -> str:
        """One line: its size, the return of its complete episodes, and where it comes from."""
        number = len(self.returns)
        episodes = f"{number:,} complete {'episode' if number == 1 else 'episodes'}"
        if number:
            episodes += f" with return {self.returns.mean():.1f} ± {self.returns.std():.1f}"
        return f"the data set has {len(self):,} transitions, {episodes}, from {'; '.join(self.sources)}"

    def as_json(self) -> dict[str, Any]:
        """The entry in `run.json`."""
        known = len(self.returns) > 0
        return {
            "sources": list(self.sources),
            "env_ids": list(self.env_ids),
            "transitions": len(self),
            "episodes": len(self.returns),
            "return_mean": float(self.returns.mean()) if known else None,
            "return_std": float(self.returns.std()) if known else None,
            "sha256": self.digest,
        }


class Assembly:
    """Puts a data set together from its parts.

    Args:
        count: N, transitions.
        obs_dim: size of an observation.
        action_dim: size of an action.
        dtype: of the rows.
    """

    def __init__(self, count: int, obs_dim: int, action_dim: int, dtype: torch.dtype):
        self._sizes = obs_dim, action_dim
        self._rows = torch.empty(count, Assembly.width(obs_dim, action_dim), dtype=dtype)
        self._array: np.ndarray = self._rows.numpy()
        self._reward, self._end = obs_dim + action_dim, obs_dim + action_dim + 1  # columns
        self._filled = 0
        self._torn: list[int] = []  # rows in the middle of whose episodes a source begins
        self._clipped = 0

    @staticmethod
    def width(obs_dim: int, action_dim: int) -> int:
        """The numbers of a transition."""
        return 2 * obs_dim + action_dim + 2

    @property
    def filled(self) -> int:
        """Where the next source begins."""
        return self._filled

    def put(
        self,
        places: np.ndarray,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        next_obs: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        """Write transitions to places `(n,)`: `(n, ·)` for vectors, `(n,)` for scalars.

        Args:
            places: rows of the data set.
            obs: observations.
            action: in [-1, 1], up to rounding.
            reward: as the environment gave it.
            next_obs: the true final observation where an episode ended.
            terminated: as the environment reported it.
            truncated: the same.

        Raises:
            InvalidDataError: a number is not finite, or an action is outside [-1, 1].
        """
        end = TERMINATED * terminated.astype(np.int8) + TRUNCATED * truncated.astype(np.int8)
        with np.errstate(over="ignore"):
            rows = np.concatenate(
                [obs, action, reward[:, None], end[:, None], next_obs],
                axis=1,
                dtype=self._array.dtype,
                casting="unsafe",
            )
        if not np.isfinite(rows).all():
            raise InvalidDataError("a number is not finite")
        if len(action) and np.abs(action).max() > 1.0:
            raise InvalidDataError("an action is outside [-1, 1]")
        self._array[places] = rows
        self._filled += len(places)

    def cut(self, place: int) -> None:
        """Mark that no window reaches beyond a transition, which ended no episode."""
        if self._array[place, self._end] == 0:
            self._array[place, self._end] = CUT

    def begins(self, place: int, *, whole: bool) -> None:
        """An environment's transitions begin at a place; `whole`: with an episode."""
        if place > 0:
            self.cut(place - 1)
        if not whole:
            self._torn.append(place)

    def clip(self, action: np.ndarray) -> np.ndarray:
        """The action within [-1, 1]; what was outside is counted."""
        clipped: np.ndarray = np.clip(action, -1.0, 1.0)
        self._clipped += int((np.abs(action - clipped) > ROUNDING).sum())
        return clipped

    def finished(self, sources: Sequence[str], env_ids: Sequence[str]) -> Dataset:
        """The data set, once every row has been written."""
        assert self._filled == len(self._array)
        self.cut(self._filled - 1)
        obs_dim, action_dim = self._sizes
        digest = hashlib.sha256(f"{self._array.shape} {self._array.dtype}".encode())
        digest.update(self._array.data)
        return Dataset(
            rows=self._rows,
            obs_dim=obs_dim,
            action_dim=action_dim,
            sources=tuple(sources),
            env_ids=tuple(dict.fromkeys(env_ids)),
            returns=self._returns(),
            clipped=self._clipped,
            digest=digest.hexdigest(),
            **self._statistics(),
        )

    def _returns(self) -> np.ndarray:
        """The returns of the episodes that are there from their first to their last transition."""
        end = self._array[:, self._end]
        last = np.flatnonzero(end)  # the very last transition is one of them
        first = np.concatenate([[0], last[:-1] + 1])
        whole = (end[last] < CUT) & ~np.isin(first, self._torn)
        sums: np.ndarray = np.add.reduceat(self._array[:, self._reward].astype(np.float64), first)
        return sums[whole]

    def _statistics(self) -> dict[str, np.ndarray]:
        """Mean and deviation of the observations, in float64."""
        obs = self._array[:, : self._sizes[0]]
        parts = [obs[first : first + AT_ONCE] for first in range(0, len(obs), AT_ONCE)]
        mean = sum(part.sum(axis=0, dtype=np.float64) for part in parts) / len(obs)
        var = sum(np.square(part - mean).sum(axis=0) for part in parts) / len(obs)
        return {"mean": np.asarray(mean), "deviation": np.sqrt(var)}


def places_by_environment(first: int, count: int, num_envs: int) -> tuple[np.ndarray, np.ndarray]:
    """Where transitions that took turns among environments go, so that each environment's are side by side.

    Args:
        first: number of the first transition since the start; number n is of environment n mod `num_envs`.
        count: of transitions.
        num_envs: of environments.

    Returns:
        By environment, `(E,)` each: an offset, so that number n goes to the place `offset[n % E] + n // E`; and how
        many transitions it has.
    """
    envs = np.arange(num_envs)
    first_number = first + (envs - first) % num_envs
    counts = np.maximum(0, -(-(first + count - first_number) // num_envs))
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return begins - first_number // num_envs, counts


def memory(count: int, obs_dim: int, action_dim: int, dtype: torch.dtype) -> int:
    """Bytes of a data set of `count` transitions."""
    return math.prod((count, Assembly.width(obs_dim, action_dim), dtype.itemsize))
