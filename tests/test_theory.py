import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dpg_cli.algorithms import ALGORITHMS, Algorithm, Batch
from dpg_cli.networks import Numbers
from dpg_cli.theory import (
    Regulator,
    actor_update,
    compatible_weights,
    deterministic_samples,
    discounted_sum,
    finite_differences,
    give_true_q,
    random_regulator,
    score_samples,
    score_variance,
    total_variance,
)

DISCOUNT = 0.9
DOUBLE = Numbers("cpu", torch.float64, torch.float64)
ROOT = Path(__file__).parent.parent


SIZES = [(1, 1), (3, 2), (2, 4), (6, 3)]


def size_name(size: tuple[int, int]) -> str:
    return f"n{size[0]}m{size[1]}"


@pytest.fixture(params=SIZES, ids=size_name)
def problem(request) -> tuple[Regulator, Tensor]:
    return random_regulator(*request.param, DISCOUNT, seed=1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def gauss_hermite(dimension: int, nodes: int) -> tuple[Tensor, Tensor]:
    """Points `(N, dimension)` and weights `(N,)`: exact means over N(0, I) up to degree 2 `nodes` - 1 in each entry."""
    x, p = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(nodes))
    index = torch.cartesian_prod(*[torch.arange(nodes)] * dimension).view(-1, dimension)
    return x[index], (p / p.sum())[index].prod(dim=-1)


def rolled_out(regulator: Regulator, gain: Tensor, sigma: float, weight: float) -> tuple[Tensor, Tensor]:
    """Return and sum of weightᵗ E[sₜ sₜᵀ], step by step until nothing is left."""
    closed_loop = regulator.dynamics + regulator.control @ gain
    noise = regulator.process_noise + sigma**2 * regulator.control @ regulator.control.T
    cost = regulator.state_cost + gain.T @ regulator.action_cost @ gain
    moment = regulator.start
    total = torch.zeros((), dtype=torch.float64)
    moments = torch.zeros_like(moment)
    for t in range(400):
        total = total - regulator.discount**t * ((cost @ moment).trace() + sigma**2 * regulator.action_cost.trace())
        moments = moments + weight**t * moment
        moment = closed_loop @ moment @ closed_loop.T + noise
    return total, moments


# --- the closed forms ---


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_return_and_state_distribution_are_those_of_a_rollout(problem, sigma):
    regulator, gain = problem
    expected_return, moment = rolled_out(regulator, gain, sigma, weight=regulator.discount)
    torch.testing.assert_close(regulator.expected_return(gain, sigma), expected_return, rtol=1e-12, atol=0)
    torch.testing.assert_close(regulator.state_moment(gain, sigma), moment, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_value_is_the_mean_of_q_over_actions(problem, sigma, generator):
    regulator, gain = problem
    obs = normal(5, len(regulator.start), generator=generator)
    mean = regulator.q(gain, obs, obs @ gain.T, sigma) - sigma**2 * regulator.curvature(gain).trace()
    torch.testing.assert_close(regulator.value(gain, obs, sigma), mean, rtol=1e-12, atol=0)


def test_action_gradient_is_that_of_q(problem, generator):
    regulator, gain = problem
    obs = normal(5, len(regulator.start), generator=generator)
    action = (obs @ gain.T).requires_grad_()
    gradient = torch.autograd.grad(regulator.q(gain, obs, action).sum(), action)[0]
    torch.testing.assert_close(obs @ regulator.action_gradient(gain).T, gradient, rtol=1e-10, atol=1e-10)


def test_states_are_sampled_from_the_discounted_distribution(generator):
    regulator, gain = random_regulator(3, 2, DISCOUNT, seed=1)
    obs = regulator.sample_states(gain, 0.3, 100_000, generator)
    expected = (1 - DISCOUNT) * regulator.state_moment(gain, 0.3)
    assert relative_error(obs.T @ obs / len(obs), expected) < 0.05


def test_an_infinite_return_is_refused():
    regulator, gain = random_regulator(3, 2, DISCOUNT, seed=1)
    with pytest.raises(ValueError, match="infinite"):
        replace(regulator, dynamics=1.2 * regulator.dynamics).expected_return(gain)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (6, 3)])
def test_random_regulators_have_a_finite_return_up_to_their_discount(size):
    for seed in range(100):
        regulator, gain = random_regulator(*size, 0.907, seed)
        assert torch.linalg.matrix_norm(regulator.closed_loop(gain), 2) < 1.05 + 1e-12
        assert regulator.expected_return(gain).isfinite()
    with pytest.raises(ValueError, match=r"discount=0\.908: must be below 0\.907"):
        random_regulator(*size, 0.908, seed=0)


# --- the theorem ---


def test_theorem_is_the_exact_gradient(problem):
    regulator, gain = problem
    exact = regulator.exact_gradient(gain)
    assert relative_error(regulator.policy_gradient(gain), exact) < 1e-10
    assert relative_error(finite_differences(regulator, gain, step=3e-6), exact) < 1e-8

    leaf = gain.clone().requires_grad_()
    (unrolled,) = torch.autograd.grad(rolled_out(regulator, leaf, 0.0, regulator.discount)[0], leaf)
    assert relative_error(unrolled, exact) < 1e-10


@pytest.mark.parametrize("problem", SIZES[1:], ids=size_name, indirect=True)  # one parameter leaves no direction
def test_theorem_needs_the_discounted_state_distribution(problem):
    regulator, gain = problem
    _, undiscounted = rolled_out(regulator, gain, 0.0, weight=1.0)
    wrong = regulator.action_gradient(gain) @ undiscounted
    wrong *= (regulator.exact_gradient(gain) * wrong).sum() / wrong.square().sum()  # the best multiple of it
    assert relative_error(wrong, regulator.exact_gradient(gain)) > 1e-3


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_stochastic_theorem_is_the_exact_gradient_of_the_gaussian_policy(problem, sigma):
    regulator, gain = problem
    exact = regulator.exact_gradient(gain, sigma)
    assert relative_error(regulator.policy_gradient(gain, sigma), exact) < 1e-10
    assert relative_error(finite_differences(regulator, gain, 3e-6, sigma), exact) < 1e-8


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_integral_of_score_times_q_over_actions_is_the_action_gradient(sigma, generator):
    # The integrand is of third degree.
    regulator, gain = random_regulator(3, 2, DISCOUNT, seed=1)
    xi, weights = gauss_hermite(2, nodes=2)
    obs = normal(1, 3, generator=generator)
    samples = score_samples(regulator, gain, obs.expand(len(xi), 3), sigma, xi)
    integral = torch.einsum("b,bij->ij", weights, samples)
    torch.testing.assert_close(integral, deterministic_samples(regulator, gain, obs)[0], rtol=1e-9, atol=1e-9)


def test_stochastic_gradient_converges_with_the_square_of_sigma(problem):
    # Theorem 2. Σ grows by σ² times a constant matrix and G not at all, so that the distance is σ² exactly.
    regulator, gain = problem
    limit = regulator.policy_gradient(gain)
    distances = [(regulator.exact_gradient(gain, sigma) - limit).norm().item() for sigma in (0.8, 0.4, 0.2, 0.1)]
    assert distances[0] > 1e-3 * limit.norm().item()
    for larger, smaller in itertools.pairwise(distances):
        assert larger / smaller == pytest.approx(4.0, rel=1e-6)


# --- estimators ---


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_both_estimators_are_unbiased(sigma, generator):
    regulator, gain = random_regulator(3, 2, DISCOUNT, seed=1)
    size = 50_000
    obs = regulator.sample_states(gain, sigma, size, generator)
    xi = normal(size, 2, generator=generator)
    exact = regulator.exact_gradient(gain, sigma)
    for samples in (
        deterministic_samples(regulator, gain, obs),
        score_samples(regulator, gain, obs, sigma, xi),
        score_samples(regulator, gain, obs, sigma, xi, baseline=True),
    ):
        standard_error = samples.std(dim=0) / math.sqrt(size)
        assert ((samples.mean(dim=0) - exact).abs() < 6 * standard_error).all()
    # and the bound is tight enough to tell something, for the deterministic one at least
    deterministic = deterministic_samples(regulator, gain, obs)
    assert (deterministic.std(dim=0) / math.sqrt(size)).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_score_variance_at_a_state_is_its_closed_form(sigma, baseline, problem, generator):
    # The samples' squares are of sixth degree.
    regulator, gain = problem
    xi, weights = gauss_hermite(len(gain), nodes=4)
    obs = normal(1, len(regulator.start), generator=generator)
    samples = score_samples(regulator, gain, obs.expand(len(xi), -1), sigma, xi, baseline=baseline)
    centred = samples - torch.einsum("b,bij->ij", weights, samples)
    measured = torch.einsum("b,bij,bij->", weights, centred, centred)
    expected = score_variance(regulator, gain, obs, sigma, baseline=baseline)
    torch.testing.assert_close(measured, expected[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("baseline", [False, True])
def test_score_variance_of_a_long_action_is_its_closed_form(baseline, generator):
    regulator, gain = random_regulator(3, 2, DISCOUNT, seed=1)
    regulator, gain = regulator.split(gain, copies=8)
    obs = normal(1, 3, generator=generator).expand(100_000, 3)
    xi = normal(100_000, 16, generator=generator)
    measured = total_variance(score_samples(regulator, gain, obs, 0.3, xi, baseline=baseline)).item()
    expected = score_variance(regulator, gain, obs[:1], 0.3, baseline=baseline).item()
    assert measured == pytest.approx(expected, rel=0.05)
    assert total_variance(deterministic_samples(regulator, gain, obs)).item() < 1e-9 * expected


def test_score_variance_grows_as_the_inverse_square_of_sigma(generator):
    regulator, gain = random_regulator(3, 2, DISCOUNT, seed=1)
    variances = []
    for sigma in (0.02, 0.04, 0.08):
        obs = regulator.sample_states(gain, sigma, 50_000, generator)
        xi = normal(50_000, 2, generator=generator)
        variances.append(
            [
                total_variance(score_samples(regulator, gain, obs, sigma, xi)).item(),
                total_variance(deterministic_samples(regulator, gain, obs)).item(),
            ]
        )
    slope = np.polyfit(np.log([0.02, 0.04, 0.08]), np.log(variances), 1)[0]
    assert slope == pytest.approx([-2.0, 0.0], abs=0.2)
    assert variances[0][0] > 1000 * variances[0][1]


def test_score_variance_grows_with_the_action_dimension(generator):
    regulator, gain = random_regulator(3, 1, DISCOUNT, seed=1)
    score, deterministic = [], []
    for copies in (1, 4, 16):
        split, split_gain = regulator.split(gain, copies)
        assert split.exact_gradient(split_gain).norm().item() == pytest.approx(
            regulator.exact_gradient(gain).norm().item(), rel=1e-10
        )
        obs = split.sample_states(split_gain, 0.05, 50_000, generator)
        xi = normal(50_000, copies, generator=generator)
        score.append(total_variance(score_samples(split, split_gain, obs, 0.05, xi)).item())
        deterministic.append(total_variance(deterministic_samples(split, split_gain, obs)).item())
    assert score[1] / score[0] == pytest.approx(4, rel=0.3)
    assert score[2] / score[0] == pytest.approx(16, rel=0.3)
    assert deterministic[2] / deterministic[0] == pytest.approx(1, rel=0.3)


# --- compatible function approximation ---


def test_compatible_critic_gives_the_exact_gradient(generator):
    # Three parameters for a gain of 2 x 3: Qʷ cannot be Q, and the gradient is exact nevertheless (Theorem 3).
    regulator, _ = random_regulator(3, 2, DISCOUNT, seed=1)
    features = normal(3, 2, 3, generator=generator)
    theta = 0.02 * normal(3, generator=generator)
    gain = torch.einsum("p,pmn->mn", theta, features)
    exact = torch.einsum("pmn,mn->p", features, regulator.exact_gradient(gain))

    action_gradient, moment = regulator.action_gradient(gain), regulator.state_moment(gain)
    weights = compatible_weights(features, action_gradient, moment)

    def from_critic(w: Tensor) -> Tensor:
        """∫ρ(s) ∇μ(s) ∇ₐQʷ(s, a) ds, with ∇ₐQʷ(s, a) = Σⱼ wⱼ Φⱼ s."""
        slope = torch.einsum("p,pmn->mn", w, features)
        return torch.einsum("pmn,mn->p", features, slope @ moment)

    assert relative_error(from_critic(weights), exact) < 1e-10
    assert relative_error(from_critic(weights + 0.1 * weights.norm()), exact) > 1e-2
    misfit = torch.einsum("p,pmn->mn", weights, features) - action_gradient
    assert (misfit @ moment @ misfit.T).trace() > 0.01 * (action_gradient @ moment @ action_gradient.T).trace()


def test_compatible_weights_are_the_least_squares_solution(generator):
    regulator, gain = random_regulator(3, 2, DISCOUNT, seed=1)
    features = normal(3, 2, 3, generator=generator)
    obs = normal(50, 3, generator=generator)
    rows = torch.einsum("pmn,bn->bmp", features, obs).reshape(-1, 3)
    slope = (obs @ regulator.action_gradient(gain).T).reshape(-1)
    expected = np.linalg.lstsq(rows.numpy(), slope.numpy(), rcond=None)[0]
    weights = compatible_weights(features, regulator.action_gradient(gain), obs.T @ obs / len(obs))
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-9)


# --- off policy ---


def test_off_policy_gradient_drops_a_term(problem):
    regulator, gain = problem
    exact = regulator.exact_gradient(gain)
    errors = []
    for sigma in (0.0, 0.1, 0.2):
        moment = regulator.state_moment(gain, sigma)
        used = regulator.action_gradient(gain) @ moment
        whole = regulator.behaviour_gradient(gain, moment)
        # What is dropped is the theorem again, from where the behaviour's states lead on.
        noise = regulator.process_noise / (1 - DISCOUNT) ** 2
        arriving = regulator.closed_loop(gain) @ moment @ regulator.closed_loop(gain).T + noise
        future = discounted_sum(regulator.closed_loop(gain), DISCOUNT * arriving, DISCOUNT)
        assert relative_error(used + regulator.action_gradient(gain) @ future, whole) < 1e-10
        assert relative_error(used, whole) > 0.1
        errors.append(relative_error(used, exact))
    # Without noise the states are the policy's own, and what is left is ∇J itself; the distance grows with σ².
    assert errors[0] < 1e-10
    assert errors[2] / errors[1] == pytest.approx(4.0, rel=1e-6)


# --- the algorithms as they stand ---

LIFTS = [-1.0, 1.0]  # the critics after the first lie below the truth, and above it
EXTRA = {"ddpg": {}, "td3": {"num_critics": 2, "policy_noise": 0.0, "noise_clip": 0.5, "policy_delay": 2}}


def make(name: str, n: int, m: int, **changes: object) -> Algorithm:
    values = {
        "discount": DISCOUNT,
        "tau": 0.005,
        "actor_lr": 1e-3,
        "critic_lr": 1e-3,
        "batch_size": 8,
        "hidden_sizes": [8, 8],
        "critic_weight_decay": 0.0,
        "critic_action_layer": 1,
        "normalize_obs": False,
    }
    return ALGORITHMS[name](**(values | EXTRA[name] | changes), obs_dim=n, action_dim=m, seeds=[0], numbers=DOUBLE)


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("name", EXTRA)
def test_actor_update_is_the_exact_gradient(name, lift, problem):
    regulator, gain = problem
    step, _ = actor_update(make(name, *regulator.control.shape), regulator, gain, lift)
    assert relative_error(step, regulator.exact_gradient(gain)) < 1e-8


@pytest.mark.parametrize("name", EXTRA)
def test_the_true_q_solves_the_critics_equation(name, problem):
    regulator, gain = problem
    # No process noise, so that one next state is the mean; small states, so that no action is clipped.
    regulator = replace(regulator, process_noise=0 * regulator.start, start=1e-4 * regulator.start)
    algorithm = make(name, *regulator.control.shape)
    if name == "td3":
        algorithm = make(name, *regulator.control.shape, num_critics=1)
    _, metrics = actor_update(algorithm, regulator, gain)
    assert metrics["loss/critic"].item() < 1e-16 * metrics["value/q_mean"].item() ** 2


@pytest.mark.parametrize("lift", LIFTS)
def test_td3_target_is_the_least_critics(lift, problem):
    regulator, gain = problem
    regulator = replace(regulator, process_noise=0 * regulator.start, start=1e-4 * regulator.start)
    shape = regulator.control.shape
    truth, twins = (
        actor_update(make("td3", *shape, num_critics=k), regulator, gain, lift)[1]["value/target_mean"].item()
        for k in (1, 2)
    )
    # The second critic is 1 + ‖a‖² below the truth or above it, and the actions are small.
    assert twins - truth == pytest.approx(DISCOUNT * min(lift, 0), abs=0.01)


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("name", EXTRA)
def test_actor_update_of_a_network_is_the_chain_rule(name, lift, generator):
    # The same for the actor as it is, ReLU and tanh: mean over the batch of ∇μ(s) ∇ₐQ(s, a) at a = μ(s).
    regulator, gain = random_regulator(3, 2, DISCOUNT, seed=1)
    algorithm = make(name, 3, 2)
    give_true_q(algorithm, regulator, gain, lift)
    obs, size = normal(1, 8, 3, generator=generator), 8
    parameters = [p.detach().clone() for p in [algorithm.actor.flat]]
    action = algorithm.actor(obs)
    next_value = action.detach()[0] @ regulator.control.T + obs[0] @ regulator.dynamics.T
    slope = -2 * action.detach()[0] @ regulator.action_cost
    slope -= 2 * DISCOUNT * next_value @ regulator.value_matrix(gain) @ regulator.control
    expected = [torch.zeros_like(p) for p in parameters]
    for b in range(size):
        for i in range(2):
            jacobian = torch.autograd.grad(action[0, b, i], [algorithm.actor.flat], retain_graph=True)
            for total, row in zip(expected, jacobian, strict=True):
                total += row * slope[b, i] / size

    batch = Batch(obs, normal(1, 8, 2, generator=generator), torch.zeros(1, 8), obs, torch.zeros(1, 8), DISCOUNT, obs)
    for _ in range(algorithm.actor_every):
        algorithm.update(batch)
    for before, after, step in zip(parameters, [algorithm.actor.flat], expected, strict=True):
        torch.testing.assert_close(after.detach() - before, step, rtol=1e-8, atol=1e-10)


# --- the documents ---


@pytest.mark.parametrize(
    "page",
    ["theory.md", "noise.md", "improvements.md", "algorithms/ddpg.md", "algorithms/td3.md", "algorithms/td3_bc.md"],
)
def test_every_line_of_code_in_the_documents_is_one_of_the_source(page):
    files = [*(ROOT / "dpg_cli").rglob("*.py"), ROOT / "tests" / "tiny_algorithms.py"]  # the plain updates
    source = {line.strip() for path in files for line in path.read_text("utf-8").splitlines()}
    blocks = (ROOT / "docs" / page).read_text("utf-8").split("```python\n")[1:]
    quoted = [line.strip() for block in blocks for line in block.split("```")[0].splitlines() if line.strip()]
    assert quoted
    assert [line for line in quoted if line not in source] == []
