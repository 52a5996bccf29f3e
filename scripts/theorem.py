#!/usr/bin/env python
"""Draw the deterministic policy gradient theorem and print it as a table: see docs/theory.md.

    python scripts/theorem.py                    # three pictures in outputs/
    python scripts/theorem.py out=docs/images    # those of the documentation

Needs the extra `report`: pip install -e '.[report]'
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

try:
    import matplotlib.pyplot as plt
except ImportError:
    sys.exit('scripts/theorem.py: matplotlib is missing; install it with: pip install -e ".[report]"')

from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.cli.arguments import output_folder, parse, run_script
from dpg_cli.theory import (
    Regulator,
    actor_update,
    deterministic_samples,
    discounted_sum,
    finite_differences,
    random_regulator,
    score_samples,
    score_variance,
    total_variance,
)

DISCOUNT = 0.9
SAMPLES = 50_000
LAYERS = {
    "discount": DISCOUNT,
    "tau": 0.005,
    "actor_lr": 1e-3,
    "critic_lr": 1e-3,
    "batch_size": 4,
    "hidden_sizes": [4],
    "critic_weight_decay": 0.0,
    "critic_action_layer": 1,
    "normalize_obs": False,
}
ALGOS = {"ddpg": {}, "td3": {"num_critics": 2, "policy_noise": 0.2, "noise_clip": 0.5, "policy_delay": 2}}
SIGMAS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
COPIES = [1, 2, 4, 8, 16, 32]


def main() -> None:
    images = output_folder(parse(sys.argv[1:], ("out",), required=()), "out", "outputs")
    torch.set_num_threads(1)
    plt.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True})
    regulator, gain = random_regulator(4, 2, DISCOUNT, seed=0)
    draw_agreement(regulator, gain, images)
    draw_variance(regulator, gain, images)
    draw_limits(regulator, gain, images)


def draw_agreement(regulator: Regulator, gain: Tensor, images: Path) -> None:
    exact = regulator.exact_gradient(gain)
    updates = {
        name: actor_update(
            ALGORITHMS[name](**LAYERS, **values, obs_dim=4, action_dim=2, seeds=[0], dtype=torch.float64),
            regulator,
            gain,
        )[0]
        for name, values in ALGOS.items()
    }
    steps = [10.0**e for e in (-9, -8.5, -8, -7.5, -7, -6.5, -6, -5.5, -5, -4.5, -4, -3.5, -3, -2.5, -2)]
    differences = [relative_error(finite_differences(regulator, gain, step), exact) for step in steps]
    found = {
        "theorem, G Σ": regulator.policy_gradient(gain),
        "finite differences": finite_differences(regulator, gain, 3e-6),
        "DDPG's actor update": updates["ddpg"],
        "TD3's actor update": updates["td3"],
    }

    heading("∇J found in four ways, against the exact gradient (4 states, 2 actions)", "way", "relative error")
    for way, gradient in found.items():
        row(way, f"{relative_error(gradient, exact):.1e}")
    undiscounted = regulator.action_gradient(gain) @ discounted_sum(
        regulator.closed_loop(gain), regulator.process_noise, discount=1.0
    )
    row("the theorem, states not discounted", f"angle to ∇J {angle(undiscounted, exact):.1f}°")

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    limits = [exact.min().item() * 1.15, exact.max().item() * 1.15]
    left.plot(limits, limits, color="0.7", linewidth=1)
    for (way, gradient), marker, size in zip(found.items(), "os+x", (9, 5, 11, 7), strict=True):
        hollow = {"markerfacecolor": "none"} if marker == "o" else {}
        left.plot(exact.flatten(), gradient.flatten(), marker, markersize=size, label=way, **hollow)
    left.set(xlabel="entry of the exact gradient", ylabel="found", title="eight entries of ∇J, four ways")
    right.loglog(steps, differences, "s-", color="C1", markersize=4)
    right.set(xlabel="step of the finite differences", ylabel="relative error", title="the error of finite differences")
    save(figure, images / "theorem_agreement.png")


def draw_variance(regulator: Regulator, gain: Tensor, images: Path) -> None:
    by_sigma = [estimator_variances(regulator, gain, sigma) for sigma in SIGMAS]
    by_dimension = [estimator_variances(*regulator.split(gain, copies), 0.2) for copies in COPIES]
    dimensions = [2 * copies for copies in COPIES]

    heading("Variance of one sample, in units of ‖∇J‖²", "", *NAMES)
    for sigma, variances in zip(SIGMAS, by_sigma, strict=True):
        row(f"2 actions, σ = {sigma:g}", *(f"{v:.3g}" for v in variances))
    for dimension, variances in zip(dimensions, by_dimension, strict=True):
        row(f"{dimension} actions, σ = 0.2", *(f"{v:.3g}" for v in variances))

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
    for axis, x, table in zip(axes, (SIGMAS, dimensions), (by_sigma, by_dimension), strict=True):
        *estimators, formula = zip(*table, strict=True)
        for values, name, style in zip(estimators, NAMES, ("o-", "s-", "^-"), strict=False):
            axis.loglog(x, values, style, label=name if axis is axes[0] else None, markersize=4)
        axis.loglog(x, formula, "k:", label=NAMES[-1] if axis is axes[0] else None)
    axes[0].set(xlabel="σ", ylabel="variance / ‖∇J‖²", title="against the policy's deviation (2 actions)")
    axes[1].set(xlabel="size of the action", title="against the size of the action (σ = 0.2)")
    axes[1].set_xticks(dimensions, dimensions)
    axes[1].minorticks_off()
    save(figure, images / "theorem_variance.png")


NAMES = ("score function", "score, baseline Q(s, μ(s))", "deterministic", "formula for the first")


def estimator_variances(regulator: Regulator, gain: Tensor, sigma: float) -> list[float]:
    """Variances of the three estimators and the first's closed form given the state, over ‖∇J‖²."""
    generator = torch.Generator().manual_seed(0)
    obs = regulator.sample_states(gain, sigma, SAMPLES, generator)
    xi = torch.randn(SAMPLES, len(gain), dtype=torch.float64, generator=generator)
    variances = [
        total_variance(score_samples(regulator, gain, obs, sigma, xi)),
        total_variance(score_samples(regulator, gain, obs, sigma, xi, baseline=True)),
        total_variance(deterministic_samples(regulator, gain, obs)),
        score_variance(regulator, gain, obs, sigma).mean(),
    ]
    scale = regulator.exact_gradient(gain, sigma).square().sum()
    return [(variance / scale).item() for variance in variances]


def draw_limits(regulator: Regulator, gain: Tensor, images: Path) -> None:
    deterministic = regulator.policy_gradient(gain)
    distances = [relative_error(regulator.exact_gradient(gain, sigma), deterministic) for sigma in SIGMAS]
    heading("The limit: the Gaussian policy's gradient against the deterministic one", "σ", "‖∇J_σ - ∇J‖ / ‖∇J‖")
    for sigma, distance in zip(SIGMAS, distances, strict=True):
        row(f"{sigma:g}", f"{distance:.3e}")

    scales = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]
    dropped, wrong, angles = [], [], []
    columns = ("dropped / whole ∇J_β", "‖G Σ^β - ∇J‖ / ‖∇J‖", "angle to ∇J", "angle to ∇J_β")
    heading("Off policy: states from K s + σ ξ, the policy is K s", "σ", *columns)
    for scale in scales:
        moment = regulator.state_moment(gain, scale)
        used, whole = regulator.action_gradient(gain) @ moment, regulator.behaviour_gradient(gain, moment)
        dropped.append(relative_error(used, whole))
        wrong.append(relative_error(used, deterministic))
        angles.append((angle(used, deterministic), angle(used, whole)))
        row(f"{scale:g}", f"{dropped[-1]:.3f}", f"{wrong[-1]:.4f}", *(f"{a:.1f}°" for a in angles[-1]))

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    left.loglog(SIGMAS, distances, "o", markersize=5, label="‖∇J_σ - ∇J‖ / ‖∇J‖")
    left.loglog(SIGMAS, [distances[0] * (sigma / SIGMAS[0]) ** 2 for sigma in SIGMAS], "k:", label="slope 2")
    left.set(xlabel="σ of the policy", ylabel="relative distance", title="the stochastic gradient's limit")
    right.plot(scales, dropped, "s-", markersize=4, color="C3", label="dropped term, share of the whole ∇J_β")
    right.plot(scales, wrong, "o-", markersize=4, color="C2", label="distance from the on-policy ∇J, relative")
    right.set(xlabel="σ of the behaviour", ylabel="relative size", ylim=(0, 3), title="the off-policy gradient")
    save(figure, images / "theorem_limits.png")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def angle(first: Tensor, second: Tensor) -> float:
    """Degrees between two gradients."""
    cosine = (first * second).sum() / (first.norm() * second.norm())
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))).item()


def heading(title: str, *columns: str) -> None:
    print(f"\n{title}\n")
    row(*columns)


def row(name: str, *values: str) -> None:
    print(f"{name:36}", "  ".join(f"{value:>26}" for value in values))


def save(figure: plt.Figure, image: Path) -> None:
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(image, dpi=150)
    print(f"\n-> {image}")


if __name__ == "__main__":
    run_script("theorem", main)
