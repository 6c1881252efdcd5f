"""Half swings of pendulums that are stopped where they hang straight, and scenes of balls on strings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from .scene import EARLIEST, FASTEST, LATEST, REST_SPEED, SLOWEST, Scene
from .shapes import Bar

PIVOT_Y = -8.0
STRING_WIDTH = 1.0
LOWEST = 3.0, 9.0  # of a ball above the floor
FREQUENCY = 3.5, 6.0  # rad/s
SMALLEST = 0.6  # amplitude, of the largest that the picture has space for


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

    @classmethod
    def sample(cls, rng: np.random.Generator, largest: float, restitution: float) -> Self:
        """Swings of nearly the ``largest`` amplitude, whose first impact has the time and the speed of one.

        They lose less of their speed than a ball that bounces does, the root of whose ``restitution`` is theirs: later
        swings can still be seen.
        """
        while True:
            frequency = rng.uniform(*FREQUENCY)
            amplitude = largest * rng.uniform(SMALLEST, 1.0)
            first = rng.uniform(EARLIEST, min(LATEST, np.pi / frequency))
            swings = cls(first, amplitude, frequency, np.sqrt(restitution))
            if SLOWEST <= swings.speed <= FASTEST:
                return swings

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


@dataclass(frozen=True, kw_only=True)
class HangingScene(Scene):
    """A scene around ``x`` of balls on strings, their undersides ``lift`` above the floor where they hang straight."""

    x: float
    lift: float
    swings: Swings

    def hanging(self, x: float, away: np.ndarray) -> np.ndarray:
        """Centre (n, 2) of a ball that hangs at ``x`` and is ``away`` (n,) to the right of it: on a circle around a
        pivot above the picture.
        """
        length = self.floor_y - self.radius - self.lift - PIVOT_Y
        return np.stack([x + away, PIVOT_Y + np.sqrt(length**2 - away**2)], axis=1)

    def string(self, x: float, centre: np.ndarray) -> Bar:
        """From the pivot of a ball that hangs at ``x`` to its ``centre`` (n, 2)."""
        return Bar(np.broadcast_to([x, PIVOT_Y], centre.shape), centre, STRING_WIDTH)
