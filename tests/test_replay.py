"""The replay buffer: what is stored comes back, uniformly, to each member from its own stream."""

import functools

import numpy as np
import pytest
import torch

from dpg_cli.replay import NextObservations, Replay
from dpg_cli.seeding import Purpose, torch_generator

OBS, ACTION = 3, 2


def new(capacity, seeds=(0,), obs_dim=OBS, action_dim=ACTION, **options):
    generators = [torch_generator(seed, Purpose.REPLAY) for seed in seeds]
    return Replay(capacity, obs_dim, action_dim, generators, discount=0.99, **options)


@pytest.fixture(params=[False, True], ids=["stored twice", "shared"])
def make(request):
    return functools.partial(new, share_next_obs=request.param)


def step(numbers, members=1):
    """One step of E environments; every value of a transition tells its number and its member."""
    number = np.tile(np.asarray(numbers, np.float64), (members, 1)) + 1000 * np.arange(members)[:, None]
    return (
        number[..., None] + np.linspace(0, 0.5, OBS),
        np.stack([np.sin(number), np.cos(number)], axis=-1),
        -number,
        number[..., None] + 1 + np.linspace(0, 0.5, OBS),
        np.round(number).astype(int) % 3 == 0,
        np.round(number).astype(int) % 5 == 0,
    )


def fill(replay, count, num_envs=1, members=1):
    for first in range(0, count, num_envs):
        replay.add(*step(np.arange(first, first + num_envs), members))


def stored(replay, member=0, draws=4000):
    """The numbers of a member's transitions that sampling finds."""
    return {int(-reward) for reward in replay.sample(draws).reward[member].tolist()}


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_batch_holds_the_transitions_that_were_stored(make, num_envs):
    replay = make(30, seeds=(0, 1), dtype=torch.float64, num_envs=num_envs)
    fill(replay, 30, num_envs, members=2)
    batch = replay.sample(200)
    assert batch.obs.shape == batch.next_obs.shape == (2, 200, OBS)
    assert batch.action.shape == (2, 200, ACTION)
    assert batch.reward.shape == batch.terminated.shape == (2, 200)
    for member in range(2):
        numbers = -batch.reward[member].numpy()
        assert set(numbers) <= set(range(1000 * member, 1000 * member + 30))
        expected = step(numbers)
        for got, want in zip(batch[:5], expected[:5], strict=True):
            np.testing.assert_array_equal(got[member].numpy(), want[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_have_the_precision_asked_for(make, dtype):
    replay = make(4, dtype=dtype)
    value = 1 / 3
    replay.add(
        np.full((1, 1, OBS), value),
        np.full((1, 1, ACTION), value),
        np.full((1, 1), value),
        np.full((1, 1, OBS), value),
        np.zeros((1, 1), bool),
        np.zeros((1, 1), bool),
    )
    for tensor in replay.sample(2)[:4]:
        assert tensor.dtype is dtype
        assert (tensor == torch.tensor(value, dtype=torch.float64).to(dtype)).all()


def test_only_stored_rows_are_sampled(make):
    replay = make(1000)
    for count in range(1, 6):
        fill(replay, 1)
        assert replay.size == count
    replay = make(1000)
    fill(replay, 7)
    assert stored(replay) == set(range(7))


@pytest.mark.parametrize(("capacity", "count"), [(10, 10), (10, 11), (10, 25), (7, 700), (1, 5)])
def test_the_oldest_make_room(make, capacity, count):
    replay = make(capacity)
    fill(replay, count)
    assert replay.size == capacity
    assert stored(replay) == set(range(count - capacity, count))


@pytest.mark.parametrize(("capacity", "num_envs"), [(10, 3), (7, 4), (5, 5), (9, 2)])
def test_the_oldest_make_room_when_environments_do_not_divide_the_capacity(make, capacity, num_envs):
    replay = make(capacity, seeds=(0, 1), dtype=torch.float64, num_envs=num_envs)
    for first in range(0, 5 * capacity, num_envs):
        replay.add(*step(np.arange(first, first + num_envs), 2))
        made = first + num_envs
        oldest = max(0, made - capacity)
        assert replay.size == made - oldest
        for member in range(2):
            assert stored(replay, member, 300) == set(range(1000 * member + oldest, 1000 * member + made))
    batch = replay.sample(50)
    np.testing.assert_array_equal(batch.next_obs[0].numpy(), batch.obs[0].numpy() + 1)  # no row is torn


def test_sampling_is_uniform(make):
    replay = make(20)
    fill(replay, 33)
    draws = 40_000
    counts = np.unique(replay.sample(draws).reward.numpy(), return_counts=True)[1]
    assert len(counts) == 20
    chi_squared = ((counts - draws / 20) ** 2 / (draws / 20)).sum()
    assert chi_squared < 36.2  # 19 degrees of freedom, once in a hundred


def test_a_seed_draws_the_same_beside_others_and_alone(make):
    together, alone = make(50, seeds=(3, 8)), make(50, seeds=(8,))
    fill(together, 40, members=2)
    fill(alone, 40)
    for _ in range(5):
        both, own = together.sample(16), alone.sample(16)
        np.testing.assert_array_equal(both.reward[1].numpy() + 1000, own.reward[0].numpy())
        assert not torch.equal(both.reward[0], both.reward[1] + 1000)


def test_same_seed_same_batches_and_another_seed_others(make):
    first, again, other = make(50, seeds=(1,)), make(50, seeds=(1,)), make(50, seeds=(2,))
    for replay in (first, again, other):
        fill(replay, 50)
    a, b, c = (replay.sample(32).reward for replay in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_batch_is_no_view_of_the_buffer(make):
    replay = make(4)
    fill(replay, 4)
    batch = replay.sample(8)
    before = batch.obs.clone()
    fill(replay, 4)
    replay.add(*step([99]))
    assert torch.equal(batch.obs, before)


class Episodes:
    """Environments that end episodes after so many steps; an episode's last observation is never the next one's first.

    Args:
        members: S.
        num_envs: E.
        shortest, longest: steps of an episode.
        sizes: of an observation and an action.
    """

    def __init__(self, members=1, num_envs=1, shortest=1, longest=7, sizes=(OBS, ACTION)):
        self.random = np.random.default_rng(0)
        self.shape, self.shortest, self.longest, self.sizes = (members, num_envs), shortest, longest, sizes
        self.obs = self.random.normal(size=(*self.shape, sizes[0])).astype(np.float32)
        self.left = self.random.integers(1, longest + 1, self.shape)

    def step(self):
        obs, next_obs = self.obs, self.random.normal(size=self.obs.shape).astype(np.float32)
        action = self.random.uniform(-1, 1, (*self.shape, self.sizes[1]))
        self.left -= 1
        ended = self.left == 0
        self.left[ended] = self.random.integers(self.shortest, self.longest + 1, ended.sum())
        first = self.random.normal(size=self.obs.shape)
        self.obs = np.where(ended[..., None], first, next_obs).astype(np.float32)
        terminated = ended & (self.random.random(self.shape) < 0.5)
        return obs, action, self.random.normal(size=self.shape), next_obs, terminated, ended & ~terminated


def equal(batch, other):
    return all(torch.equal(a, b) for a, b in zip(batch[:5], other[:5], strict=True))


@pytest.mark.parametrize(
    ("capacity", "num_envs"), [(20, 1), (20, 4), (20, 3), (7, 5), (5, 5), (8, 7), (1, 1), (2, 1), (500, 3)]
)
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("longest", [1, 7, 1000])
def test_sharing_next_observations_changes_no_batch(capacity, num_envs, seeds, longest):
    plain, shared = (new(capacity, seeds, num_envs=num_envs, share_next_obs=share) for share in (False, True))
    environments = Episodes(len(seeds), num_envs, longest=longest)
    for _ in range(2 + 4 * min(capacity, 30) // num_envs):
        transition = environments.step()
        plain.add(*transition)
        shared.add(*transition)
        assert equal(plain.sample(50), shared.sample(50))
        for member in range(len(seeds)):
            # All that is there, the newest transitions and the oldest among it, and what came last.
            for first in (0, plain.added - num_envs):
                assert plain.rows(member, first).tobytes() == shared.rows(member, first).tobytes()


@pytest.mark.parametrize("steps", [0, 1, 4, 7, 30])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_what_was_saved_goes_on_with_the_same_batches(make, steps, num_envs, monkeypatch):
    monkeypatch.setattr("dpg_cli.replay.LOADED_AT_ONCE", 5)  # neither a divisor nor a multiple of anything
    replay, loaded = (make(23, seeds=(0, 1), num_envs=num_envs) for _ in range(2))
    environments = Episodes(2, num_envs)
    for _ in range(steps):
        replay.add(*environments.step())
        replay.sample(3)
    rows = np.stack([replay.rows(member, 0) for member in range(2)])
    assert rows.dtype.names == ("obs", "action", "reward", "next_obs", "terminated", "truncated", "env")
    loaded.load_state([replay.state(member) for member in range(2)], [[own] for own in rows])
    for _ in range(20):
        transition = environments.step()
        replay.add(*transition)
        loaded.add(*transition)
        assert equal(replay.sample(40), loaded.sample(40))
        assert replay.rows(1, 0).tobytes() == loaded.rows(1, 0).tobytes()


@pytest.mark.parametrize("other", [-0.0, np.nextafter(np.float32(0), np.float32(1)), 1.0])
def test_only_the_same_bits_are_shared(make, other):
    """Without an end too: a run that is resumed may begin a new episode."""
    replay = make(4)
    zero, action, scalar = np.zeros((1, 1, OBS), np.float32), np.zeros((1, 1, ACTION)), np.zeros((1, 1))
    replay.add(zero, action, scalar, np.full_like(zero, other), scalar, scalar)
    replay.add(zero, action, scalar, zero, scalar, scalar)
    assert replay.rows(0, 0)["next_obs"][0].tobytes() == np.full(OBS, other, np.float32).tobytes()


def taken(replay):
    """Bytes of all tensors and arrays, except a few numbers."""
    parts = [replay, *(part for part in vars(replay).values() if isinstance(part, NextObservations))]
    values = [
        value for part in parts for name, value in vars(part).items() if name not in ("_members", "_powers", "_sampled")
    ]
    arrays = [value for value in values if isinstance(value, torch.Tensor | np.ndarray)]
    return sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_memory_is_what_the_rows_take(seeds, dtype):
    assert Replay.memory(11, OBS, ACTION, len(seeds), dtype, share_next_obs=False) == taken(new(11, seeds, dtype=dtype))
    shared = new(11, seeds, dtype=dtype, share_next_obs=True)
    newest = len(seeds) * OBS * dtype.itemsize
    assert Replay.memory(11, OBS, ACTION, len(seeds), dtype, share_next_obs=True) + newest == taken(shared)


def test_a_transition_of_halfcheetah_takes_168_bytes():
    assert taken(new(1000, obs_dim=17, action_dim=6)) == 168_000


@pytest.mark.parametrize(("shortest", "longest", "limit"), [(20, 1000, 1600), (20, 20, 1.6 * 2**30 / 1e6)])
def test_a_million_transitions_of_humanoid_take_1600_megabytes_when_shared(shortest, longest, limit):
    sizes = (376, 17)
    replay = new(2000, obs_dim=sizes[0], action_dim=sizes[1], num_envs=8, share_next_obs=True)
    environments = Episodes(1, 8, shortest, longest, sizes)
    for _ in range(2 * 2000 // 8):  # places of overwritten transitions are used again
        replay.add(*environments.step())
    assert taken(replay) / replay.capacity <= limit
