"""The replay buffer."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpg_cli.algorithms.base import Batch
from dpg_cli.priorities import Priorities
from dpg_cli.seeding import restore_generator

ROW = ("obs", "action", "reward", "end", "next_obs")  # the parts of a stored transition
TERMINATED, TRUNCATED, CUT = 1, 2, 4  # summands of `end`; CUT: a resumed run started a new episode after the transition
LOADED_AT_ONCE = 10_000  # transitions; intermediate results take memory too


class Step(NamedTuple):
    """One step of E environments for each of S members, as it is stored."""

    obs: np.ndarray  # (S, E, obs_dim)
    action: np.ndarray  # (S, E, action_dim), in [-1, 1]
    reward: np.ndarray  # (S, E)
    next_obs: np.ndarray  # (S, E, obs_dim); the true final observation where an episode ended
    terminated: np.ndarray  # (S, E), as the environment reported it
    truncated: np.ndarray  # (S, E), the same

    def in_a_row(self) -> list[np.ndarray]:
        """The parts of a stored transition, in the order of `ROW`, each `(S, E, ·)`."""
        end = TERMINATED * self.terminated + TRUNCATED * self.truncated
        return [self.obs, self.action, self.reward[..., None], end[..., None], self.next_obs]


class Subtrajectories(NamedTuple):
    """B runs of up to T successive transitions of one episode for each of S members."""

    obs: Tensor  # (S, B, T, obs_dim)
    action: Tensor  # (S, B, T, action_dim), in [-1, 1]
    reward: Tensor  # (S, B, T)
    next_obs: Tensor  # (S, B, T, obs_dim)
    terminated: Tensor  # (S, B, T); 1 if next_obs is terminal, as in `Batch`
    inside: Tensor  # (S, B, T) bool; false beyond the last transition of a run, where the other tensors hold the first


class Replay:
    """A ring of transitions for each member, sampled with replacement.

    A transition is one row of one tensor, with the parts of `ROW` side by side, so that a batch is one gather. With
    `share_next_obs` the row lacks `next_obs`. The next observation is then that of the same environment's next
    transition, and `NextObservations` holds those that differ from it. Samples and stored transitions are the same as
    without. Memory is reserved at the start and touched as the buffer fills.

    The transitions of E environments take turns: number n since the start is of environment n mod E. So the next
    transition of an episode is E rows further. A window of `n_steps` ends with its episode, before the first
    transition after a resumed run started a new one, and at the newest transition of its environment.

    Args:
        capacity: transitions per member, at least `num_envs`.
        obs_dim: size of an observation.
        action_dim: size of an action.
        generators: one per member, on the CPU, for sampling.
        device: of the rows.
        dtype: of the rows.
        num_envs: environments per member.
        discount: γ, per step.
        share_next_obs: whether to store each observation once.
        n_steps: most steps of a window.
        truncation_bootstraps: whether a target looks beyond a truncated step.
        priorities: None: samples are uniform.
        shared: `(capacity, width)`, transitions that all members share; see `DatasetReplay`. None: an empty ring each.
    """

    fixed: ClassVar[bool] = False  # whether it holds a data set, to which nothing is added

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
        discount: float,
        share_next_obs: bool = False,
        n_steps: int = 1,
        truncation_bootstraps: bool = True,
        priorities: Priorities | None = None,
        shared: Tensor | None = None,
    ):
        self.capacity = capacity
        self.size = 0
        self.added = 0  # transitions since the start; the next goes to row `added % capacity`
        self.generators = generators
        self.priorities = priorities
        self._cuts: list[list[int]] = [[] for _ in generators]  # numbers of the transitions marked CUT
        self._members = torch.arange(len(generators), device=device)[:, None]
        self._number = torch.empty(0, dtype=dtype).numpy().dtype
        self._widths = [obs_dim, action_dim, 1, 1, obs_dim]
        self._end = obs_dim + action_dim + 1  # column
        self._num_envs = num_envs
        self._n_steps, self._discount, self._truncation_bootstraps = n_steps, discount, truncation_bootstraps
        self._own_next: NextObservations | None = None
        if share_next_obs:
            self._own_next = NextObservations(len(generators), capacity, obs_dim, num_envs, device, dtype)
        width = sum(self._widths) - obs_dim * share_next_obs
        if shared is None:
            self._rows = torch.empty(len(generators), capacity, width, device=device, dtype=dtype)
        else:
            self._rows = shared.expand(len(generators), capacity, width)
        self._powers = torch.tensor([discount**k for k in range(n_steps + 1)], device=device, dtype=dtype)
        self._sampled: Tensor | None = None  # the places of the last sample, (S, B)

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
        truncated: np.ndarray,
    ) -> None:
        """Store one step of E environments: `(S, E, ·)` for vectors, `(S, E)` for scalars."""
        parts = Step(obs, action, reward, next_obs, terminated, truncated).in_a_row()
        first, count = self.added % self.capacity, obs.shape[1]
        if self._own_next is None and first + count <= self.capacity and self._rows.is_cpu:
            rows = self._rows.numpy()[:, first : first + count]  # takes half the time of the general way
            np.concatenate(parts, axis=-1, out=rows, casting="unsafe")
        else:
            self._put(np.concatenate(parts, axis=-1, dtype=self._number, casting="unsafe"))
        if self.priorities is not None:
            self.priorities.add(torch.arange(first, first + count) % self.capacity)
        self._advance(count)

    @property
    def step_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the parts of a `Step`."""
        one = (len(self.generators), self._num_envs)
        obs, action = self._widths[:2]
        return [(*one, obs), (*one, action), one, (*one, obs), one, one]

    def cut(self, anew: np.ndarray) -> None:
        """Mark where a resumed run has started new episodes, `(S, E)`: no window reaches beyond the newest transition.

        It is stored as neither terminated nor truncated, since the environment reported neither.
        """
        for member, env in np.argwhere(anew):
            number = self.added - self._num_envs + int(env)
            if number >= self.added - self.size:
                self._mark_cut(int(member), number)

    def sample(self, batch_size: int) -> Batch:
        """Draw `batch_size` windows for each member, from its own stream.

        Uniform sampling is so except for the remainder that torch takes of a 32-bit number: it makes some transitions
        more frequent than others, by a share of up to size / 2³².
        """
        return self._batch(self._draw(batch_size), self.added % self.capacity)

    def sample_subtrajectories(self, batch_size: int, length: int) -> Subtrajectories:
        """Draw `batch_size` runs of up to `length` transitions for each member; they end where windows end."""
        first = self._draw(batch_size)
        at, inside = self._ahead_of(first, length, self.added % self.capacity)
        at = torch.where(inside, at, first.unsqueeze(-1))
        parts = [part.view(*at.shape, -1) for part in self._gather(self._members, at.flatten(1))]
        obs, action, reward, end, next_obs = parts
        return Subtrajectories(obs, action, reward.squeeze(-1), next_obs, self._terminal(end).squeeze(-1), inside)

    def learned(self, td_error: Tensor, *, reset_largest: bool = False) -> None:
        """Give the last sample its new priorities, if there are any.

        Args:
            td_error: `(K, S, B)`, values minus targets before the update.
            reset_largest: whether the largest priority so far becomes the largest that is stored.
        """
        if self.priorities is not None:
            assert self._sampled is not None
            self.priorities.update(self._sampled, td_error)
            if reset_largest:
                self.priorities.reset_largest()

    def rows(self, member: int, first: int) -> np.ndarray:
        """The transitions from number `first` since the start that are still stored.

        Returns:
            `(n,)`, a structured array with fields obs, action, reward, next_obs, terminated, truncated and env, the
            number of the environment.
        """
        numbers = np.arange(max(first, self.added - self.size), self.added)
        places = torch.from_numpy(numbers % self.capacity).to(self._rows.device)
        rows = np.empty(len(places), self._dtype)
        for start in range(0, len(places), LOADED_AT_ONCE):  # since a GPU may lack memory for all of them twice
            part = slice(start, start + LOADED_AT_ONCE)
            found = dict(
                zip(ROW, (t.cpu().numpy() for t in self._gather(self._members[member], places[part])), strict=True)
            )
            end = found.pop("end")[:, 0].astype(int)
            for name, values in found.items():
                rows[name][part] = values.reshape(rows[name][part].shape)
            rows["terminated"][part], rows["truncated"][part] = end & TERMINATED, end & TRUNCATED
        rows["env"] = numbers % self._num_envs
        return rows

    def state(self, member: int) -> dict[str, Any]:
        """The state of one member, without the rows."""
        cuts = [number for number in self._cuts[member] if number >= self.added - self.size]
        state = {"added": self.added, "size": self.size, "cuts": cuts, "random": self.generators[member].get_state()}
        return state if self.priorities is None else state | {"lap": self.priorities.state(member, self._places())}

    def load_state(self, states: Sequence[Mapping[str, Any]], rows: Sequence[Iterable[np.ndarray]]) -> None:
        """Restore the state and rows of each member.

        Args:
            states: from `state()`, one per member.
            rows: for each member the transitions that were stored, as `rows()` returns them, oldest first, in parts.

        Raises:
            ValueError: the rows have another type, or a part of a state does not fit them.
        """
        self.added, self.size = states[0]["added"] - states[0]["size"], 0
        at_once = min(LOADED_AT_ONCE, self.capacity)
        for parts in zip(*(in_parts_of(at_once, own) for own in rows), strict=True):
            expected = np.arange(self.added, self.added + len(parts[0])) % self._num_envs
            for part in parts:
                if part.dtype != self._dtype:
                    raise ValueError(f"transitions are {part.dtype}, not {self._dtype}")
                if any(part[name].view(np.uint8).max() > 1 for name in ("terminated", "truncated")):
                    raise ValueError("whether a transition ended its episode is neither 0 nor 1")
                if not np.array_equal(part["env"], expected):
                    raise ValueError(f"the transitions do not take turns among {self._num_envs} environments")
            columns = {name: np.stack([part[name] for part in parts]) for name in parts[0].dtype.names if name != "env"}
            self._put(np.concatenate(Step(**columns).in_a_row(), axis=-1, dtype=self._number, casting="unsafe"))
            self._advance(len(expected))
        for member, (generator, state) in enumerate(zip(self.generators, states, strict=True)):
            restore_generator(generator, state["random"], self.added)
            self._cuts[member] = []
            if not isinstance(state["cuts"], list):
                raise ValueError("the cuts are not a list")
            for number in state["cuts"]:
                if type(number) is not int or not self.added - self.size <= number < self.added:
                    raise ValueError("a cut is not at a stored transition")
                self._mark_cut(member, number)
        self._load_priorities(states)

    def _load_priorities(self, states: Sequence[Mapping[str, Any]]) -> None:
        if self.priorities is None:
            return
        if not all(
            isinstance(own := state["lap"], dict) and {"priorities", "largest"} <= own.keys() for state in states
        ):
            raise ValueError("the priorities are missing")
        self.priorities.load_state([state["lap"] for state in states], self._places())

    @property
    def _dtype(self) -> np.dtype[Any]:
        obs, action = self._widths[:2]
        number, flag = self._number, np.dtype(np.bool_)
        fields = [
            ("obs", number, (obs,)),
            ("action", number, (action,)),
            ("reward", number),
            ("next_obs", number, (obs,)),
        ]
        return np.dtype([*fields, ("terminated", flag), ("truncated", flag), ("env", np.dtype(np.uint16))])

    def _places(self) -> Tensor:
        """The places of all transitions, oldest first."""
        return torch.arange(self.added - self.size, self.added, device=self._rows.device) % self.capacity

    def _mark_cut(self, member: int, number: int) -> None:
        end = self._rows[member, number % self.capacity, self._end]
        if end == 0:
            end.fill_(CUT)
            self._cuts[member].append(number)

    def _put(self, transitions: np.ndarray) -> None:
        """Write transitions `(S, n, ·)`, in the order of `ROW`, to the places from `added` on."""
        count = transitions.shape[1]
        rows = torch.from_numpy(transitions)
        if self._own_next is not None:
            obs, *_, next_obs = torch.split(rows, self._widths, dim=-1)
            self._own_next.put(self.added, obs.numpy(), next_obs.numpy())
            rows = rows[..., : self._rows.shape[-1]]
        first = self.added % self.capacity
        until_end = min(count, self.capacity - first)
        self._rows[:, first : first + until_end] = rows[:, :until_end]
        if until_end < count:
            self._rows[:, : count - until_end] = rows[:, until_end:]

    def _advance(self, count: int) -> None:
        self.added += count
        self.size = min(self.size + count, self.capacity)

    def _draw(self, batch_size: int) -> Tensor:
        """The places of a sample, `(S, B)`."""
        if self.priorities is None:
            draws = [torch.randint(self.size, (batch_size,), generator=g, device=g.device) for g in self.generators]
        else:
            number = torch.float64
            draws = [torch.rand(batch_size, generator=g, dtype=number, device=g.device) for g in self.generators]
        drawn = draws[0].unsqueeze(0) if len(draws) == 1 else torch.stack(draws)
        drawn = drawn.to(self._rows.device)
        self._sampled = drawn if self.priorities is None else self.priorities.find(drawn)
        return self._sampled

    def _batch(self, places: Tensor, next_place: int | Tensor) -> Batch:
        """The windows that start at places `(S, B)`; `next_place` is that of the next transition to be stored."""
        obs, action, reward, end, second_obs = self._gather(self._members, places)
        next_obs = second_obs
        discount: Tensor | float = self._discount
        reward = reward.squeeze(-1)
        if self._n_steps > 1:
            at, inside = self._ahead_of(places, self._n_steps, next_place)
            rewards = self._select(self._rows[..., self._end - 1 : self._end], at.flatten(1), self._members).view(
                at.shape
            )
            reward = torch.where(inside, rewards * self._powers[:-1], 0.0).sum(dim=-1)
            steps = inside.sum(dim=-1, keepdim=True)
            discount = self._powers[steps.squeeze(-1)]
            *_, end, next_obs = self._gather(self._members, at.gather(-1, steps - 1).squeeze(-1))
        return Batch(obs, action, reward, next_obs, self._terminal(end).squeeze(-1), discount, second_obs)

    def _terminal(self, end: Tensor) -> Tensor:
        """1 where nothing is bootstrapped; the remainders drop the larger summands of `end`."""
        return end % TRUNCATED if self._truncation_bootstraps else (end % CUT).clamp(max=1)

    def _ahead_of(self, places: Tensor, steps: int, next_place: int | Tensor) -> tuple[Tensor, Tensor]:
        """The places of the next transitions of the same environment.

        Returns:
            Places, `(S, B, steps)`, from `places` on; and whether each belongs to the same episode and is stored.
        """
        ahead = self._num_envs * torch.arange(steps, device=places.device)
        newer = (next_place - 1 - places) % self.capacity  # transitions after the first
        at = (places.unsqueeze(-1) + ahead) % self.capacity
        end = self._select(self._rows[..., self._end : self._end + 1], at.flatten(1), self._members).view(at.shape)
        goes_on = (end == 0) & (newer.unsqueeze(-1) >= ahead + self._num_envs)
        inside = torch.cat([torch.ones_like(goes_on[..., :1]), goes_on[..., :-1]], dim=-1).cumprod(dim=-1).bool()
        return at, inside

    def _gather(self, member: Tensor, places: Tensor) -> Sequence[Tensor]:
        """The parts of `ROW`, each `(*places.shape, ·)`, at places of members."""
        found = self._select(self._rows, places, member)
        if self._own_next is None:
            parts: Sequence[Tensor] = found.split_with_sizes(self._widths, dim=-1)  # which torch.split calls
            return parts
        obs_dim = self._widths[0]
        next_obs = self._select(self._rows[..., :obs_dim], (places + self._num_envs) % self.capacity, member)
        self._own_next.fill_in(next_obs.view(-1, obs_dim), member.cpu().numpy(), places.cpu().numpy())
        return [*found.split_with_sizes(self._widths[:-1], dim=-1), next_obs]

    def _select(self, source: Tensor, places: Tensor, member: Tensor) -> Tensor:
        """The rows of `(S, capacity, width)` at places of members, `(*places.shape, width)`."""
        if self.fixed:  # one copy for all members
            source = source[:1]
        index = places if len(source) == 1 else torch.add(places, member, alpha=self.capacity)
        return source.flatten(0, 1).index_select(0, index.flatten()).view(*places.shape, source.shape[-1])


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
        windows: the further arguments of `Replay`, except `share_next_obs`.
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
        **windows: Any,
    ):
        super().__init__(capacity, obs_dim, action_dim, generators, device, dtype, num_envs, **windows)
        if not self.fixed:
            self._rows[:, 0] = 0.0  # the row that fills a batch from an empty buffer, while a graph is prepared
        self._size, self._next = torch.zeros(2, dtype=torch.int64, device=device).unbind()
        self._steps = torch.arange(num_envs, device=device)

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """The shape of one step of E environments, as `insert` takes it: `(S, E, width)`."""
        return len(self.generators), self._num_envs, self._rows.shape[-1]

    def static_tensors(self) -> list[Tensor]:
        """Every tensor that storing and sampling read or write and that persists between them."""
        own = [self._rows, self._size, self._next, self._steps, self._members, self._powers]
        return own if self.priorities is None else own + self.priorities.static_tensors()

    def insert(self, rows: Tensor) -> None:
        """Store one step of E environments, `(S, E, width)`, as `Step.in_a_row` arranges it."""
        places = (self._next + self._steps) % self.capacity
        self._rows.index_copy_(1, places, rows)
        if self.priorities is not None:
            self.priorities.add(places)
        self._next.add_(self._num_envs).remainder_(self.capacity)
        self._size.add_(self._num_envs).clamp_(max=self.capacity)

    def inserted(self) -> None:
        """Count on the host what `insert` has stored."""
        self._advance(self._num_envs)

    def batch(self, numbers: Tensor) -> Batch:
        """The windows chosen by integers `(S, B)`, which are uniform below `NUMBERS`."""
        size = self._size.clamp(min=1)
        if self.priorities is None:
            self._sampled = numbers % size
        else:
            self._sampled = self.priorities.find(numbers.double() / self.NUMBERS) % size
        return self._batch(self._sampled, self._next)

    def load_state(self, states: Sequence[Mapping[str, Any]], rows: Sequence[Iterable[np.ndarray]]) -> None:
        """Restore the state and rows of each member; see `Replay.load_state`."""
        super().load_state(states, rows)
        self._size.fill_(self.size)
        self._next.fill_(self.added % self.capacity)


class DatasetReplay(Replay):
    """A data set in place of a ring: one copy for all members, each of which samples from its own stream.

    Args:
        rows: `(N, width)`, transitions with the parts of `ROW` side by side, as `Dataset.rows` has them.
        obs_dim: size of an observation.
        action_dim: size of an action.
        generators: one per member, for sampling.
        windows: further arguments of `Replay`, except `share_next_obs`.
    """

    fixed = True

    def __init__(
        self, rows: Tensor, obs_dim: int, action_dim: int, generators: Sequence[torch.Generator], **windows: Any
    ):
        sizes = len(rows), obs_dim, action_dim
        super().__init__(*sizes, generators, rows.device, rows.dtype, shared=rows, **windows)
        self._advance(self.capacity)
        if self.priorities is not None:
            self.priorities.add(torch.arange(self.capacity))

    def rows(self, member: int, first: int) -> np.ndarray:
        """Nothing: a checkpoint does not store the data set again."""
        return np.empty(0, self._dtype)

    def state(self, member: int) -> dict[str, Any]:
        """The state of one member; for a checkpoint, no transition has been added."""
        return super().state(member) | {"added": 0, "size": 0, "cuts": []}

    def load_state(self, states: Sequence[Mapping[str, Any]], rows: Sequence[Iterable[np.ndarray]]) -> None:
        """Restore the streams and priorities of each member; `rows` are not used.

        Raises:
            ValueError: a part of a state does not fit the data set.
        """
        for generator, state in zip(self.generators, states, strict=True):
            stored = state["random"]
            restore_generator(generator, stored, zlib.crc32(stored.numpy().tobytes()))
        self._load_priorities(states)


class DeviceDatasetReplay(DatasetReplay, DeviceReplay):
    """A data set on a device, sampled there with operations that can be captured."""

    def __init__(
        self, rows: Tensor, obs_dim: int, action_dim: int, generators: Sequence[torch.Generator], **windows: Any
    ):
        super().__init__(rows, obs_dim, action_dim, generators, **windows)
        self._size.fill_(self.size)


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
