"""Point estimates over seeds and environments, and their bootstrap intervals.

All intervals are 95% percentile bootstraps (Efron and Tibshirani 1993, chapter 13). Random numbers are seeded, so the
same scores always have the same interval. An interval needs at least two scores in every resampled group; otherwise
its bounds are nan. Groups must not be empty, and scores must be finite.

Agarwal et al. 2021 is "Deep Reinforcement Learning at the Edge of the Statistical Precipice", whose library is rliable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

DRAWS = 10_000
AT_ONCE = 2**17  # numbers resampled at once
POINTS_AT_ONCE = 200  # of a curve: all draws of a long one would take gigabytes


@dataclass(frozen=True)
class Comparison:
    """How one group of seeds compares with another, with the 95% interval.

    `paired` is whether scores of the same seed were compared, `seeds` the number of these seeds. If not paired, `seeds`
    is the number in the smaller group.
    """

    value: float
    low: float
    high: float
    paired: bool
    seeds: int


def iqm(scores: np.ndarray, axis: int | None = None) -> Any:
    """Interquartile mean: the mean without the lowest and the highest quarter, ⌊n/4⌋ scores at each end.

    Equals `scipy.stats.trim_mean(scores, 0.25, axis)` (Agarwal et al. 2021, section 4.3). `axis=None` takes all scores
    together, whatever their environments; `(…, n, …)` without the axis otherwise.
    """
    if axis is None:
        scores, axis = np.ravel(scores), 0
    n = scores.shape[axis]
    return np.moveaxis(np.sort(scores, axis), axis, 0)[n // 4 : n - n // 4].mean(axis=0)


@overload
def bootstrap(
    scores: np.ndarray, estimate: Callable[[np.ndarray], np.ndarray], draws: int = ..., seed: int = ...
) -> np.ndarray: ...
@overload
def bootstrap(
    scores: list[np.ndarray], estimate: Callable[[list[np.ndarray]], np.ndarray], draws: int = ..., seed: int = ...
) -> np.ndarray: ...
def bootstrap(
    scores: np.ndarray | list[np.ndarray], estimate: Callable[[Any], np.ndarray], draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """95% percentile bootstrap interval (low, high) of an estimate: scores are resampled with replacement.

    Each array of a list is resampled on its own: the bootstrap stratified by environment of Agarwal et al. 2021,
    section 4.1.

    Args:
        scores: `(N, …)`, or a list with `(N_e, …)` of every environment; the lengths may differ.
        estimate: maps resampled scores `(D, N, …)`, or the list of `(D, N_e, …)`, to `(D, …)`. It is called with
            parts of the draws.
        draws: the number of resamples.
        seed: of the random numbers.

    Returns:
        `(2, …)`; nan if any N is 1.
    """
    groups = scores if isinstance(scores, list) else [scores]
    generators = [np.random.default_rng([seed, number]) for number in range(len(groups))]
    step = max(1, AT_ONCE // sum(group.size for group in groups))
    estimates = []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        resampled = [
            group[generator.integers(len(group), size=(count, len(group)))]
            for group, generator in zip(groups, generators, strict=True)
        ]
        estimates.append(estimate(resampled if isinstance(scores, list) else resampled[0]))
    bounds: np.ndarray = np.percentile(np.concatenate(estimates), (2.5, 97.5), axis=0)
    return bounds if min(map(len, groups)) > 1 else np.full_like(bounds, np.nan)


def interval(scores: np.ndarray) -> np.ndarray:
    """95% percentile bootstrap interval (low, high) of the mean over the first axis: `(N, …)` to `(2, …)`.

    Long curves are resampled in parts, always alike, because percentiles need all draws at once.
    """
    curves = scores.reshape(len(scores), -1)
    parts = [curves[:, at : at + POINTS_AT_ONCE] for at in range(0, curves.shape[1], POINTS_AT_ONCE)]
    bounds = np.concatenate([bootstrap(part, lambda drawn: drawn.mean(axis=1)) for part in parts], axis=1)
    return bounds.reshape(2, *scores.shape[1:])


def difference(a: Mapping[int, float], b: Mapping[int, float], least: int = 2) -> Comparison:
    """Mean of a minus mean of b, of scores by seed.

    If at least `least` seeds are shared: over the shared seeds, whose differences are resampled (paired bootstrap).
    Otherwise over all seeds, a and b resampled independently (Efron and Tibshirani 1993, chapter 8).
    """
    return _compare(a, b, least, np.subtract, _difference_of_means)


def probability_better(a: Mapping[int, float], b: Mapping[int, float], least: int = 2) -> Comparison:
    """Probability that a run of a scores more than a run of b, ties counted half, of scores by seed.

    If at least `least` seeds are shared: the share of them on which a scores more, seeds resampled. Otherwise the share
    of all pairs, Mann-Whitney U / (n m), a and b resampled independently (Agarwal et al. 2021, section 4.3).
    """
    return _compare(a, b, least, _wins, _mann_whitney)


def probability_of_improvement(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Comparison:
    """Mean over environments of Mann-Whitney U / (n m): how probably a run of a scores more than a run of b.

    Ties count half. The interval is stratified by environment, seeds are not paired (Agarwal et al. 2021, section 4.3).

    Args:
        a: `(N_e,)` of every environment.
        b: `(M_e,)` of the same environments, in the same order.
    """
    environments = len(a)

    def mean(scores: Sequence[np.ndarray]) -> np.ndarray:
        pairs = zip(scores[:environments], scores[environments:], strict=True)
        return _mean_over_environments([_mann_whitney(x, y) for x, y in pairs])

    groups = [*a, *b]
    low, high = bootstrap(groups, mean)
    return Comparison(float(mean(groups)), float(low), float(high), paired=False, seeds=min(map(len, groups)))


def performance_profile(scores: Sequence[np.ndarray], taus: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of runs that score more than tau, averaged over environments (Agarwal et al. 2021, section 4.2).

    Args:
        scores: `(N_e,)` of every environment.
        taus: `(T,)`.

    Returns:
        The profile and the bounds low and high of its interval, stratified by environment and pointwise in tau; each
        `(T,)`.
    """

    def profile(above: list[np.ndarray]) -> np.ndarray:
        return _mean_over_environments([own.mean(axis=-2) for own in above])

    above = [own[:, None] > taus for own in scores]
    low, high = bootstrap(above, profile)
    return profile(above), low, high


def first_step_at(steps: np.ndarray, returns: np.ndarray, threshold: float) -> int | None:
    """The first step `(T,)` at which the return `(T,)` is at least `threshold`; None if there is none."""
    reached = returns >= threshold
    return int(steps[reached.argmax()]) if reached.any() else None


def _compare(
    a: Mapping[int, float],
    b: Mapping[int, float],
    least: int,
    of_seed: Callable[[np.ndarray, np.ndarray], np.ndarray],
    of_groups: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Comparison:
    """Compare the shared seeds if there are at least `least`, otherwise the groups.

    Args:
        a: scores by seed.
        b: scores by seed.
        least: at least 2.
        of_seed: maps scores `(N,)` of a and b on the same seeds to `(N,)`, whose mean is the value.
        of_groups: maps `(…, N)` and `(…, M)` to the value `(…)`.
    """
    shared = sorted(a.keys() & b.keys())
    paired = len(shared) >= least
    if paired:
        by_seed = of_seed(np.array([a[seed] for seed in shared]), np.array([b[seed] for seed in shared]))
        value, (low, high), seeds = by_seed.mean(), interval(by_seed), len(shared)
    else:
        groups = [np.array([own[seed] for seed in sorted(own)]) for own in (a, b)]
        value, seeds = of_groups(*groups), min(len(a), len(b))
        low, high = bootstrap(groups, lambda drawn: of_groups(*drawn))
    return Comparison(float(value), float(low), float(high), paired, seeds)


def _difference_of_means(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    difference: np.ndarray = a.mean(axis=-1) - b.mean(axis=-1)
    return difference


def _mean_over_environments(values: list[np.ndarray]) -> np.ndarray:
    mean: np.ndarray = np.mean(values, axis=0)
    return mean


def _wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 where a is larger, 0.5 where both are equal, 0 elsewhere."""
    wins: np.ndarray = np.mean([a > b, a >= b], axis=0)
    return wins


def _mann_whitney(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """U / (n m) of `(…, n)` and `(…, m)`: the share of pairs in which a is larger, ties half."""
    x, y = a[..., :, None], b[..., None, :]
    larger: np.ndarray = (x > y).mean(axis=(-2, -1))
    at_least: np.ndarray = (x >= y).mean(axis=(-2, -1))
    mean: np.ndarray = (larger + at_least) / 2
    return mean
