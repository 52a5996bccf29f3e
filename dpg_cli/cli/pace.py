"""How fast a training is, and how long it will still take."""

import time
from collections.abc import Callable

WINDOW = 5.0  # seconds over which speed is measured


class Pace:
    """The speed of the last seconds without evaluations, and the time left including them.

    Args:
        total_steps: environment steps for each seed.
        learns_after: steps without updates, whose speed says nothing about the time left.
        clock: in seconds.

    Attributes:
        step: environment steps made by each seed.
    """

    def __init__(self, total_steps: int, learns_after: int = 0, clock: Callable[[], float] = time.monotonic):
        self._total, self._learns_after, self._clock = total_steps, learns_after, clock
        self.started(0)

    def started(self, step: int, evaluated_at: int | None = None) -> None:
        """Start to measure.

        Args:
            step: environment steps made before.
            evaluated_at: step of the last evaluation before; None if there was none.
        """
        self.step = step
        self._last = self._clock()  # when the last step or evaluation ended
        self._window = (self._last, step)  # time and step at which the present window began
        self._window_speed = 0.0  # of the last whole window
        self._evaluated_at, self._evaluation_seconds = evaluated_at, 0.0  # seconds of evaluations per training step

    def stepped(self, step: int) -> int | None:
        """Count the steps up to `step`. Returns the step at which a window began, if it ends here."""
        self.step, self._last = step, self._clock()
        since, first = self._window
        if self._last - since < WINDOW:
            return None
        self._window_speed = (step - first) / (self._last - since)
        self._window = (self._last, step)
        return first

    def evaluated(self, step: int) -> None:
        """Exclude the time since the last step, in which the policy was evaluated."""
        now = self._clock()
        seconds, self._last = now - self._last, now
        if self._evaluated_at is not None and step > self._evaluated_at:
            self._evaluation_seconds = seconds / (step - self._evaluated_at)
        self._evaluated_at = step
        since, first = self._window
        self._window = (since + seconds, first)

    @property
    def speed(self) -> float:
        """Environment steps per second and seed."""
        since, first = self._window
        return self._window_speed or (self.step - first) / max(self._last - since, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds left, with evaluations as long and as frequent as the last one; None if the speed is unknown."""
        if self._window[1] < self._learns_after < self._total:
            return None
        speed = self.speed
        return max(0, self._total - self.step) * (1 / speed + self._evaluation_seconds) if speed else None
