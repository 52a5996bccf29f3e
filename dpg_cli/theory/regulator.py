"""A discounted linear-quadratic regulator, and the policy gradient theorems in closed form.

State s (n), action a (m), discount γ. With a linear policy, deterministic or Gaussian,

    s' = A s + B a + w,  w ~ N(0, W),  s₀ ~ N(0, Σ₀)        reward = -(sᵀM s + aᵀN a)
    a = K s + σ ξ,       ξ ~ N(0, I)

value, Q, return and discounted state distribution have closed forms, so that the approximations of learning can be
compared with the truth. The gain K is μ's parameter θ throughout. Everything is float64.

Sources: Silver et al. 2014, "Deterministic policy gradient algorithms" (theorems and equations by their numbers
there); Bertsekas, "Dynamic programming and optimal control", for the regulator.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Regulator:
    """A discounted linear-quadratic regulator: n states, m actions.

    Args:
        dynamics: A, `(n, n)`.
        control: B, `(n, m)`.
        state_cost: M, `(n, n)`, symmetric.
        action_cost: N, `(m, m)`, symmetric and positive definite.
        process_noise: W, `(n, n)`, a covariance; positive definite if states are sampled.
        start: Σ₀, `(n, n)`, the covariance of the first state, positive definite, so that Σ has a Cholesky root.
        discount: γ per step, below 1.
    """

    dynamics: Tensor
    control: Tensor
    state_cost: Tensor
    action_cost: Tensor
    process_noise: Tensor
    start: Tensor
    discount: float

    def closed_loop(self, gain: Tensor) -> Tensor:
        """F = A + B K, `(n, n)`: the mean of s' is F s."""
        return self.dynamics + self.control @ gain

    def value_matrix(self, gain: Tensor) -> Tensor:
        """P with V(s) = -sᵀP s - c, `(n, n)`: P = M + KᵀN K + γ FᵀP F (Bellman's equation).

        Raises:
            ValueError: the policy's return is infinite.
        """
        cost = self.state_cost + gain.T @ self.action_cost @ gain
        return discounted_sum(self.closed_loop(gain).T, cost, self.discount)

    def value_offset(self, gain: Tensor, sigma: float = 0.0) -> Tensor:
        """c, the cost of both noises from any state: (σ² tr(N + γ BᵀP B) + γ tr(P W)) / (1 - γ)."""
        exploration = sigma**2 * self.curvature(gain).trace()
        disturbance = self.discount * (self.value_matrix(gain) @ self.process_noise).trace()
        return (exploration + disturbance) / (1 - self.discount)

    def value(self, gain: Tensor, obs: Tensor, sigma: float = 0.0) -> Tensor:
        """V(s) = -sᵀP s - c: states `(..., n)` to `(...)`."""
        return -quadratic(self.value_matrix(gain), obs) - self.value_offset(gain, sigma)

    def q(self, gain: Tensor, obs: Tensor, action: Tensor, sigma: float = 0.0) -> Tensor:
        """Q(s, a) = r(s, a) + γ E[V(s')]: states `(..., n)` and actions `(..., m)` to `(...)`."""
        next_mean = obs @ self.dynamics.T + action @ self.control.T
        next_value = self.value(gain, next_mean, sigma) - (self.value_matrix(gain) @ self.process_noise).trace()
        return self.reward(obs, action) + self.discount * next_value

    def reward(self, obs: Tensor, action: Tensor) -> Tensor:
        """-(sᵀM s + aᵀN a): states `(..., n)` and actions `(..., m)` to `(...)`."""
        return -quadratic(self.state_cost, obs) - quadratic(self.action_cost, action)

    def expected_return(self, gain: Tensor, sigma: float = 0.0) -> Tensor:
        """J = E[V(s₀)] = -tr(P Σ₀) - c, a scalar."""
        return -(self.value_matrix(gain) @ self.start).trace() - self.value_offset(gain, sigma)

    def state_moment(self, gain: Tensor, sigma: float = 0.0) -> Tensor:
        """Σ = ∫ρ(s) s sᵀ ds, `(n, n)`, of the discounted state distribution ρ(s) = Σₜ γᵗ p(sₜ = s).

        Σ = Σ₀ + γ (F Σ Fᵀ + (W + σ² B Bᵀ) / (1 - γ)). As in Silver et al. 2014, section 2.1, ρ is not normalised:
        its mass is 1 / (1 - γ).
        """
        noise = self.process_noise + sigma**2 * self.control @ self.control.T
        arriving = self.start + self.discount / (1 - self.discount) * noise
        return discounted_sum(self.closed_loop(gain), arriving, self.discount)

    def curvature(self, gain: Tensor) -> Tensor:
        """H = N + γ BᵀP B, `(m, m)`: Q's second derivative with respect to the action is -2 H."""
        return self.action_cost + self.discount * self.control.T @ self.value_matrix(gain) @ self.control

    def action_gradient(self, gain: Tensor) -> Tensor:
        """G with ∇ₐQ(s, a) = G s at a = K s, `(m, n)`: G = -2 (N K + γ BᵀP F)."""
        future = self.discount * self.control.T @ self.value_matrix(gain) @ self.closed_loop(gain)
        return -2 * (self.action_cost @ gain + future)

    def policy_gradient(self, gain: Tensor, sigma: float = 0.0) -> Tensor:
        """The theorem's expression, ∫ρ(s) ∇μ(s) ∇ₐQ(s, a) ds at a = μ(s), `(m, n)`: G Σ.

        σ = 0 is the deterministic policy gradient (Theorem 1, equation 9). σ > 0 is the stochastic one,
        ∫ρ(s) ∫∇π(a|s) Q(s, a) da ds (equation 2): Q is quadratic in a, so that its integral over actions is G s sᵀ
        as well, and only ρ differs.
        """
        return self.action_gradient(gain) @ self.state_moment(gain, sigma)

    def exact_gradient(self, gain: Tensor, sigma: float = 0.0) -> Tensor:
        """∇J by differentiating the closed form of the return, `(m, n)`, without Q, ρ or any theorem."""
        gain = gain.detach().requires_grad_()
        gradient: Tensor = torch.autograd.grad(self.expected_return(gain, sigma), gain)[0]
        return gradient

    def behaviour_gradient(self, gain: Tensor, behaviour_moment: Tensor) -> Tensor:
        """The complete gradient of the off-policy objective J_β = ∫ρ^β(s) V(s) ds, `(m, n)`.

        The off-policy gradient of Silver et al. 2014, equation 15, G Σ^β, omits its term ∫ρ^β(s) ∇_θ Q(s, a) ds,
        the change of Q itself with the policy.

        Args:
            gain: K.
            behaviour_moment: Σ^β, `(n, n)`, the state moment of the behaviour; a constant that does not depend on K.
        """
        gain = gain.detach().requires_grad_()
        offset = self.value_offset(gain) / (1 - self.discount)  # ρ^β has mass 1 / (1 - γ)
        objective = -(self.value_matrix(gain) @ behaviour_moment).trace() - offset
        gradient: Tensor = torch.autograd.grad(objective, gain)[0]
        return gradient

    def sample_states(self, gain: Tensor, sigma: float, size: int, generator: torch.Generator) -> Tensor:
        """`size` states from (1 - γ) ρ, `(size, n)`: a time t with probability (1 - γ) γᵗ, then sₜ.

        Times with γᵗ ≤ 10⁻¹² are left out.
        """
        closed_loop = self.closed_loop(gain)
        noise = self.process_noise + sigma**2 * self.control @ self.control.T
        covariances = [self.start]
        while self.discount ** len(covariances) > 1e-12:
            covariances.append(closed_loop @ covariances[-1] @ closed_loop.T + noise)
        weights = self.discount ** torch.arange(len(covariances), dtype=torch.float64)
        times = torch.multinomial(weights, size, replacement=True, generator=generator)
        roots = torch.linalg.cholesky(torch.stack(covariances))
        normal = torch.randn(size, len(self.start), 1, dtype=torch.float64, generator=generator)
        states: Tensor = (roots[times] @ normal).squeeze(-1)
        return states

    def split(self, gain: Tensor, copies: int) -> tuple["Regulator", Tensor]:
        """The same problem with every actuator split into `copies` weaker ones, and the same policy for it.

        B becomes [B … B] / √copies, K becomes [K; …; K] / √copies, and the size of an action is `copies` m. The states'
        distribution, ∇J's norm and ∇ₐQ's norm do not change. The return changes only for σ > 0: each added copy costs
        the Gaussian policy σ² tr N per step.
        """
        scale = copies**-0.5
        control = scale * self.control.repeat(1, copies)
        action_cost = torch.kron(torch.eye(copies, dtype=gain.dtype), self.action_cost)
        return replace(self, control=control, action_cost=action_cost), scale * gain.repeat(copies, 1)


def random_regulator(n: int, m: int, discount: float, seed: int) -> tuple[Regulator, Tensor]:
    """A regulator with n states and m actions, and a policy of finite return that is far from optimal.

    A is 0.95 times a rotation and K so small that ‖B K‖ = 0.1: F's norm is 1.05 at most, and for a discount below
    1 / 1.05² = 0.907 the return is finite for every seed.

    Raises:
        ValueError: the discount is not below that.
    """
    if discount * 1.05**2 >= 1:
        raise ValueError(f"discount={discount}: must be below 0.907, or the policy's return may be infinite")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def covariance(size: int) -> Tensor:
        root = normal(size, size)
        return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)

    control = normal(n, m) / n**0.5
    regulator = Regulator(
        dynamics=0.95 * torch.linalg.qr(normal(n, n))[0],
        control=control,
        state_cost=covariance(n),
        action_cost=covariance(m),
        process_noise=0.1 * covariance(n),
        start=covariance(n),
        discount=discount,
    )
    gain = normal(m, n)
    return regulator, 0.1 * gain / torch.linalg.matrix_norm(control @ gain, 2)


def discounted_sum(matrix: Tensor, constant: Tensor, discount: float) -> Tensor:
    """X = Σₜ γᵗ Fᵗ C (Fᵗ)ᵀ, the solution of Lyapunov's equation X = C + γ F X Fᵀ, by vec(F X Fᵀ) = (F ⊗ F) vec(X).

    Args:
        matrix: F, `(n, n)`.
        constant: C, `(n, n)`.
        discount: γ.

    Raises:
        ValueError: the sum is infinite, that is √γ F has an eigenvalue of modulus 1 or more.
    """
    radius = torch.linalg.eigvals(matrix.detach()).abs().max().item()
    if discount * radius**2 >= 1:
        raise ValueError(f"the discounted sum is infinite: the closed loop's spectral radius is {radius:.3g}")
    n = len(matrix)
    system = torch.eye(n * n, dtype=matrix.dtype) - discount * torch.kron(matrix, matrix)
    solution: Tensor = torch.linalg.solve(system, constant.reshape(-1)).view(n, n)
    return solution


def quadratic(matrix: Tensor, x: Tensor) -> Tensor:
    """xᵀC x for each row of x: `(..., n)` to `(...)`."""
    return torch.einsum("...i,ij,...j->...", x, matrix, x)


def finite_differences(regulator: Regulator, gain: Tensor, step: float, sigma: float = 0.0) -> Tensor:
    """∇J by central differences of the return, (J(K + h) - J(K - h)) / 2h for every entry, `(m, n)`."""
    gradient = torch.empty_like(gain)
    for index in range(gain.numel()):
        shift = torch.zeros_like(gain)
        shift.view(-1)[index] = step
        higher, lower = (regulator.expected_return(gain + sign * shift, sigma) for sign in (1, -1))
        gradient.view(-1)[index] = (higher - lower) / (2 * step)
    return gradient


def compatible_weights(features: Tensor, action_gradient: Tensor, moment: Tensor) -> Tensor:
    """The least-squares w of the compatible critic Qʷ(s, a) = (a - μ(s))ᵀ ∇μ(s)ᵀ w + v(s) (Theorem 3).

    The policy is μ(s) = Σᵢ θᵢ Φᵢ s, so that ∇ₐQʷ(s, a) = Σᵢ wᵢ Φᵢ s. w minimises ∫ρ(s) ‖∇ₐQʷ - ∇ₐQ‖² ds at a = μ(s):
    it solves Σⱼ tr(ΦᵢᵀΦⱼ Σ) wⱼ = tr(ΦᵢᵀG Σ).

    Args:
        features: Φ, `(p, m, n)`.
        action_gradient: G, `(m, n)`.
        moment: Σ, `(n, n)`.

    Returns:
        `(p,)`.
    """
    gram = torch.einsum("imk,jml,kl->ij", features, features, moment)
    weights: Tensor = torch.linalg.solve(gram, torch.einsum("imk,ml,kl->i", features, action_gradient, moment))
    return weights
