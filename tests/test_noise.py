"""Exploration noise: moments, decay, resets, and a stream of its own for every member and environment."""

import copy
import math
from dataclasses import fields

import numpy as np
import pytest
from omegaconf import OmegaConf

from dpg_cli.config import choices, config_dir
from dpg_cli.noise import BLOCK, DEFAULT_SERIES, LONGEST_SERIES, NOISES
from dpg_cli.seeding import Purpose, generator
from dpg_cli.storage.shapes import check_form

SERIES = ("colored", "pink")
every_noise = pytest.mark.parametrize("name", NOISES)
in_series = pytest.mark.parametrize("name", SERIES)
decaying = pytest.mark.parametrize(
    "name", [n for n, c in NOISES.items() if "decay_steps" in {f.name for f in fields(c)}]
)


def streams(seeds=(0,), num_envs=1):
    return [[generator(seed, Purpose.NOISE, e) for e in range(num_envs)] for seed in seeds]


def make(name, generators=None, action_dim=2, episode_steps=12, **changes):
    values = OmegaConf.to_container(OmegaConf.load(config_dir() / "noise" / f"{name}.yaml"))
    assert values.pop("name") == name
    given = {"action_dim": action_dim, "generators": generators or streams(), "episode_steps": episode_steps}
    return NOISES[name](**(values | changes), **given)


def samples(noise, steps):
    return np.array([noise.sample(step) for step in range(steps)])


def test_every_noise_has_its_file_and_every_file_its_noise():
    assert sorted(NOISES) == choices("noise")


@every_noise
def test_the_file_sets_exactly_the_fields(name):
    values = OmegaConf.load(config_dir() / "noise" / f"{name}.yaml")
    assert set(values) - {"name"} == {field.name for field in fields(NOISES[name])}


@every_noise
def test_one_draw_for_each_member_environment_and_component(name):
    noise = make(name, streams((0, 1, 2), num_envs=4), action_dim=5)
    for step in range(3):
        sample = noise.sample(step)
        assert sample.shape == (3, 4, 5)
        assert np.isfinite(sample).all()
        assert noise.scale_at(step) >= 0


@every_noise
def test_every_member_and_environment_has_its_own_stream(name):
    noise = make(name, streams((0, 1), num_envs=2))
    drawn = samples(noise, 3)
    cells = {drawn[:, s, e].tobytes() for s in range(2) for e in range(2)}
    assert len(cells) == (4 if noise.scale_at(0) > 0 else 1)


@every_noise
def test_a_seed_sees_the_same_noise_beside_others_and_alone(name):
    together, alone = make(name, streams((3, 8), num_envs=2)), make(name, streams((8,), num_envs=2))
    fewer = make(name, streams((8,), num_envs=1))
    for step in range(20):
        both, own = together.sample(step), alone.sample(step)
        np.testing.assert_array_equal(both[1:], own)
        np.testing.assert_array_equal(own[:, :1], fewer.sample(step))
        ended = np.array([[step % 3 == 0, step % 5 == 0], [step % 4 == 0, step % 7 == 0]])
        together.reset(ended)
        alone.reset(ended[1:])
        fewer.reset(ended[1:, :1])


@every_noise
@pytest.mark.parametrize("used", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_a_state_is_that_of_the_numbers_used_not_of_those_drawn_ahead(name, used):
    noise, other = make(name, streams((0, 1), 2)), make(name, streams((2, 3), 2))
    samples(noise, used)
    samples(other, 5)  # so that it has drawn ahead, too
    states = copy.deepcopy([noise.state(0), noise.state(1)])
    going_on = samples(noise, 2 * BLOCK)
    other.load_state(states)
    np.testing.assert_array_equal(samples(other, 2 * BLOCK), going_on)
    if name == "gaussian":
        g = generator(1, Purpose.NOISE, 1)
        g.standard_normal((used, 2))
        assert states[1]["random"][1] == g.bit_generator.state


@every_noise
def test_a_reset_where_nothing_ended_changes_nothing(name):
    left, right = make(name, streams((0, 1), 2)), make(name, streams((0, 1), 2))
    for step in range(5):
        np.testing.assert_array_equal(left.sample(step), right.sample(step))
        left.reset(np.zeros((2, 2), bool))


@every_noise
def test_a_reset_begins_as_a_new_noise_and_leaves_the_others_alone(name):
    generators = streams((0, 1), 2)
    noise = make(name, generators)
    samples(noise, 10)
    noise.state(0)  # the generators are now where ten draws have brought them
    new, going_on = make(name, copy.deepcopy(generators)), copy.deepcopy(noise)
    ended = np.array([[False, True], [False, False]])
    noise.reset(ended)
    for step in range(10, 15):
        sample = noise.sample(step)
        np.testing.assert_array_equal(sample[ended], new.sample(step)[ended])
        np.testing.assert_array_equal(sample[~ended], going_on.sample(step)[~ended])


@decaying
def test_the_scale_decays_linearly_and_then_stays(name):
    noise = make(name, scale=0.4, final_scale=0.1, decay_steps=100)
    assert [noise.scale_at(step) for step in (0, 50, 100, 101, 10**9)] == pytest.approx([0.4, 0.25, 0.1, 0.1, 0.1])


@decaying
def test_without_decay_the_scale_is_constant(name):
    noise = make(name, scale=0.4, final_scale=0.1, decay_steps=None)
    assert {noise.scale_at(step) for step in (0, 1, 10**9)} == {0.4}


@decaying
def test_samples_follow_the_scale(name):
    changes = {"final_scale": 0.1, "decay_steps": 10}
    plain, decayed = make(name, scale=1.0), make(name, scale=0.4, **changes)
    for step in range(20):
        np.testing.assert_allclose(decayed.sample(step), decayed.scale_at(step) * plain.sample(step), rtol=1e-12)


@decaying
def test_a_noise_may_decay_to_nothing(name):
    noise = make(name, scale=0.4, final_scale=0.0, decay_steps=10)
    assert samples(noise, 10).all()
    assert not noise.sample(10).any()


def test_gaussian_moments():
    drawn = samples(make("gaussian", scale=0.3, action_dim=4), 5000)[:, 0, 0]
    count = drawn.size
    assert drawn.mean() == pytest.approx(0, abs=4 * 0.3 / np.sqrt(count))
    assert drawn.std() == pytest.approx(0.3, rel=4 / np.sqrt(2 * count))
    kurtosis = ((drawn / drawn.std()) ** 4).mean()
    assert kurtosis == pytest.approx(3, abs=4 * np.sqrt(24 / count))
    for correlation in (np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1], np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]):
        assert correlation == pytest.approx(0, abs=4 / np.sqrt(len(drawn)))


@pytest.mark.parametrize(("theta", "dt"), [(0.15, 1.0), (0.5, 0.5)])
def test_ou_moments(theta, dt):
    """x ← (1 - θ dt) x + √dt N(0, 1) is stationary at variance dt / (1 - (1 - θ dt)²)."""
    memory = 1 - theta * dt
    noise = make("ou", scale=0.2, theta=theta, dt=dt, action_dim=50)
    drawn = samples(noise, 2000)[200:, 0, 0]
    assert drawn.var() == pytest.approx(0.2**2 * dt / (1 - memory**2), rel=0.05)
    assert drawn.mean() == pytest.approx(0, abs=0.02)
    centred = drawn - drawn.mean()
    assert (centred[1:] * centred[:-1]).mean() / centred.var() == pytest.approx(memory, abs=0.01)


def test_ou_by_hand():
    noise, g = make("ou", scale=0.2, theta=0.15, dt=0.25), generator(0, Purpose.NOISE, 0)
    x = np.zeros(2)
    for step in range(5):
        x = x - 0.15 * x * 0.25 + 0.5 * g.standard_normal(2)
        np.testing.assert_allclose(noise.sample(step)[0, 0], 0.2 * x, rtol=1e-12)


def test_none_is_nothing():
    noise = make("none", streams((0, 1), 3), action_dim=4)
    assert noise.scale_at(0) == 0
    np.testing.assert_array_equal(noise.sample(0), np.zeros((2, 3, 4)))


# --- noise in series ---


def normals(steps, action_dim=2, seed=0, env=0, series=1):
    """What some series are made of, `(series, 2, action_dim, frequencies)`, and the generator's state after it."""
    g = generator(seed, Purpose.NOISE, env)
    drawn = g.standard_normal((series, 2, action_dim, steps // 2 + 1))
    return drawn, g.bit_generator.state


def by_hand(steps, beta, real, imaginary):
    """One series as a sum of cosines and sines of the frequencies k / T, k = 0 to T / 2."""
    power = {k: (k / steps) ** -beta for k in range(1, steps // 2 + 1)}
    power[0] = power[1]
    x = np.zeros(steps)
    for t in range(steps):
        for k, own in power.items():
            if k in (0, steps / 2):
                x[t] += np.sqrt(2 * own) * real[k] * np.cos(2 * np.pi * k * t / steps)
            else:
                angle = 2 * np.pi * k * t / steps
                x[t] += 2 * np.sqrt(own) * (real[k] * np.cos(angle) - imaginary[k] * np.sin(angle))
    variance = 4 * sum(own * (1 / 4 if k == steps / 2 else 1) for k, own in power.items() if k > 0)
    return x / np.sqrt(variance)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("steps", [2, 3, 4, 5, 9, 10])
def test_a_series_by_hand(steps, beta):
    noise = make("colored", scale=0.5, beta=beta, episode_steps=steps)
    drawn = samples(noise, 2 * steps)[:, 0, 0]
    parts, _ = normals(steps, series=2)
    for series, (real, imaginary) in enumerate(parts):
        for a in range(2):
            wanted = 0.5 * by_hand(steps, beta, real[a], imaginary[a])
            np.testing.assert_allclose(drawn[series * steps : (series + 1) * steps, a], wanted, rtol=1e-12, atol=1e-14)


def test_a_series_of_four_steps_by_hand():
    """Frequencies 0, 1/4 and 1/2; pink: powers 4, 4 and 2; variance 4 · 4 + 2."""
    parts, _ = normals(4, action_dim=1)
    (a0, a1, a2), (_, b1, _) = parts[0, :, 0]
    mean, alternating = np.sqrt(8) * a0, np.sqrt(4) * a2
    x = [mean + 4 * a1 + alternating, mean - 4 * b1 - alternating]
    x += [mean - 4 * a1 + alternating, mean + 4 * b1 - alternating]
    drawn = samples(make("pink", action_dim=1, scale=1.0, episode_steps=4), 4)[:, 0, 0, 0]
    np.testing.assert_allclose(drawn, np.array(x) / np.sqrt(18), rtol=1e-12)


def test_pink_is_colored_with_beta_1():
    one, other = make("pink", streams((0, 1), 2)), make("colored", streams((0, 1), 2), beta=1.0)
    np.testing.assert_array_equal(samples(one, 40), samples(other, 40))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_spectrum_and_variance(beta):
    """Power f^-β at the frequencies of an episode; variance scale² around the mean, whose own is 2 power(0) / sum."""
    steps, series = 255, 10
    drawn = samples(make("colored", scale=0.3, beta=beta, action_dim=400, episode_steps=steps), series * steps)
    drawn = drawn[:, 0, 0].reshape(series, steps, -1)
    power = (np.abs(np.fft.rfft(drawn, axis=1)) ** 2).mean(axis=(0, 2))[1:]
    frequency = np.arange(1, len(power) + 1) / steps
    slope, _ = np.polyfit(np.log(frequency), np.log(power), 1)
    assert slope == pytest.approx(-beta, abs=0.01)
    assert drawn.var(axis=1).mean() == pytest.approx(0.3**2, rel=0.05)
    law = frequency**-beta
    assert drawn.mean(axis=1).var() == pytest.approx(0.3**2 * law[0] / (2 * law.sum()), rel=0.1)
    each_step = drawn.var(axis=(0, 2))
    np.testing.assert_allclose(each_step, 0.3**2 * (1 + law[0] / (2 * law.sum())), rtol=0.15)


def test_components_and_environments_are_independent():
    drawn = samples(make("pink", streams((0, 1), 2), episode_steps=4), 12_000)
    by_series = drawn.reshape(3000, -1)  # columns: step in its series, then member, environment and component
    correlation = np.corrcoef(by_series.T)
    same = np.kron(np.ones((4, 4)), np.eye(8)) > 0
    np.testing.assert_allclose(correlation[~same], 0, atol=5 / np.sqrt(3000))
    assert correlation[0, 8] == pytest.approx(1 / 7, abs=5 / np.sqrt(3000))  # (8 - 4) / (8 + 16 + 4), as by hand


@in_series
def test_a_new_series_starts_with_each_episode_and_where_one_is_used_up(name):
    noise = make(name, streams(num_envs=2), scale=1.0, episode_steps=5)
    drawn = []
    for step in range(10):
        drawn.append(noise.sample(step)[0])
        noise.reset(np.array([[False, step == 2]]))
    for e, starts in enumerate([(0, 5), (0, 3, 8)]):
        parts, _ = normals(5, env=e, series=len(starts))
        series = [np.transpose([by_hand(5, 1.0, *part[:, a]) for a in range(2)]) for part in parts]
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], 10], strict=True)):
            own = [x[e] for x in drawn[start:end]]
            np.testing.assert_allclose(own, series[number][: end - start], rtol=1e-12, atol=1e-14)


@in_series
@pytest.mark.parametrize(
    ("limit", "length"), [(None, DEFAULT_SERIES), (1, 2), (2, 2), (7, 7), (LONGEST_SERIES, 10_000), (10**9, 10_000)]
)
def test_a_series_is_as_long_as_an_episode_may_be(name, limit, length):
    noise = make(name, episode_steps=limit)
    noise.sample(0)
    assert noise.state(0)["random"] == [normals(length)[1]]
    samples(noise, length - 1)
    assert noise.state(0)["random"] == [normals(length)[1]]
    noise.sample(0)
    assert noise.state(0)["random"] == [normals(length, series=2)[1]]


@in_series
def test_a_series_is_drawn_when_it_is_needed(name):
    noise = make(name, streams(num_envs=2), episode_steps=6)
    fresh = [g.bit_generator.state for g in streams(num_envs=2)[0]]
    noise.reset(np.array([[True, True]]))
    assert noise.state(0)["random"] == fresh
    noise.sample(0)
    drawn = noise.state(0)["random"]
    assert drawn == [normals(6, env=e)[1] for e in range(2)]
    noise.reset(np.array([[True, False]]))
    assert noise.state(0)["random"] == drawn
    noise.sample(1)
    assert noise.state(0)["random"] == [normals(6, series=2)[1], drawn[1]]


@in_series
def test_a_state_in_the_middle_of_an_episode(name):
    """Environments at different places in their series, one of which is used up."""
    noise = make(name, streams((0, 1), 2), scale=0.4, final_scale=0.1, decay_steps=30)
    for step in range(9):
        noise.sample(step)
        noise.reset(np.array([[step == 3, False], [step == 8, step == 6]]))
    states = copy.deepcopy([noise.state(0), noise.state(1)])
    assert [state["position"].tolist() for state in states] == [[5, 9], [12, 2]]
    together, alone = make(name, streams((5, 6), 2)), make(name, streams((7,), 2))
    for other in (together, alone):
        other.scale, other.final_scale, other.decay_steps = 0.4, 0.1, 30
    for member, state in enumerate(states):
        check_form(together.state(member), state, "noise")
    together.load_state(states)
    alone.load_state(states[1:])
    for step in range(9, 40):
        going_on = noise.sample(step)
        np.testing.assert_array_equal(together.sample(step), going_on)
        np.testing.assert_array_equal(alone.sample(step), going_on[1:])
        ended = np.array([[step % 7 == 0, False], [step % 11 == 0, step % 5 == 0]])
        noise.reset(ended)
        together.reset(ended)
        alone.reset(ended[1:])


def test_a_state_is_a_copy():
    noise, again = make("pink"), make("pink")
    state = noise.state(0)
    first = samples(noise, 20)
    again.load_state([state])
    np.testing.assert_array_equal(samples(again, 20), first)


@in_series
@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("series", np.nan, "not finite"),
        ("series", np.inf, "not finite"),
        ("position", -1, "not in its series"),
        ("position", 13, "not in its series"),
        ("position", np.iinfo(np.int64).max, "not in its series"),
    ],
)
def test_a_hostile_state_is_rejected(name, part, value, message):
    noise = make(name, streams((0, 1), 2))
    samples(noise, 3)
    states = copy.deepcopy([noise.state(0), noise.state(1)])
    states[1][part].flat[-1] = value
    check_form(noise.state(1), states[1], "noise")
    with pytest.raises(ValueError, match=message):
        noise.load_state(states)


@in_series
def test_a_state_of_another_form_is_rejected(name):
    own, longer = make(name).state(0), make(name, episode_steps=13).state(0)
    for stored in (longer, own | {"series": own["series"].astype(np.float32)}, own | {"position": 3}):
        with pytest.raises(ValueError, match="another shape or type"):
            check_form(own, stored, "noise")


def test_each_episode_has_a_scale_of_its_own_from_its_range():
    """One number more than the action has sets the scale, by the share of N(0, 1) that is below it."""
    noise = make("random_scale", streams((0, 1), 2), scale_min=0.1, scale_max=0.5)
    drawn = {(s, e): generator(s, Purpose.NOISE, e).standard_normal((9, 3)) for s in range(2) for e in range(2)}
    starts = {(0, 0): [0, 4, 7], (0, 1): [0], (1, 0): [0, 1, 2], (1, 1): [0, 4]}
    found = samples_with_ends(noise, 9, starts)
    for (s, e), rows in drawn.items():
        for step in range(9):
            start = max(first for first in starts[s, e] if first <= step)
            share = (1 + math.erf(rows[start, 2] / math.sqrt(2))) / 2
            np.testing.assert_allclose(found[step, s, e], (0.1 + 0.4 * share) * rows[step, :2], rtol=1e-14)
    assert noise.scale_at(0) == pytest.approx(0.3)


def samples_with_ends(noise, steps, starts):
    """Samples, with episodes that start at these steps by member and environment."""
    found = []
    for step in range(steps):
        ended = np.zeros((2, 2), bool)
        for cell, own in starts.items():
            ended[cell] = step in own
        noise.reset(ended)
        found.append(noise.sample(step))
    return np.array(found)


def test_scales_are_uniform():
    noise = make("random_scale", streams(range(50), 40), scale_min=0.2, scale_max=0.4, action_dim=1)
    scales = []
    for step in range(4):
        noise.sample(step)
        noise.reset(np.ones((50, 40), bool))
        scales.append(np.concatenate([noise.state(member)["scale"] for member in range(50)]))
    found = np.sort(np.concatenate(scales))
    assert np.abs(found - np.linspace(0.2, 0.4, len(found))).max() < 0.2 * 2.3 / math.sqrt(len(found))  # Kolmogorov


def test_an_episode_keeps_its_scale_in_a_stored_state():
    noise, other = make("random_scale", streams((0,), 2)), make("random_scale", streams((5,), 2))
    samples(noise, 3)
    noise.reset(np.array([[True, False]]))
    state = copy.deepcopy(noise.state(0))
    assert state["starts"].tolist() == [1, 0]
    going_on = samples(noise, 5)
    other.load_state([state])
    np.testing.assert_array_equal(samples(other, 5), going_on)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -0.1, 0.401, 0.0009])
def test_a_scale_out_of_range_is_rejected(scale):
    noise = make("random_scale")
    noise.sample(0)
    state = noise.state(0)
    state["scale"][0] = scale
    with pytest.raises(ValueError, match="a scale of the noise is out of range"):
        noise.load_state([state])
