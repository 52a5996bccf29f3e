"""The replay buffer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.recfunctions import structured_to_unstructured
from torch import Tensor

from dpg_cli.algorithms.base import Batch
from dpg_cli.seeding import restore_generator

LOADED_AT_ONCE = 10_000  # transitions; intermediate results take memory too


class Step(NamedTuple):
    """One step of E environments for each of S members, as it is stored."""

    obs: np.ndarray  # (S, E, obs_dim)
    action: np.ndarray  # (S, E, action_dim), in [-1, 1]
    reward: np.ndarray  # (S, E)
    next_obs: np.ndarray  # (S, E, obs_dim)
    terminated: np.ndarray  # (S, E), whether next_obs counts as terminal

    def in_a_row(self) -> list[np.ndarray]:
        """The parts of a stored transition in order, each `(S, E, ·)`."""
        return [self.obs, self.action, self.reward[..., None], self.next_obs, self.terminated[..., None]]


class Replay:
    """A ring of transitions for each member, sampled uniformly with replacement.

    A transition is one row of one tensor, `[obs, action, reward, next_obs, terminated]`, so that a batch is one
    gather. With `share_next_obs` the row is `[obs, action, reward, terminated]`. The next observation is then that of
    the same environment's next transition, and `NextObservations` holds those that differ from it. Samples and stored
    transitions are the same as without. Memory is reserved at the start and touched as the buffer fills.

    Args:
        capacity: transitions per member, at least `num_envs`.
        obs_dim: size of an observation.
        action_dim: size of an action.
        generators: one per member, on the CPU, for sampling.
        device: of the rows.
        dtype: of the rows.
        num_envs: environments per member.
        share_next_obs: whether to store each observation once.
    """

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        generators: Sequence[torch.Generator],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_envs: int = 1,
        *,
        share_next_obs: bool = False,
    ):
        self.capacity = capacity
        self.size = 0
        self.added = 0  # transitions since the start; the next goes to row `added % capacity`
        self.generators = generators
        self._members = torch.arange(len(generators))[:, None]
        self._number = torch.empty(0, dtype=dtype).numpy().dtype
        self._widths = [obs_dim, action_dim, 1, obs_dim, 1]
        self._num_envs = num_envs
        self._own_next: NextObservations | None = None
        if share_next_obs:
            self._own_next = NextObservations(len(generators), capacity, obs_dim, num_envs, device, dtype)
        width = sum(self._widths) - obs_dim * share_next_obs
        self._rows = torch.empty(len(generators), capacity, width, device=device, dtype=dtype)

    @staticmethod
    def memory(
        capacity: int, obs_dim: int, action_dim: int, num_seeds: int, dtype: torch.dtype, *, share_next_obs: bool
    ) -> int:
        """Bytes of a full buffer; `share_next_obs` adds one observation for each episode, which is not counted."""
        numbers = (1 if share_next_obs else 2) * obs_dim + action_dim + 2
        place = NextObservations.PLACE.itemsize if share_next_obs else 0
        return num_seeds * capacity * (numbers * dtype.itemsize + place)

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        next_obs: np.ndarray,
        terminated: np.ndarray,
    ) -> None:
        """Store one step of E environments: `(S, E, ·)` for vectors, `(S, E)` for scalars."""
        parts = Step(obs, action, reward, next_obs, terminated).in_a_row()
        first, count = self.added % self.capacity, obs.shape[1]
        if self._own_next is None and first + count <= self.capacity and self._rows.is_cpu:
            rows = self._rows.numpy()[:, first : first + count]  # takes half the time of the general way
            np.concatenate(parts, axis=-1, out=rows, casting="unsafe")
            self._advance(count)
        else:
            self._put(np.concatenate(parts, axis=-1, dtype=self._number, casting="unsafe"))

    def sample(self, batch_size: int) -> Batch:
        """Draw `batch_size` transitions for each member, from its own stream.

        Sampling is uniform except for the remainder that torch takes of a 32-bit number: it makes some transitions more
        frequent than others, by a share of up to size / 2³².
        """
        draws = [torch.randint(self.size, (batch_size,), generator=g) for g in self.generators]
        places = draws[0].unsqueeze(0) if len(draws) == 1 else torch.stack(draws)
        obs, action, reward, next_obs, terminated = self._gather(self._members, places)
        return Batch(obs, action, reward.squeeze(-1), next_obs, terminated.squeeze(-1))

    def rows(self, member: int, first: int) -> np.ndarray:
        """The transitions from number `first` since the start that are still stored.

        Returns:
            `(n,)`, a structured array with fields obs, action, reward, next_obs and terminated.
        """
        first = max(first, self.added - self.size)
        places = torch.from_numpy(np.arange(first, self.added) % self.capacity)
        rows = np.empty((len(places), sum(self._widths)), self._number)
        for part in range(0, len(places), LOADED_AT_ONCE):  # since a GPU may lack memory for all of them twice
            found = torch.cat(list(self._gather(torch.tensor(member), places[part : part + LOADED_AT_ONCE])), dim=-1)
            rows[part : part + LOADED_AT_ONCE] = found.cpu().numpy()
        return rows.view(self._dtype)[:, 0]

    def state(self, member: int) -> dict[str, Any]:
        """The state of one member, without the rows."""
        return {"added": self.added, "size": self.size, "random": self.generators[member].get_state()}

    def load_state(self, states: Sequence[Mapping[str, Any]], rows: Sequence[Iterable[np.ndarray]]) -> None:
        """Restore the state and rows of each member.

        Args:
            states: from `state()`, one per member.
            rows: for each member the transitions that were stored, as `rows()` returns them, oldest first, in parts.

        Raises:
            ValueError: the rows have another type.
        """
        self.added, self.size = states[0]["added"] - states[0]["size"], 0
        at_once = min(LOADED_AT_ONCE, self.capacity)
        for parts in zip(*(in_parts_of(at_once, own) for own in rows), strict=True):
            for part in parts:
                if part.dtype != self._dtype:
                    raise ValueError(f"transitions are {part.dtype}, not {self._dtype}")
            self._put(structured_to_unstructured(np.stack(parts)))
        for generator, state in zip(self.generators, states, strict=True):
            restore_generator(generator, state["random"], self.added)

    @property
    def _dtype(self) -> np.dtype[Any]:
        obs, action = self._widths[:2]
        fields = [("obs", (obs,)), ("action", (action,)), ("reward", ()), ("next_obs", (obs,)), ("terminated", ())]
        return np.dtype([(name, self._number, shape) for name, shape in fields])

    def _put(self, transitions: np.ndarray) -> None:
        count = transitions.shape[1]
        rows = torch.from_numpy(transitions)
        if self._own_next is not None:
            obs, action, reward, next_obs, terminated = torch.split(rows, self._widths, dim=-1)
            self._own_next.put(self.added, obs.numpy(), next_obs.numpy())
            rows = torch.cat([obs, action, reward, terminated], dim=-1)
        first = self.added % self.capacity
        until_end = min(count, self.capacity - first)
        self._rows[:, first : first + until_end] = rows[:, :until_end]
        if until_end < count:
            self._rows[:, : count - until_end] = rows[:, until_end:]
        self._advance(count)

    def _advance(self, count: int) -> None:
        self.added += count
        self.size = min(self.size + count, self.capacity)

    def _gather(self, member: Tensor, places: Tensor) -> Sequence[Tensor]:
        """Obs, action, reward, next_obs and terminated, each `(*places.shape, ·)`, at places of members."""
        rows = self._rows.view(-1, self._rows.shape[-1])

        def select(source: Tensor, places: Tensor) -> Tensor:
            index = places if len(self.generators) == 1 else torch.add(places, member, alpha=self.capacity)
            return source.index_select(0, index.flatten().to(rows.device)).view(*places.shape, source.shape[1])

        found = select(rows, places)
        if self._own_next is None:
            parts: Sequence[Tensor] = found.split_with_sizes(self._widths, dim=-1)  # which torch.split calls
            return parts
        obs_dim, action_dim = self._widths[:2]
        obs, action, reward, terminated = torch.split(found, [obs_dim, action_dim, 1, 1], dim=-1)
        next_obs = select(rows[:, :obs_dim], (places + self._num_envs) % self.capacity)
        self._own_next.fill_in(next_obs.view(-1, obs_dim), member.numpy(), places.numpy())
        return obs, action, reward, next_obs, terminated


class DeviceReplay(Replay):
    """A replay that stores and samples only with operations on its device, so that they can be captured.

    Its size and the place of the next transition are tensors there. Random numbers that are drawn elsewhere choose a
    batch.

    Args:
        capacity: transitions per member, at least `num_envs`.
        obs_dim: size of an observation.
        action_dim: size of an action.
        generators: one per member, on the device.
        device: of the rows.
        dtype: of the rows.
        num_envs: environments per member.
    """

    NUMBERS = 2**32 - 1  # bound of the numbers for `batch`; a CPU's torch.randint also takes a remainder

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        generators: Sequence[torch.Generator],
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        num_envs: int = 1,
    ):
        super().__init__(capacity, obs_dim, action_dim, generators, device, dtype, num_envs)
        self._rows[:, 0] = 0.0  # the row that fills a batch from an empty buffer, while a graph is prepared
        self._size, self._next = torch.zeros(2, dtype=torch.int64, device=device).unbind()
        self._first_rows = capacity * torch.arange(len(generators), device=device)[:, None]
        self._steps = torch.arange(num_envs, device=device)

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """The shape of one step of E environments, as `insert` takes it: `(S, E, width)`."""
        return len(self.generators), self._num_envs, self._rows.shape[-1]

    def static_tensors(self) -> list[Tensor]:
        """Every tensor that storing and sampling read or write and that persists between them."""
        return [self._rows, self._size, self._next, self._first_rows, self._steps]

    def insert(self, rows: Tensor) -> None:
        """Store one step of E environments, `(S, E, width)`, as `Step.in_a_row` arranges it."""
        self._rows.index_copy_(1, (self._next + self._steps) % self.capacity, rows)
        self._next.add_(self._num_envs).remainder_(self.capacity)
        self._size.add_(self._num_envs).clamp_(max=self.capacity)

    def inserted(self) -> None:
        """Count on the host what `insert` has stored."""
        self._advance(self._num_envs)

    def batch(self, numbers: Tensor) -> Batch:
        """The transitions chosen by integers `(S, B)`, which are uniform below `NUMBERS`."""
        places = numbers % self._size.clamp(min=1) + self._first_rows
        found = self._rows.view(-1, self._rows.shape[-1]).index_select(0, places.flatten())
        parts = found.view(*places.shape, -1).split_with_sizes(self._widths, dim=-1)
        obs, action, reward, next_obs, terminated = parts
        return Batch(obs, action, reward.squeeze(-1), next_obs, terminated.squeeze(-1))

    def load_state(self, states: Sequence[Mapping[str, Any]], rows: Sequence[Iterable[np.ndarray]]) -> None:
        """Restore the state and rows of each member; see `Replay.load_state`."""
        super().load_state(states, rows)
        self._size.fill_(self.size)
        self._next.fill_(self.added % self.capacity)


class NextObservations:
    """The next observations that are not the observation of a stored transition.

    These are the last observations of episodes, which a reset ended or a resumed run did not continue, and the newest
    of each environment, until its next transition is stored. Observations are compared: only those that are equal in
    every bit are shared.

    Args:
        members: S.
        capacity: transitions per member.
        obs_dim: size of an observation.
        num_envs: E; transition n of a member is followed by transition n + E of the same environment.
        device: of the observations; their places are kept on the host.
        dtype: of the observations.
    """

    PLACE = np.dtype(np.int32)

    def __init__(
        self, members: int, capacity: int, obs_dim: int, num_envs: int, device: torch.device | str, dtype: torch.dtype
    ):
        self._held = torch.empty(0, obs_dim, device=device, dtype=dtype)
        self._free: list[int] = []  # unused rows of `_held`
        self._where = np.full((members, capacity), -1, self.PLACE)  # the row of `_held`; -1: shared
        blank = torch.full((members, num_envs, obs_dim), torch.nan, dtype=dtype)
        self._newest = blank.numpy()  # next observations of each environment's newest transition

    def put(self, added: int, obs: np.ndarray, next_obs: np.ndarray) -> None:
        """Store what is not shared of the transitions from number `added`, `(S, n, obs_dim)` each, over the oldest."""
        members, count, _ = obs.shape
        capacity, num_envs = self._where.shape[1], self._newest.shape[1]
        following = np.concatenate([self._newest, next_obs], axis=1)  # of the transitions from `added - E` on
        self._newest = following[:, count:].copy()
        bits = f"u{obs.itemsize}"
        shared = (following[:, :count].view(bits) == obs.view(bits)).all(axis=-1)
        shared = np.concatenate([shared, np.zeros((members, num_envs), bool)], axis=1)
        places = np.arange(added - num_envs, added + count) % capacity
        before, new = places[:num_envs], places[num_envs:]
        self._release(shared[:, :num_envs], before)
        self._release(np.ones((members, count), bool), new)

        member, index = np.nonzero(~shared[:, num_envs:])
        rows = self._take(len(member))
        self._where[member, new[index]] = rows
        own = torch.from_numpy(next_obs[member, index])
        self._held[torch.from_numpy(rows).to(self._held.device)] = own.to(self._held.device)

    def fill_in(self, next_obs: Tensor, member: np.ndarray, places: np.ndarray) -> None:
        """Overwrite the rows of `next_obs`, `(n, obs_dim)`, that are not shared."""
        where = self._where[member, places].ravel()
        index = np.flatnonzero(where >= 0)
        if index.size:
            own, to = (torch.from_numpy(i).to(self._held.device) for i in (where[index], index))
            next_obs.index_copy_(0, to, self._held.index_select(0, own))

    def _release(self, mask: np.ndarray, places: np.ndarray) -> None:
        where = self._where[:, places]
        self._free += where[mask & (where >= 0)].tolist()
        self._where[:, places] = np.where(mask, -1, where)

    def _take(self, count: int) -> np.ndarray:
        missing = count - len(self._free)
        if missing > 0:
            held = len(self._held)
            more = max(missing, held // 8)  # so that little memory is unused
            self._held = torch.cat([self._held, self._held.new_empty(more, self._held.shape[1])])
            self._free += range(held, held + more)
        rows = np.array(self._free[len(self._free) - count :], np.int64)
        del self._free[len(self._free) - count :]
        return rows


def in_parts_of(count: int, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same rows, `count` at a time; the last part may be shorter."""
    rest: np.ndarray | None = None
    for part in parts:
        rest = part if rest is None or not len(rest) else np.concatenate([rest, part])
        while len(rest) >= count:
            yield rest[:count]
            rest = rest[count:]
    if rest is not None and len(rest):
        yield rest
