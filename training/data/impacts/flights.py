"""Motion under gravity above the floor, as a chain of parabolas."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .scene import EARLIEST, FASTEST, GRAVITY, LATEST, SLOWEST


class Flight(NamedTuple):
    """A parabola that begins at ``start`` (s) at a ``height`` with an upward ``velocity``; it may end before it lands.

    One at height 0 without velocity stays on the floor.
    """

    start: float
    height: float
    velocity: float

    @property
    def landing_speed(self) -> float:
        """Downward speed at the floor."""
        return math.sqrt(self.velocity**2 + 2 * GRAVITY * self.height)

    @property
    def landing(self) -> float:
        """Time (s) at which it reaches the floor."""
        return self.start + (self.velocity + self.landing_speed) / GRAVITY


def heights(flights: list[Flight], times: np.ndarray) -> np.ndarray:
    """Height above the floor at ``times`` (n,), of the flight that is on then."""
    starts, begin, velocities = np.array(flights).T
    which = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, len(flights) - 1)
    t = times - starts[which]
    moving = (begin[which] > 0) | (velocities[which] > 0)
    return np.where(moving, np.maximum(begin[which] + velocities[which] * t - 0.5 * GRAVITY * t**2, 0.0), 0.0)


def sample_fall(rng: np.random.Generator, headroom: float) -> Flight:
    """A flight from time 0 that stays below ``headroom`` and lands at a time and with a speed of a first impact."""
    while True:
        landing = rng.uniform(EARLIEST, LATEST)
        height = rng.uniform(0.0, headroom)
        velocity = GRAVITY * landing / 2 - height / landing
        highest = height + max(velocity, 0.0) ** 2 / (2 * GRAVITY)
        if highest <= headroom and SLOWEST <= GRAVITY * landing - velocity <= FASTEST:
            return Flight(0.0, height, velocity)
