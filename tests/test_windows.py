"""Windows of n steps, against a plain search through all transitions that were ever stored."""

import itertools

import numpy as np
import pytest
import torch

from dpg_cli.priorities import Priorities
from dpg_cli.replay import DeviceReplay, Replay, Step

DISCOUNT = 0.9


def streams(members):
    return [torch.Generator().manual_seed(m) for m in range(members)]


def steps(count, members=1, envs=1, seed=0, ends=0.2):
    """Random steps in which an observation names its transition, and continues the one before."""
    g = np.random.default_rng(seed)
    shape = (members, envs)
    obs = g.normal(size=(*shape, 1))
    for _ in range(count):
        next_obs = g.normal(size=(*shape, 1))
        terminated, truncated = g.random(shape) < ends / 2, g.random(shape) < ends / 2
        yield Step(obs, g.uniform(-1, 1, (*shape, 1)), g.normal(size=shape), next_obs, terminated, truncated)
        ended = (terminated | truncated)[..., None]
        obs = np.where(ended, g.normal(size=next_obs.shape), next_obs)


def plain_window(history, cuts, number, envs, n, bootstraps):
    """Reward, discount, next observation and whether it is terminal, of the window that starts at a transition."""
    total, discount = 0.0, 1.0
    for k in range(n):
        _, _, reward, next_obs, terminated, truncated = history[number + k * envs]
        total += discount * reward
        discount *= DISCOUNT
        ended = terminated or truncated or number + k * envs in cuts
        if ended or number + (k + 1) * envs >= len(history):
            break
    return total, discount, next_obs, terminated or (truncated and not bootstraps)


def replay_of(kind, capacity, members, envs, n, bootstraps=True, share=False):
    arguments = (capacity, 1, 1, streams(members), "cpu", torch.float64, envs)
    more = {"n_steps": n, "discount": DISCOUNT, "truncation_bootstraps": bootstraps}
    return kind(*arguments, **more) if kind is DeviceReplay else kind(*arguments, share_next_obs=share, **more)


def store(replay, step):
    if isinstance(replay, DeviceReplay):
        replay.insert(torch.from_numpy(np.concatenate(step.in_a_row(), axis=-1)))
        replay.inserted()
    else:
        replay.add(*step)


def all_windows(replay):
    """The window of every stored transition, by the transition's observation."""
    places = torch.arange(replay.size).expand(len(replay.generators), -1)
    batch = replay._batch(places, replay.added % replay.capacity)
    discount = torch.as_tensor(batch.discount, dtype=torch.float64).expand(batch.reward.shape)
    return [
        {
            float(o): (float(r), float(d), float(x), bool(t))
            for o, r, d, x, t in zip(
                batch.obs[m, :, 0],
                batch.reward[m],
                discount[m],
                batch.next_obs[m, :, 0],
                batch.terminated[m],
                strict=True,
            )
        }
        for m in range(len(replay.generators))
    ]


def histories(stored, members):
    """The transitions of each member in the order in which they were stored."""
    own = [[] for _ in range(members)]
    for step in stored:
        for m in range(members):
            for e in range(step.reward.shape[1]):
                parts = (step.obs, step.action, step.reward, step.next_obs, step.terminated, step.truncated)
                own[m].append(tuple(np.ravel(part[m, e])[0] for part in parts))
    return own


@pytest.mark.parametrize("bootstraps", [True, False])
@pytest.mark.parametrize(("envs", "capacity"), [(1, 7), (1, 100), (3, 11), (3, 12), (5, 100)])
@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", ["plain", "shared", "device"])
def test_no_window_leaves_its_episode_or_the_ring(kind, n, envs, capacity, bootstraps):
    members = 2
    replay = replay_of(
        DeviceReplay if kind == "device" else Replay, capacity, members, envs, n, bootstraps, share=kind == "shared"
    )
    stored = []
    for count, step in enumerate(steps(40, members, envs, ends=0.3), start=1):
        store(replay, step)
        stored.append(step)
        if count in (1, 2, 3, 4, 9, 23, 40):
            for history, windows in zip(histories(stored, members), all_windows(replay), strict=True):
                oldest = len(history) - replay.size
                assert len(windows) == replay.size
                for number in range(oldest, len(history)):
                    expected = plain_window(history, (), number, envs, n, bootstraps)
                    assert windows[history[number][0]] == pytest.approx(expected, rel=1e-14), number


@pytest.mark.parametrize("kind", [Replay, DeviceReplay])
@pytest.mark.parametrize("envs", [1, 3])
def test_no_window_reaches_into_the_new_episode_of_a_resumed_run(kind, envs):
    members, n = 2, 4
    replay = replay_of(kind, 50, members, envs, n)
    stored = []
    anew = np.arange(members * envs).reshape(members, envs) % 2 == 0
    for count, step in enumerate(steps(10, members, envs, ends=0.1), start=1):
        store(replay, step)
        stored.append(step)
        if count == 6:
            replay.cut(anew)
    every = histories(stored, members)
    for member, (history, windows) in enumerate(zip(every, all_windows(replay), strict=True)):
        cuts = {5 * envs + e for e in range(envs) if anew[member, e]}
        for number in range(len(history)):
            expected = plain_window(history, cuts, number, envs, n, True)
            assert windows[history[number][0]] == pytest.approx(expected, rel=1e-14)
    rows = [replay.rows(m, 0) for m in range(members)]
    for history, own in zip(every, rows, strict=True):  # the environment reported no end there
        assert own["truncated"].tolist() == [bool(transition[5]) for transition in history]
    again = replay_of(kind, 50, members, envs, n)
    again.load_state([replay.state(m) for m in range(members)], [[own] for own in rows])
    assert all_windows(again) == all_windows(replay)
    assert [again.state(m)["cuts"] for m in range(members)] == [replay.state(m)["cuts"] for m in range(members)]


@pytest.mark.parametrize(("envs", "capacity"), [(1, 7), (3, 11), (3, 100)])
@pytest.mark.parametrize("share", [False, True])
def test_no_subtrajectory_leaves_its_episode_or_the_ring(share, envs, capacity):
    members, length = 2, 4
    replay = replay_of(Replay, capacity, members, envs, 1, share=share)
    stored = []
    for count, step in enumerate(steps(30, members, envs, ends=0.3), start=1):
        replay.add(*step)
        stored.append(step)
        if count == 20:
            replay.cut(np.ones((members, envs), bool))
    found = replay.sample_subtrajectories(300, length)
    assert found.obs.shape == (members, 300, length, 1)
    whole = set()
    for m, history in enumerate(histories(stored, members)):
        numbers = {transition[0]: number for number, transition in enumerate(history)}
        cuts = {19 * envs + e for e in range(envs)}
        for b in range(300):
            first = numbers[float(found.obs[m, b, 0, 0])]
            number = first
            for k in range(length):
                inside = bool(found.inside[m, b, k])
                expected = history[number if inside else first]
                parts = (found.obs, found.action, found.reward, found.next_obs, found.terminated)
                own = [float(part[m, b, k].flatten()[0]) for part in parts]
                assert own == pytest.approx([float(part) for part in expected[:5]], rel=1e-14)
                ended = history[number][4] or history[number][5] or number in cuts or number + envs >= len(history)
                if k + 1 < length:
                    assert bool(found.inside[m, b, k + 1]) == (inside and not ended)
                number += 0 if ended else envs
            whole.add(found.inside[m, b].all().item())
    assert whole == {True, False}


def test_a_window_by_hand():
    """Three steps of reward 1, 2, 4 at discount 0.9, of which the third is truncated."""
    replay = replay_of(Replay, 10, 1, 1, 5)
    for k, reward in enumerate([1.0, 2.0, 4.0]):
        one = np.full((1, 1, 1), float(k))
        scalar = np.full((1, 1), reward)
        replay.add(one, one, scalar, one + 1, np.zeros((1, 1), bool), np.full((1, 1), k == 2))
    replay.add(one + 9, one, scalar, one, np.zeros((1, 1), bool), np.zeros((1, 1), bool))
    window = all_windows(replay)[0][0.0]
    assert window == pytest.approx((1 + 0.9 * 2 + 0.81 * 4, 0.9**3, 3.0, False), rel=1e-15)


def test_cuts_of_overwritten_transitions_are_forgotten():
    replay = replay_of(Replay, 4, 1, 1, 3)
    for count, step in enumerate(steps(9, ends=0.0), start=1):
        replay.add(*step)
        if count == 2:
            replay.cut(np.ones((1, 1), bool))
            assert replay.state(0)["cuts"] == [1]
    assert replay.state(0)["cuts"] == []


@pytest.mark.parametrize("cuts", [[-1], [4], ["1"], [1.0], [True], 3, {"a": 1}])
def test_cuts_that_are_not_at_stored_transitions_are_rejected(cuts):
    replay = replay_of(Replay, 10, 1, 1, 3)
    for step in steps(4):
        replay.add(*step)
    state = replay.state(0) | {"cuts": cuts}
    with pytest.raises((ValueError, TypeError)):
        replay_of(Replay, 10, 1, 1, 3).load_state([state], [[replay.rows(0, 0)]])


def test_transitions_of_other_environments_are_rejected():
    replay = replay_of(Replay, 12, 1, 2, 3)
    for step in steps(4, envs=2):
        replay.add(*step)
    rows = replay.rows(0, 0)
    assert rows["env"].tolist() == [0, 1] * 4
    assert rows.dtype.names == ("obs", "action", "reward", "next_obs", "terminated", "truncated", "env")
    assert rows.dtype["env"] == np.uint16
    with pytest.raises(ValueError, match="take turns among 1"):
        replay_of(Replay, 12, 1, 1, 3).load_state([replay.state(0)], [[rows]])


# --- priorities ---


def lap(capacity, members=1, alpha=0.4):
    return Priorities(members, capacity, alpha)


def sums_are_exact(tree):
    for level, above in itertools.pairwise(tree._levels):
        sums = level.view(len(level), -1, 128).sum(dim=-1)
        assert torch.equal(above[:, : sums.shape[1]], sums)


@pytest.mark.parametrize("capacity", [1, 5, 128, 129, 20_000, 2_100_000])
def test_the_sums_stay_those_of_the_priorities(capacity):
    tree, g = lap(capacity, 2), torch.Generator().manual_seed(0)
    filled = min(capacity, 300)
    for place in range(filled):
        tree.add(torch.tensor([place]))
    for _ in range(30):
        shares = torch.rand(2, 64, generator=g, dtype=torch.float64)
        places = tree.find(shares)
        assert places.max() < filled
        tree.update(places, torch.randn(3, 2, 64, generator=g, dtype=torch.float64) * 50)
    sums_are_exact(tree)
    total = tree._levels[-1].sum(dim=-1)
    assert torch.allclose(total, tree._levels[0].sum(dim=-1), rtol=1e-14)


def test_each_transition_is_found_in_proportion_to_its_priority():
    """At every share, as a search through the running sums of all priorities finds it."""
    tree, g = lap(40_000), torch.Generator().manual_seed(1)
    filled = 30_000
    tree.add(torch.arange(filled))
    for start in range(0, filled, 1000):
        tree.update(torch.arange(start, start + 1000)[None], torch.randn(1, 1, 1000, generator=g).exp() * 20)
    priorities = tree._levels[0][0, :filled].numpy()
    assert priorities.min() >= 1
    shares = np.concatenate([np.linspace(0, 1, 5000, endpoint=False), [np.nextafter(1, 0)]])
    found = tree.find(torch.from_numpy(shares)[None])[0].numpy()
    running = np.cumsum(priorities.astype(np.longdouble))
    expected = np.searchsorted(running, shares * running[-1], side="right")
    assert (found == expected).mean() > 0.999  # rounding decides at the border of two transitions
    assert np.abs(found - expected).max() <= 1
    assert found[-1] == filled - 1


def test_priorities_by_hand():
    """max(|δ|, 1)^0.4 of the larger of two errors; a new transition gets the largest so far."""
    tree = lap(10)
    tree.add(torch.tensor([0]))
    assert tree._levels[0][0, 0] == 1.0
    tree.add(torch.tensor([1, 2]))
    errors = torch.tensor([[[0.5, -32.0]], [[-0.9, 3.0]]], dtype=torch.float64)
    tree.update(torch.tensor([[0, 2]]), errors)
    tree.add(torch.tensor([3]))
    assert tree._levels[0][0, :5].tolist() == pytest.approx([1.0, 1.0, 32**0.4, 32**0.4, 0.0], rel=1e-15)
    tree.update(torch.tensor([[2, 3]]), torch.zeros(1, 1, 2, dtype=torch.float64))
    tree.add(torch.tensor([4]))  # the largest so far is not forgotten
    assert tree._levels[0][0, :5].tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0, 32**0.4], rel=1e-15)


def test_a_transition_that_is_twice_in_a_batch_gets_the_larger_priority():
    for order in ([0, 1], [1, 0]):
        tree = lap(10)
        tree.add(torch.arange(3))
        tree.update(torch.tensor([[1, 1]]), torch.tensor([[[2.0, 7.0]]], dtype=torch.float64)[..., order])
        assert tree._levels[0][0, 1].item() == pytest.approx(7**0.4, rel=1e-15)


def test_members_are_apart():
    both, g = lap(500, 2), torch.Generator().manual_seed(0)
    alone = [lap(500), lap(500)]
    for place in range(100):
        for tree in (both, *alone):
            tree.add(torch.tensor([place]))
    for _ in range(20):
        shares = torch.rand(2, 16, generator=g, dtype=torch.float64)
        errors = torch.randn(2, 2, 16, generator=g, dtype=torch.float64) * 30
        places = both.find(shares)
        both.update(places, errors)
        for m, tree in enumerate(alone):
            assert torch.equal(tree.find(shares[m : m + 1])[0], places[m])
            tree.update(places[m : m + 1], errors[:, m : m + 1])
    for m, tree in enumerate(alone):
        assert torch.equal(tree._levels[0][0], both._levels[0][m])


def test_priorities_resume_exactly():
    tree, g = lap(1000, 2), torch.Generator().manual_seed(0)
    tree.add(torch.arange(700))
    for _ in range(5):
        tree.update(tree.find(torch.rand(2, 32, generator=g, dtype=torch.float64)), torch.randn(1, 2, 32) * 9)
    again = lap(1000, 2)
    places = torch.arange(700)
    again.load_state([tree.state(m, places) for m in range(2)], places)
    for own, other in zip(tree.static_tensors(), again.static_tensors(), strict=True):
        assert torch.equal(own, other)


def test_priorities_resume_exactly_in_a_larger_or_smaller_ring():
    tree = lap(10)
    tree.add(torch.arange(10))
    tree.update(torch.arange(10)[None], torch.arange(10, dtype=torch.float64)[None, None] * 7)
    oldest_first = (torch.arange(10) + 3) % 10
    state = tree.state(0, oldest_first)
    larger = lap(20)
    larger.load_state([state], torch.arange(5, 15))
    assert torch.equal(larger._levels[0][0, 5:15], tree._levels[0][0, oldest_first])
    smaller = lap(4)
    smaller.load_state([state], torch.arange(4))
    assert torch.equal(smaller._levels[0][0, :4], tree._levels[0][0, oldest_first[6:]])
    for own in (larger, smaller):
        sums_are_exact(own)


@pytest.mark.parametrize("error", [float("inf"), float("nan"), 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_diverges_is_found_at_a_stored_transition_until_the_run_is_stopped(error, dtype):
    tree = lap(1000, alpha=1.0)
    tree.add(torch.arange(10))
    tree.update(torch.arange(10)[None], torch.full((1, 1, 10), error, dtype=dtype))
    tree.add(torch.arange(10, 20))
    found = tree.find(torch.linspace(0, 1, 50, dtype=torch.float64)[None, :-1])
    assert (found < 20).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("priorities", bad) for bad in (torch.nan, torch.inf, 0.0, -1.0, 99.0)),
        *(("largest", bad) for bad in (torch.nan, torch.inf, 0.5, 1e300)),
        *(("priorities", bad) for bad in (torch.ones(9), torch.ones(9, dtype=torch.float64), None, [1.0] * 10)),
        *(("priorities", bad) for bad in (torch.ones(10), torch.ones(10, 1, dtype=torch.float64), 1.0)),
        *(("largest", bad) for bad in (torch.ones(2, dtype=torch.float64), torch.ones(1), 1.0)),
    ],
)
def test_damaged_priorities_are_rejected(name, value):
    tree = lap(20)
    tree.add(torch.arange(10))
    state = {key: tensor.clone() for key, tensor in tree.state(0, torch.arange(10)).items()}
    if name == "priorities" and type(value) is float and value != 1.0:
        state["priorities"][3] = value
    elif name == "largest" and type(value) is float and value != 1.0:
        state["largest"].fill_(value)
    else:
        state[name] = value
    with pytest.raises(ValueError, match="priorit"):
        lap(20).load_state([state], torch.arange(10))
