"""The deterministic policy gradient theorem on a problem with closed-form solutions."""

from dpg_cli.theory.estimates import deterministic_samples, score_samples, score_variance, total_variance
from dpg_cli.theory.regulator import (
    Regulator,
    compatible_weights,
    discounted_sum,
    finite_differences,
    random_regulator,
)
from dpg_cli.theory.true_q import SteepestDescent, actor_update, give_true_q

__all__ = [
    "Regulator",
    "SteepestDescent",
    "actor_update",
    "compatible_weights",
    "deterministic_samples",
    "discounted_sum",
    "finite_differences",
    "give_true_q",
    "random_regulator",
    "score_samples",
    "score_variance",
    "total_variance",
]
