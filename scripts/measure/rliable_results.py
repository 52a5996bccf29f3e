#!/usr/bin/env python
"""Write what rliable computes from the scores in tests/report/rliable.json into that file, for a test beside it.

    python -m venv rliable_venv
    rliable_venv/bin/pip install rliable==1.2.0 'pandas<3'
    rliable_venv/bin/python scripts/measure/rliable_results.py

rliable is not a dependency of dpg-cli, and this script does not need dpg-cli. It takes a few minutes.
"""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rliable import library, metrics

FILE = Path(__file__).resolve().parents[2] / "tests" / "report" / "rliable.json"


def estimated(estimate, *groups):
    """Point and interval by `get_interval_estimates`; its bootstrap draws from NumPy's global state."""
    np.random.seed(0)  # noqa: NPY002
    scores = {"": list(groups) if len(groups) > 1 else groups[0]}
    points, bounds = library.get_interval_estimates(scores, lambda *drawn: np.atleast_1d(estimate(*drawn)))
    return np.squeeze([points[""], *bounds[""]]).tolist()  # value, low, high


def main():
    content = json.loads(FILE.read_text(encoding="utf-8"))
    a, b = (np.array(content["scores"][name]) for name in "ab")  # (seeds, environments)
    taus = np.array(content["taus"])
    environments = range(a.shape[1])
    differences = a - b[: len(a)]
    wins = (differences > 0) + 0.5 * (differences == 0)

    def difference(x, y):
        return x.mean() - y.mean()

    content["results"] = {
        "mean": [estimated(np.mean, b[:, [e]]) for e in environments],
        "iqm": [estimated(metrics.aggregate_iqm, b[:, [e]]) for e in environments],
        "aggregate_iqm": [estimated(metrics.aggregate_iqm, scores) for scores in (a, b)],
        "difference": [estimated(difference, a[:, [e]], b[:, [e]]) for e in environments],
        "paired_difference": [estimated(np.mean, differences[:, [e]]) for e in environments],
        "probability_better": [
            estimated(metrics.probability_of_improvement, a[:, [e]], b[:, [e]]) for e in environments
        ],
        "paired_probability_better": [estimated(np.mean, wins[:, [e]]) for e in environments],
        "probability_of_improvement": estimated(metrics.probability_of_improvement, a, b),
        "performance_profile": estimated(lambda scores: library.score_distributions(scores, taus), b),
    }
    content["made_with"] = {
        "command": "python scripts/measure/rliable_results.py",
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("rliable", "arch", "scipy", "numpy")},
    }
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[[^][]+\]", lambda row: f"[{' '.join(row[0][1:-1].split())}]", text)  # a row is one line
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
