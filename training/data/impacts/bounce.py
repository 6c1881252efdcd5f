"""A ball that falls on the floor and bounces until it rests."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Self

import numpy as np

from .flights import Flight, heights, sample_fall
from .looks import Look
from .scene import (
    GRAVITY,
    REST_SPEED,
    WORLD,
    Event,
    Format,
    Scene,
    sample_body,
    sample_surroundings,
)
from .shapes import Ball

ROLL_SECONDS = 0.35
FASTEST_DRIFT = 14.0


@dataclass(frozen=True, kw_only=True)
class Bounce(Scene):
    """``height`` of the underside above the floor and ``velocity`` (upwards) at time 0, ``x`` and ``drift`` of the
    centre.
    """

    height: float
    velocity: float
    x: float
    drift: float

    @classmethod
    def sample(cls, rng: np.random.Generator, look: Look, given: Format) -> Self:
        radius, floor_y = sample_body(rng, look)
        headroom = floor_y - 2 * radius - 1.0
        margin = radius + 1.5
        x, goal = rng.uniform(margin, WORLD - margin, size=2)
        surroundings = sample_surroundings(rng, look)
        while True:
            fall = sample_fall(rng, headroom)
            if (surroundings["restitution"] * fall.landing_speed) ** 2 / (2 * GRAVITY) > headroom:
                continue  # the rebound would leave the picture
            scene = cls(
                look=look,
                radius=radius,
                floor_y=floor_y,
                height=fall.height,
                velocity=fall.velocity,
                x=x,
                drift=float(np.clip((goal - x) / given.seconds, -FASTEST_DRIFT, FASTEST_DRIFT)),
                **surroundings,
                **asdict(given),
            )
            if scene.ends_after_its_events():
                return scene

    def flights(self) -> list[Flight]:
        """After the last one the ball stands on the floor."""
        flights = [Flight(0.0, self.height, self.velocity)]
        while True:
            rebound = self.restitution * flights[-1].landing_speed
            flights.append(Flight(flights[-1].landing, 0.0, rebound if rebound >= REST_SPEED else 0.0))
            if rebound < REST_SPEED or flights[-1].start >= self.seconds:
                return flights

    def events(self) -> list[Event]:
        return [
            Event(landed.start, flight.landing_speed, self.look.floor)
            for flight, landed in pairwise(self.flights())
            if landed.start < self.seconds
        ]

    def positions(self, times: np.ndarray) -> np.ndarray:
        """Centre of the ball (n, 2) at ``times`` (n,)."""
        flights = self.flights()
        rest = flights[-1].start
        rolling = np.maximum(times - rest, 0)
        travelled = np.minimum(times, rest) + ROLL_SECONDS * (1 - np.exp(-rolling / ROLL_SECONDS))
        lift = heights(flights, times)
        return np.stack([self.x + self.drift * travelled, self.floor_y - self.radius - lift], axis=1)

    def shapes(self, times: np.ndarray) -> tuple[Ball]:
        return (Ball(self.positions(times), self.radius),)
