"""Exploration noise: moments, decay, resets, and a stream of its own for every member and environment."""

import copy
from dataclasses import fields

import numpy as np
import pytest
from omegaconf import OmegaConf

from dpg_cli.config import choices, config_dir
from dpg_cli.noise import BLOCK, NOISES
from dpg_cli.seeding import Purpose, generator

every_noise = pytest.mark.parametrize("name", NOISES)
decaying = pytest.mark.parametrize(
    "name", [n for n, c in NOISES.items() if "decay_steps" in {f.name for f in fields(c)}]
)


def streams(seeds=(0,), num_envs=1):
    return [[generator(seed, Purpose.NOISE, e) for e in range(num_envs)] for seed in seeds]


def make(name, generators=None, action_dim=2, **changes):
    values = OmegaConf.to_container(OmegaConf.load(config_dir() / "noise" / f"{name}.yaml"))
    assert values.pop("name") == name
    return NOISES[name](**(values | changes), action_dim=action_dim, generators=generators or streams())


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
