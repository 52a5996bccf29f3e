"""The replay buffer."""

from collections.abc import Sequence

import numpy as np
import torch

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
        self._cursor = 0
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
        count = rows.shape[1]
        places = torch.arange(self._cursor, self._cursor + count) % self.capacity
        self._rows[:, places] = torch.from_numpy(rows).to(self._rows)
        self._cursor = (self._cursor + count) % self.capacity
        self.size = min(self.size + count, self.capacity)

    def sample(self, batch_size: int) -> Batch:
        """Draw `batch_size` transitions for each member, from its own stream."""
        members, capacity, width = self._rows.shape
        places = np.stack([g.integers(self.size, size=batch_size) for g in self._generators])
        places += capacity * np.arange(members)[:, None]
        index = torch.from_numpy(places.ravel()).to(self._rows.device)
        rows = self._rows.view(-1, width).index_select(0, index).view(members, batch_size, width)
        obs, action, reward, next_obs, terminated = torch.split(rows, self._widths, dim=-1)
        return Batch(obs, action, reward.squeeze(-1), next_obs, terminated.squeeze(-1))
