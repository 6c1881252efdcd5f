"""Half swings of a pendulum that is stopped where it hangs straight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import REST_SPEED


@dataclass(frozen=True)
class Swings:
    """Half waves ``amplitude * |sin|`` of a ``frequency`` (rad/s), the first of which ends at ``first`` (s).

    Each is smaller than the one before it by the ``restitution``; one that would begin slower than ``REST_SPEED`` is
    left out, and all after it.
    """

    first: float
    amplitude: float
    frequency: float
    restitution: float

    @property
    def speed(self) -> float:
        """Of the first impact."""
        return self.amplitude * self.frequency

    def impacts(self, seconds: float) -> list[tuple[float, float]]:
        """Time (s) and speed of the impacts before ``seconds``."""
        found, time, speed = [], self.first, self.speed
        while time < seconds:
            found.append((time, speed))
            speed *= self.restitution
            if speed < REST_SPEED:
                break
            time += np.pi / self.frequency
        return found

    def distance(self, times: np.ndarray) -> np.ndarray:
        """How far it is from where it is stopped at ``times`` (n,)."""
        phase = (times - self.first) * self.frequency / np.pi  # whole at an impact
        number = np.maximum(np.floor(phase) + 1, 0)  # of impacts so far
        speeds = self.speed * self.restitution**number
        swinging = (number == 0) | (speeds >= REST_SPEED)
        return np.where(swinging, speeds / self.frequency * np.abs(np.sin(np.pi * phase)), 0.0)
