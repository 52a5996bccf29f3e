"""Statistics of a report: by hand, and beside rliable's on the same scores.

tests/report/rliable.json holds these scores, rliable's results and its version; scripts/measure/rliable_results.py
made it. The scores have three decimals and few ties: with many, a resampled mean takes few values, and its percentiles
move in steps of more than 2% of the interval.
"""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dpg_cli.report.statistics import (
    bootstrap,
    difference,
    first_step_at,
    interval,
    iqm,
    performance_profile,
    probability_better,
    probability_of_improvement,
)

RLIABLE = json.loads(Path(__file__).with_name("rliable.json").read_text(encoding="utf-8"))
RESULTS = RLIABLE["results"]
A, B = (np.array(RLIABLE["scores"][name]) for name in "ab")  # (seeds, environments)
ENVIRONMENTS = range(A.shape[1])


def agree(own, rliable):
    """Value, low and high: points to 1e-9, bounds to 2% of the interval's width."""
    value, low, high = map(np.asarray, own)
    expected, *bounds = map(np.asarray, rliable)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-9)
    width = bounds[1] - bounds[0]
    for bound, other in zip((low, high), bounds, strict=True):
        assert (np.abs(bound - other) <= 0.02 * width + 1e-9).all(), (own, rliable)


def of(comparison):
    return comparison.value, comparison.low, comparison.high


def by_seed(scores, first=0):
    return dict(enumerate(scores.tolist(), first))


def iqm_of_all(groups):
    return iqm(np.concatenate(groups, axis=1), axis=1)


# --- beside rliable ---


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_mean_and_iqm_of_one_environment(env):
    scores = B[:, env]
    agree((scores.mean(), *interval(scores)), RESULTS["mean"][env])
    agree((iqm(scores), *bootstrap(scores, lambda drawn: iqm(drawn, axis=1))), RESULTS["iqm"][env])


@pytest.mark.parametrize(("scores", "expected"), list(zip((A, B), RESULTS["aggregate_iqm"], strict=True)))
def test_iqm_over_environments(scores, expected):
    agree((iqm(scores), *bootstrap(list(scores.T), iqm_of_all)), expected)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_comparisons_in_one_environment(env):
    a, b = by_seed(A[:, env]), by_seed(B[:, env])
    agree(of(difference(a, b)), RESULTS["paired_difference"][env])
    agree(of(probability_better(a, b)), RESULTS["paired_probability_better"][env])
    other = by_seed(B[:, env], first=100)
    agree(of(difference(a, other)), RESULTS["difference"][env])
    agree(of(probability_better(a, other)), RESULTS["probability_better"][env])


def test_comparison_over_environments():
    agree(of(probability_of_improvement(A.T, B.T)), RESULTS["probability_of_improvement"])


def test_performance_profile():
    agree(performance_profile(B.T, np.array(RLIABLE["taus"])), RESULTS["performance_profile"])


# --- by hand ---


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3], 3),
        ([1, 2, 9], 4),  # nothing is cut below four
        ([9, 1, 2, 4], 3),
        ([100, 1, 2, 3, -50], 2),
        ([0, 0, 1, 2, 3, 4, 90, 90], 2.5),
    ],
)
def test_iqm_cuts_a_quarter_rounded_down_at_each_end(scores, expected):
    assert iqm(np.array(scores)) == expected
    assert iqm(np.array([scores, scores]), axis=1).tolist() == [expected] * 2
    assert iqm(np.array([scores, scores]).T, axis=0).tolist() == [expected] * 2


def test_iqm_without_an_axis_takes_all_scores_together():
    assert iqm(np.array([[0, 100], [1, 2]])) == 1.5


def test_interval_of_two_scores():
    assert interval(np.array([1.0, 3.0])).tolist() == [1, 3]  # a quarter of all resamples each


def test_interval_of_a_curve_is_that_of_each_step():
    curves = np.random.default_rng(0).normal(size=(5, 300))
    steps = [0, 123, -1]
    expected = np.stack([interval(curves[:, step]) for step in steps], axis=1)
    assert interval(curves)[:, steps].tolist() == expected.tolist()


def test_intervals_are_the_same_every_time_and_depend_on_the_seed():
    scores = np.arange(7.0) ** 2
    mean = lambda drawn: drawn.mean(axis=1)  # noqa: E731
    assert bootstrap(scores, mean).tolist() == interval(scores).tolist()
    assert bootstrap(scores, mean, seed=1).tolist() != interval(scores).tolist()


def test_one_seed_has_no_interval():
    one, two = np.array([1.0]), np.array([1.0, 2.0])
    assert np.isnan(interval(one)).all()
    assert np.isnan(interval(np.ones((1, 4)))).tolist() == [[True] * 4] * 2
    assert np.isnan(bootstrap([two, one], iqm_of_all)).all()
    found = difference({0: 3.0}, {1: 1.0, 2: 2.0})
    assert (found.value, found.paired, found.seeds) == (1.5, False, 1)
    assert np.isnan([found.low, found.high]).all()


def test_environments_are_resampled_on_their_own():
    groups = [np.zeros(2), np.ones(30)]
    low, high = bootstrap(groups, lambda drawn: np.stack([part.mean(axis=1) for part in drawn], axis=1))
    assert low.tolist() == high.tolist() == [0, 1]
    shapes = set()
    bootstrap(groups, lambda drawn: shapes.add(tuple(part.shape for part in drawn)) or drawn[0][:, 0], draws=10)
    assert shapes == {((10, 2), (10, 30))}


def test_shared_seeds_are_compared_in_pairs():
    a, b = {0: 10.0, 1: 20.0, 2: 30.0, 7: 999.0}, {2: 28.0, 1: 18.0, 0: 8.0, 8: -999.0}
    found = difference(a, b)
    assert (found.value, found.low, found.high, found.paired, found.seeds) == (2, 2, 2, True, 3)
    found = probability_better({0: 1.0, 1: 2.0, 2: 3.0, 3: 0.0}, {0: 0.0, 1: 2.0, 2: 4.0, 3: -1.0})
    assert (found.value, found.paired, found.seeds) == (0.625, True, 4)


def test_one_shared_seed_does_not_make_pairs():
    found = difference({0: 1.0, 1: 2.0, 2: 6.0}, {2: 0.0, 3: 1.0})
    assert (found.value, found.paired, found.seeds) == (2.5, False, 2)
    found = probability_better({0: 1.0, 1: 2.0, 2: 6.0}, {2: 1.0, 3: 3.0})
    assert (found.value, found.paired) == (pytest.approx((0.5 + 1 + 2) / 6), False)


def test_probability_of_improvement_averages_over_environments():
    a = [np.array([1.0, 2.0]), np.array([5.0, 5.0, 5.0])]
    b = [np.array([0.0, 1.0, 3.0]), np.array([5.0, 6.0])]
    found = probability_of_improvement(a, b)
    assert found.value == pytest.approx(((1 + 0.5 + 2) / 6 + 0.25) / 2)
    assert (found.paired, found.seeds) == (False, 2)


def test_profile_weighs_environments_equally_whatever_their_numbers_of_seeds():
    share, low, high = performance_profile([np.array([0.0, 1.0]), np.full(8, 2.0)], np.array([-1.0, 0.0, 1.0, 2.0]))
    assert share.tolist() == [1, 0.75, 0.5, 0]  # above, not at, tau
    assert low.tolist() == [1, 0.5, 0.5, 0]
    assert high.tolist() == [1, 1, 0.5, 0]


def test_first_step_at_a_threshold():
    steps, returns = np.array([0, 10, 20, 30]), np.array([1.0, 5.0, 4.0, 9.0])
    assert [first_step_at(steps, returns, threshold) for threshold in (0, 5, 5.1, 9.1)] == [0, 10, 30, None]
    assert first_step_at(steps[:0], returns[:0], 0) is None


@pytest.mark.parametrize("shape", [(200,), (200, 200)])
def test_memory_is_bounded(shape):
    tracemalloc.start()
    try:
        interval(np.zeros(shape))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
