"""The replay buffer: what is stored comes back, uniformly, to each member from its own stream."""

import numpy as np
import pytest
import torch

from dpg_cli.replay import Replay
from dpg_cli.seeding import Purpose, generator

OBS, ACTION = 3, 2


def make(capacity, seeds=(0,), **options):
    return Replay(capacity, OBS, ACTION, [generator(seed, Purpose.REPLAY) for seed in seeds], **options)


def step(numbers, members=1):
    """One step of E environments; every value of a transition tells its number and its member."""
    number = np.tile(np.asarray(numbers, np.float64), (members, 1)) + 1000 * np.arange(members)[:, None]
    return (
        number[..., None] + np.linspace(0, 0.5, OBS),
        np.stack([np.sin(number), np.cos(number)], axis=-1),
        -number,
        number[..., None] + 1 + np.linspace(0, 0.5, OBS),
        np.round(number).astype(int) % 3 == 0,
    )


def fill(replay, count, num_envs=1, members=1):
    for first in range(0, count, num_envs):
        replay.add(*step(np.arange(first, first + num_envs), members))


def stored(replay, member=0, draws=4000):
    """The numbers of a member's transitions that sampling finds."""
    return {int(-reward) for reward in replay.sample(draws).reward[member].tolist()}


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_batch_holds_the_transitions_that_were_stored(num_envs):
    replay = make(30, seeds=(0, 1), dtype=torch.float64)
    fill(replay, 30, num_envs, members=2)
    batch = replay.sample(200)
    assert batch.obs.shape == batch.next_obs.shape == (2, 200, OBS)
    assert batch.action.shape == (2, 200, ACTION)
    assert batch.reward.shape == batch.terminated.shape == (2, 200)
    for member in range(2):
        numbers = -batch.reward[member].numpy()
        assert set(numbers) <= set(range(1000 * member, 1000 * member + 30))
        expected = step(numbers)
        for got, want in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(got[member].numpy(), want[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_have_the_precision_asked_for(dtype):
    replay = make(4, dtype=dtype)
    value = 1 / 3
    replay.add(
        np.full((1, 1, OBS), value),
        np.full((1, 1, ACTION), value),
        np.full((1, 1), value),
        np.full((1, 1, OBS), value),
        np.zeros((1, 1), bool),
    )
    for tensor in replay.sample(2)[:-1]:
        assert tensor.dtype is dtype
        assert (tensor == torch.tensor(value, dtype=torch.float64).to(dtype)).all()


def test_only_stored_rows_are_sampled():
    replay = make(1000)
    for count in range(1, 6):
        fill(replay, 1)
        assert replay.size == count
    replay = make(1000)
    fill(replay, 7)
    assert stored(replay) == set(range(7))


@pytest.mark.parametrize(("capacity", "count"), [(10, 10), (10, 11), (10, 25), (7, 700), (1, 5)])
def test_the_oldest_make_room(capacity, count):
    replay = make(capacity)
    fill(replay, count)
    assert replay.size == capacity
    assert stored(replay) == set(range(count - capacity, count))


@pytest.mark.parametrize(("capacity", "num_envs"), [(10, 3), (7, 4), (5, 5), (9, 2)])
def test_the_oldest_make_room_when_environments_do_not_divide_the_capacity(capacity, num_envs):
    replay = make(capacity, seeds=(0, 1), dtype=torch.float64)
    for first in range(0, 5 * capacity, num_envs):
        replay.add(*step(np.arange(first, first + num_envs), 2))
        made = first + num_envs
        oldest = max(0, made - capacity)
        assert replay.size == made - oldest
        for member in range(2):
            assert stored(replay, member, 300) == set(range(1000 * member + oldest, 1000 * member + made))
    batch = replay.sample(50)
    np.testing.assert_array_equal(batch.next_obs[0].numpy(), batch.obs[0].numpy() + 1)  # no row is torn


def test_sampling_is_uniform():
    replay = make(20)
    fill(replay, 33)
    draws = 40_000
    counts = np.unique(replay.sample(draws).reward.numpy(), return_counts=True)[1]
    assert len(counts) == 20
    chi_squared = ((counts - draws / 20) ** 2 / (draws / 20)).sum()
    assert chi_squared < 36.2  # 19 degrees of freedom, once in a hundred


def test_a_seed_draws_the_same_beside_others_and_alone():
    together, alone = make(50, seeds=(3, 8)), make(50, seeds=(8,))
    fill(together, 40, members=2)
    fill(alone, 40)
    for _ in range(5):
        both, own = together.sample(16), alone.sample(16)
        np.testing.assert_array_equal(both.reward[1].numpy() + 1000, own.reward[0].numpy())
        assert not torch.equal(both.reward[0], both.reward[1] + 1000)


def test_same_seed_same_batches_and_another_seed_others():
    first, again, other = make(50, seeds=(1,)), make(50, seeds=(1,)), make(50, seeds=(2,))
    for replay in (first, again, other):
        fill(replay, 50)
    a, b, c = (replay.sample(32).reward for replay in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_batch_is_no_view_of_the_buffer():
    replay = make(4)
    fill(replay, 4)
    batch = replay.sample(8)
    before = batch.obs.clone()
    fill(replay, 4)
    replay.add(*step([99]))
    assert torch.equal(batch.obs, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_memory_is_what_the_rows_take(seeds, dtype):
    replay = make(11, seeds, dtype=dtype)
    tensors = [value for value in vars(replay).values() if isinstance(value, torch.Tensor)]
    taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert Replay.memory(11, OBS, ACTION, len(seeds), dtype) == taken
