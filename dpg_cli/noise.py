"""Exploration noise: added to the policy's actions, which lie in [-1, 1].

Every member and environment draws from its own generator. A noise's fields are its hyperparameters, as in
`configs/noise/<name>.yaml`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np

from dpg_cli.ranges import Count, NonNegative, Positive, SpectralExponent

BLOCK = 16  # steps drawn at once, since an update evicts NumPy's code from the caches
DEFAULT_SERIES = 1_000  # steps of a colored series if episodes have no time limit
LONGEST_SERIES = 10_000


@dataclass(kw_only=True, eq=False)
class Noise:
    """A noise process for every member and environment.

    Args:
        action_dim: A, the size of an action.
        generators: by member and environment, S lists of E.
        episode_steps: the time limit of an episode; None for unlimited episodes.
    """

    action_dim: InitVar[int]
    generators: InitVar[Sequence[Sequence[np.random.Generator]]]
    episode_steps: InitVar[int | None]

    def __post_init__(
        self, action_dim: int, generators: Sequence[Sequence[np.random.Generator]], episode_steps: int | None
    ) -> None:
        """Keep the generators; nothing is drawn yet."""
        self._generators = generators
        self._shape = (len(generators), len(generators[0]), action_dim)
        self._drawn = np.empty((0, *self._shape))  # ahead, for the next steps
        self._used = 0
        self._before: list[list[Any]] = []  # the generators' states before `_drawn` was drawn

    def scale_at(self, step: int) -> float:
        """The scale at an environment step, in units of half the action range."""
        raise NotImplementedError

    def sample(self, step: int) -> np.ndarray:
        """Noise for one step of every environment, `(S, E, A)`."""
        raise NotImplementedError

    def reset(self, ended: np.ndarray) -> None:
        """Reset the noise where an episode ended: `ended`, `(S, E)`, is true there."""

    def state(self, member: int) -> dict[str, Any]:
        """The state of one member's noise, from which it resumes exactly."""
        self._give_back()
        return {"random": [g.bit_generator.state for g in self._generators[member]]}

    def load_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore states from `state()`, one per member."""
        self._drawn, self._used = self._drawn[:0], 0
        for generators, state in zip(self._generators, states, strict=True):
            for generator, own in zip(generators, state["random"], strict=True):
                generator.bit_generator.state = own

    def _standard_normal(self) -> np.ndarray:
        """N(0, 1) for one step of every environment, `(S, E, A)`."""
        if self._used == len(self._drawn):
            self._before = [[g.bit_generator.state for g in member] for member in self._generators]
            self._drawn, self._used = self._draw(BLOCK), 0
        self._used += 1
        drawn: np.ndarray = self._drawn[self._used - 1]
        return drawn

    def _draw(self, steps: int) -> np.ndarray:
        """`(steps, S, E, A)`, the same numbers as from single draws."""
        size = (steps, self._shape[-1])
        draws = np.array([[g.standard_normal(size) for g in member] for member in self._generators])
        return np.moveaxis(draws, 2, 0)

    def _give_back(self) -> None:
        """Rewind the generators to their states after the last number that was used."""
        used = self._used
        if used < len(self._drawn):
            for generators, states in zip(self._generators, self._before, strict=True):
                for generator, state in zip(generators, states, strict=True):
                    generator.bit_generator.state = state
            self._draw(used)
        self._drawn, self._used = self._drawn[:0], 0


@dataclass(kw_only=True, eq=False)
class NoNoise(Noise):
    """The bare policy."""

    def scale_at(self, step: int) -> float:
        """0."""
        return 0.0

    def sample(self, step: int) -> np.ndarray:
        """Zeros, `(S, E, A)`."""
        return np.zeros(self._shape)


@dataclass(kw_only=True, eq=False)
class Gaussian(Noise):
    """N(0, scale²), independent at every step (Fujimoto et al. 2018)."""

    scale: NonNegative
    final_scale: NonNegative
    decay_steps: Count | None  # None: the scale is constant

    def scale_at(self, step: int) -> float:
        """See `linear_decay`."""
        return linear_decay(step, self.scale, self.final_scale, self.decay_steps)

    def sample(self, step: int) -> np.ndarray:
        """Noise for one step of every environment, `(S, E, A)`."""
        return self.scale_at(step) * self._standard_normal()


@dataclass(kw_only=True, eq=False)
class RandomScale(Noise):
    """N(0, σ²), independent at every step, with σ ~ U(scale_min, scale_max) drawn anew in each episode (FastTD3: Seo et
    al. 2025, arXiv:2505.22642). So environments side by side explore differently far from the policy.
    """

    scale_min: NonNegative
    scale_max: NonNegative

    def __post_init__(
        self, action_dim: int, generators: Sequence[Sequence[np.random.Generator]], episode_steps: int | None
    ) -> None:
        """Start with no scale drawn. Each step draws one number more than the action has, in case it sets a scale."""
        super().__post_init__(action_dim + 1, generators, episode_steps)
        self._scale = np.zeros(self._shape[:2])
        self._starts = np.ones(self._shape[:2], bool)  # where an episode starts, so that the next step sets the scale

    def scale_at(self, step: int) -> float:
        """The mean of all scales."""
        return (self.scale_min + self.scale_max) / 2

    def sample(self, step: int) -> np.ndarray:
        """Noise for one step of every environment, `(S, E, A)`."""
        drawn = self._standard_normal()
        for cell in map(tuple, np.argwhere(self._starts)):
            share = (1 + math.erf(drawn[cell][-1] / math.sqrt(2))) / 2  # uniform in [0, 1]
            self._scale[cell] = self.scale_min + share * (self.scale_max - self.scale_min)
        self._starts[:] = False
        noise: np.ndarray = self._scale[..., None] * drawn[..., :-1]
        return noise

    def reset(self, ended: np.ndarray) -> None:
        """Draw a new scale where an episode ended."""
        self._starts[ended] = True

    def state(self, member: int) -> dict[str, Any]:
        """The generators, the scales, and where they are to be drawn."""
        own = {"scale": self._scale[member].copy(), "starts": self._starts[member].astype(np.int64)}
        return super().state(member) | own

    def load_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore states from `state()`, one per member.

        Raises:
            ValueError: a scale is out of range.
        """
        super().load_state(states)
        self._scale[...] = np.reshape([state["scale"] for state in states], self._scale.shape)
        self._starts[...] = np.reshape([state["starts"] for state in states], self._starts.shape)
        low, high = sorted((self.scale_min, self.scale_max))
        if not (self._starts | (low <= self._scale) & (self._scale <= high)).all():
            raise ValueError("a scale of the noise is out of range")


@dataclass(kw_only=True, eq=False)
class OrnsteinUhlenbeck(Noise):
    """x ← x - θ x dt + √dt N(0, 1), from 0 at an episode's start; the noise is scale · x (Lillicrap et al. 2016)."""

    scale: NonNegative
    final_scale: NonNegative
    decay_steps: Count | None  # None: the scale is constant
    theta: NonNegative
    dt: Positive

    def __post_init__(
        self, action_dim: int, generators: Sequence[Sequence[np.random.Generator]], episode_steps: int | None
    ) -> None:
        """Start at 0."""
        super().__post_init__(action_dim, generators, episode_steps)
        self._x = np.zeros(self._shape)

    def scale_at(self, step: int) -> float:
        """See `linear_decay`."""
        return linear_decay(step, self.scale, self.final_scale, self.decay_steps)

    def sample(self, step: int) -> np.ndarray:
        """Noise for one step of every environment, `(S, E, A)`."""
        self._x += -self.theta * self._x * self.dt + math.sqrt(self.dt) * self._standard_normal()
        return self.scale_at(step) * self._x

    def reset(self, ended: np.ndarray) -> None:
        """Set the process to 0 where an episode ended."""
        self._x[ended] = 0.0

    def state(self, member: int) -> dict[str, Any]:
        """The generators and the value of the process."""
        return super().state(member) | {"x": self._x[member].copy()}

    def load_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore states from `state()`, one per member."""
        super().load_state(states)
        self._x[...] = np.reshape([state["x"] for state in states], self._shape)


@dataclass(kw_only=True, eq=False)
class PowerLaw(Noise):
    """Noise with a power spectrum ∝ f^-β, in series of T steps (Timmer & König 1995).

    Each action component has its own series. A new series starts with each episode, and where one is used up within an
    episode. T is the time limit of an episode, as in Eberhard et al. 2023: a longer series would have part of its power
    at frequencies too low to vary within an episode.
    """

    scale: NonNegative
    final_scale: NonNegative
    decay_steps: Count | None  # None: the scale is constant

    def __post_init__(
        self, action_dim: int, generators: Sequence[Sequence[np.random.Generator]], episode_steps: int | None
    ) -> None:
        """Start with every series used up, so that a series is drawn when its first number is needed."""
        super().__post_init__(action_dim, generators, episode_steps)
        self._steps = series_steps(episode_steps)
        self._amplitude = amplitudes(self._exponent(), self._steps)
        members, envs, _ = self._shape
        self._series = np.zeros((members, envs, self._steps, action_dim))
        self._position = np.full((members, envs), self._steps, np.int64)  # of the next step in its series
        self._cells = np.indices((members, envs), sparse=True)

    def _exponent(self) -> float:
        """β."""
        raise NotImplementedError

    def scale_at(self, step: int) -> float:
        """See `linear_decay`."""
        return linear_decay(step, self.scale, self.final_scale, self.decay_steps)

    def sample(self, step: int) -> np.ndarray:
        """Noise for one step of every environment, `(S, E, A)`."""
        for member, env in np.argwhere(self._position == self._steps):
            self._series[member, env] = self._draw_series(self._generators[member][env])
            self._position[member, env] = 0
        drawn: np.ndarray = self._series[(*self._cells, self._position)]
        self._position += 1
        return self.scale_at(step) * drawn

    def reset(self, ended: np.ndarray) -> None:
        """End the series where an episode ended."""
        self._position[ended] = self._steps

    def state(self, member: int) -> dict[str, Any]:
        """The generators, the series and the positions in them."""
        own = {"series": self._series[member].copy(), "position": self._position[member].copy()}
        return super().state(member) | own

    def load_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore states from `state()`, one per member.

        Raises:
            ValueError: a series is not finite, or a position is not in its series.
        """
        super().load_state(states)
        for member, state in enumerate(states):
            self._series[member] = np.reshape(state["series"], self._series.shape[1:])
            self._position[member] = np.reshape(state["position"], self._position.shape[1:])
        if not np.isfinite(self._series).all():
            raise ValueError("a series of the noise is not finite")
        if ((self._position < 0) | (self._position > self._steps)).any():
            raise ValueError("a position of the noise is not in its series")

    def _draw_series(self, generator: np.random.Generator) -> np.ndarray:
        """`(T, A)`."""
        real, imaginary = generator.standard_normal((2, self._shape[-1], len(self._amplitude)))
        imaginary[:, 0] = 0.0
        if self._steps % 2 == 0:
            imaginary[:, -1] = 0.0
        series: np.ndarray = np.fft.irfft(self._amplitude * (real + 1j * imaginary), n=self._steps)
        return series.T


@dataclass(kw_only=True, eq=False)
class Colored(PowerLaw):
    """Power spectrum ∝ f^-β in each episode (Eberhard et al. 2023): 0 is white, 1 pink, 2 red."""

    beta: SpectralExponent

    def _exponent(self) -> float:
        return self.beta


@dataclass(kw_only=True, eq=False)
class Pink(PowerLaw):
    """Power spectrum ∝ 1/f in each episode (Eberhard et al. 2023): between independent noise and a random walk."""

    def _exponent(self) -> float:
        return 1.0


def series_steps(episode_steps: int | None) -> int:
    """T, the steps of a series of `PowerLaw`, given the time limit of an episode; None for unlimited episodes."""
    return DEFAULT_SERIES if episode_steps is None else min(max(episode_steps, 2), LONGEST_SERIES)


def amplitudes(beta: float, steps: int) -> np.ndarray:
    """Standard deviations of the Fourier coefficients of a series with a power spectrum ∝ f^-β (Timmer & König 1995).

    The series has a standard deviation of 1 around its mean. The mean is random too: frequency 0 has the power of 1/T.

    Args:
        beta: β.
        steps: T, at least 2.

    Returns:
        `(T // 2 + 1,)`, for the real and the imaginary parts alike.
    """
    frequency = np.fft.rfftfreq(steps)
    frequency[0] = frequency[1]
    amplitude = frequency ** (-beta / 2)
    counted = amplitude[1:].copy()
    real = [0]  # coefficients without an imaginary part
    if steps % 2 == 0:
        counted[-1] /= 2  # as in the package `colorednoise`, whose series these are
        real.append(-1)
    deviation: float = 2 * np.sqrt((counted**2).sum()) / steps
    amplitude[real] *= math.sqrt(2)
    return amplitude / deviation


def linear_decay(step: int, scale: float, final_scale: float, decay_steps: int | None) -> float:
    """Linear from `scale` at step 0 to `final_scale` at `decay_steps` and after; `scale` if `decay_steps` is None."""
    if decay_steps is None:
        return scale
    return scale + min(step / decay_steps, 1.0) * (final_scale - scale)


NOISES: dict[str, type[Noise]] = {
    "colored": Colored,
    "gaussian": Gaussian,
    "none": NoNoise,
    "ou": OrnsteinUhlenbeck,
    "pink": Pink,
    "random_scale": RandomScale,
}
