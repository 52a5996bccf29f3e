"""Data sets: the order and marks of their transitions, and what is sampled from them."""

import numpy as np
import pytest
import torch

from dpg_cli.dataset import Assembly, InvalidDataError, places_by_environment
from dpg_cli.priorities import Priorities
from dpg_cli.replay import CUT, TERMINATED, TRUNCATED, DatasetReplay, DeviceDatasetReplay


def put(assembly, rewards, *, end="", cut=(), whole=True):
    """Add an environment's transitions with these rewards; `end` has t or T where an episode ended."""
    n, first = len(rewards), assembly.filled
    assembly.begins(first, whole=whole)
    obs = np.arange(first, first + n, dtype=float)[:, None]
    flags = np.array([list(end.ljust(n))])[0] if n else np.empty(0, str)
    reward = np.array(rewards, float)
    action = np.zeros((n, 1))
    assembly.put(np.arange(first, first + n), obs, action, reward, obs + 0.5, flags == "t", flags == "T")
    for place in cut:
        assembly.cut(first + place)


@pytest.fixture
def dataset():
    """Two environments: an episode that ends by termination, a rest, a torn start with a time limit, a cut, a rest."""
    assembly = Assembly(10, 1, 1, torch.float64)
    put(assembly, [1, 2, 4, 8], end="  t ")
    put(assembly, [10, 20, 40, 80, 160, 320], end=" T    ", cut=[3], whole=False)
    return assembly.finished(["here"], ["A-v0", "A-v0"])


def replay(dataset, members=1, kind=DatasetReplay, **windows):
    streams = [torch.Generator().manual_seed(seed) for seed in range(members)]
    return kind(dataset.rows, 1, 1, streams, **({"discount": 0.5} | windows))


def test_transitions_that_took_turns_are_put_side_by_side():
    # Numbers 5 to 12 of three environments; the first of environment 2 is number 5.
    offset, counts = places_by_environment(5, 8, 3)
    assert counts.tolist() == [3, 2, 3]
    places = {number: int(offset[number % 3] + number // 3) for number in range(5, 13)}
    assert sorted(places.values()) == list(range(8))
    assert sorted(places, key=places.get) == [6, 9, 12, 7, 10, 5, 8, 11]
    assert places_by_environment(0, 2, 5)[1].tolist() == [1, 1, 0, 0, 0]


def test_joints_and_the_newest_transitions_are_cuts(dataset):
    ends = dataset.rows[:, 3].tolist()
    assert ends == [0, 0, TERMINATED, CUT, 0, TRUNCATED, 0, CUT, 0, CUT]


def test_only_complete_episodes_have_a_return(dataset):
    # The first of the second environment began before its first stored transition; what a cut ends is no episode.
    assert dataset.returns.tolist() == [7]
    assert "10 transitions, 1 complete episode with return 7.0 ± 0.0, from here" in dataset.describe()
    assert dataset.as_json()["env_ids"] == ["A-v0"]


def test_statistics_are_those_of_the_observations(dataset):
    assert dataset.mean == pytest.approx([4.5])
    assert dataset.deviation == pytest.approx([np.arange(10).std()])


@pytest.mark.parametrize("kind", [DatasetReplay, DeviceDatasetReplay])
def test_windows_end_where_nothing_follows(dataset, kind):
    own = replay(dataset, kind=kind, n_steps=3)
    batch = own._batch(torch.arange(10)[None], 0)
    expected = [1 + 1 + 1, 2 + 2, 4, 8, 10 + 10, 20, 40 + 40, 80, 160 + 160, 320]
    assert batch.reward[0].tolist() == expected
    assert batch.next_obs[0, :, 0].tolist() == [2.5, 2.5, 2.5, 3.5, 5.5, 5.5, 7.5, 7.5, 9.5, 9.5]
    assert batch.terminated[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert batch.discount[0].tolist() == [0.125, 0.25, 0.5, 0.5, 0.25, 0.5, 0.25, 0.5, 0.25, 0.5]
    limited = replay(dataset, kind=kind, truncation_bootstraps=False)
    assert limited._batch(torch.arange(10)[None], 0).terminated[0].tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 0, 0]


def test_subtrajectories_stay_inside(dataset):
    own = replay(dataset)
    found = own.sample_subtrajectories(50, 4)
    last = found.inside.sum(dim=-1) - 1
    places = found.obs[0, :, 0, 0].long() + last[0]
    full = last[0] == 3
    assert not full.any()
    assert (dataset.rows[places, 3] > 0).all()


@pytest.mark.parametrize("kind", [DatasetReplay, DeviceDatasetReplay])
def test_members_share_the_rows_and_draw_from_their_own_streams(dataset, kind):
    together = replay(dataset, members=3, kind=kind)
    assert together._rows.data_ptr() == dataset.rows.data_ptr()
    assert together._rows.stride(0) == 0
    numbers = torch.randint(2**32 - 1, (3, 8), generator=torch.Generator().manual_seed(1))
    for member in range(3):
        alone = replay(dataset, kind=kind)
        alone.generators = [torch.Generator().manual_seed(member)]
        if kind is DeviceDatasetReplay:
            own, beside = alone.batch(numbers[member : member + 1]), together.batch(numbers)
        else:
            own, beside = alone.sample(8), None
            if member == 0:
                sampled = together.sample(8)
            beside = sampled
        assert torch.equal(own.obs[0], beside.obs[member])


def test_priorities_of_each_member_are_kept_in_its_state(dataset):
    own, other = (replay(dataset, 2, priorities=Priorities(2, 10, 0.4)) for _ in range(2))
    own.sample(4)
    own.learned(torch.tensor([[[5.0, 0, 0, 0], [0, 0, 0, 7.0]]]))
    other.load_state([own.state(member) for member in range(2)], ())
    assert torch.equal(own.sample(6).obs, other.sample(6).obs)
    assert [own.state(0)[key] for key in ("added", "size", "cuts")] == [0, 0, []]
    assert len(own.rows(0, 0)) == 0


def test_what_no_run_stores_is_rejected():
    for column, value in (("obs", np.nan), ("reward", np.inf), ("action", -1.01)):
        parts = {"obs": np.zeros((1, 1)), "action": np.zeros((1, 1)), "reward": np.zeros(1)}
        parts[column] = np.full_like(parts[column], value)
        with pytest.raises(InvalidDataError):
            Assembly(1, 1, 1, torch.float32).put(
                np.arange(1),
                **parts,
                next_obs=np.zeros((1, 1)),
                terminated=np.zeros(1, bool),
                truncated=np.ones(1, bool),
            )
