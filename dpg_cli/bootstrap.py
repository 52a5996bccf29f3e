"""Intervals of means."""

import numpy as np

RESAMPLES, AT_ONCE = 10_000, 100  # a product of both and a long curve would take gigabytes


def interval(values: np.ndarray) -> np.ndarray:
    """95% interval of the mean over the first axis, percentile bootstrap: `(n, ...)` to `(2, ...)`."""
    n, generator = len(values), np.random.default_rng(0)
    rows = (generator.integers(n, size=(AT_ONCE, n)) for _ in range(RESAMPLES // AT_ONCE))
    means = np.concatenate([values[row].mean(axis=1) for row in rows])
    bounds: np.ndarray = np.percentile(means, (2.5, 97.5), axis=0)
    return bounds
