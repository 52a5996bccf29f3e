"""The replay buffer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib.recfunctions import structured_to_unstructured

from dpg_cli.algorithms.base import Batch


class Replay:
    """A ring of transitions for each member, sampled uniformly with replacement.

    A transition is one row of one tensor, `[obs, action, reward, next_obs, terminated]`, so that a batch is one
    gather. Memory is reserved at once and touched as it fills.

    Args:
        capacity: transitions a member.
        obs_dim: size of an observation.
        action_dim: size of an action.
        generators: one a member, for sampling.
        device: where the rows live.
        dtype: of the rows.
    """

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        generators: Sequence[np.random.Generator],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.capacity = capacity
        self.size = 0
        self.added = 0  # transitions since the start; the next goes to row `added % capacity`
        self._generators = generators
        self._widths = [obs_dim, action_dim, 1, obs_dim, 1]
        self._rows = torch.empty(len(generators), capacity, sum(self._widths), device=device, dtype=dtype)

    @staticmethod
    def memory(capacity: int, obs_dim: int, action_dim: int, num_seeds: int, dtype: torch.dtype) -> int:
        """Bytes that a full buffer takes."""
        return num_seeds * capacity * (2 * obs_dim + action_dim + 2) * dtype.itemsize

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        next_obs: np.ndarray,
        terminated: np.ndarray,
    ) -> None:
        """Store one step of E environments: `(S, E, ·)` for vectors, `(S, E)` for scalars."""
        rows = np.concatenate([obs, action, reward[..., None], next_obs, terminated[..., None]], axis=-1)
        self._put(rows)

    def sample(self, batch_size: int) -> Batch:
        """Draw `batch_size` transitions for each member, from its own stream."""
        members, capacity, width = self._rows.shape
        places = np.stack([g.integers(self.size, size=batch_size) for g in self._generators])
        places += capacity * np.arange(members)[:, None]
        index = torch.from_numpy(places.ravel()).to(self._rows.device)
        rows = self._rows.view(-1, width).index_select(0, index).view(members, batch_size, width)
        obs, action, reward, next_obs, terminated = torch.split(rows, self._widths, dim=-1)
        return Batch(obs, action, reward.squeeze(-1), next_obs, terminated.squeeze(-1))

    def rows(self, member: int, first: int) -> np.ndarray:
        """The transitions from number `first` since the start on, as far as they are still there.

        Returns:
            `(n,)`, a structured array with fields obs, action, reward, next_obs and terminated.
        """
        first = max(first, self.added - self.size)
        places = torch.arange(first, self.added) % self.capacity
        rows: np.ndarray = self._rows[member, places].cpu().numpy()
        return rows.view(self._dtype)[:, 0]

    def state(self, member: int) -> dict[str, Any]:
        """All but the rows of one member."""
        return {"added": self.added, "size": self.size, "random": self._generators[member].bit_generator.state}

    def load_state(self, states: Sequence[Mapping[str, Any]], rows: Sequence[Iterable[np.ndarray]]) -> None:
        """Go on from `state()`, one a member, and each one's `rows()` that were there, oldest first, in parts.

        Raises:
            ValueError: the rows are of another form.
        """
        self.added, self.size = states[0]["added"], min(states[0]["size"], self.capacity)
        for member, (state, parts) in enumerate(zip(states, rows, strict=True)):
            number = state["added"] - state["size"]
            for part in parts:
                if part.dtype != self._dtype:
                    raise ValueError(f"transitions are {part.dtype}, not {self._dtype}")
                places = torch.arange(number, number + len(part)) % self.capacity
                self._rows[member, places] = torch.from_numpy(structured_to_unstructured(part)).to(self._rows)
                number += len(part)
        for generator, state in zip(self._generators, states, strict=True):
            generator.bit_generator.state = state["random"]

    @property
    def _dtype(self) -> np.dtype[Any]:
        obs, action = self._widths[:2]
        fields = [("obs", (obs,)), ("action", (action,)), ("reward", ()), ("next_obs", (obs,)), ("terminated", ())]
        number = torch.empty(0, dtype=self._rows.dtype).numpy().dtype
        return np.dtype([(name, number, shape) for name, shape in fields])

    def _put(self, rows: np.ndarray) -> None:
        count = rows.shape[1]
        places = torch.arange(self.added, self.added + count) % self.capacity
        self._rows[:, places] = torch.from_numpy(rows).to(self._rows)
        self.added += count
        self.size = min(self.size + count, self.capacity)
