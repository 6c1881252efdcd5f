"""A hammer that knocks on the floor: it is lifted, let fall, and rests until it is lifted again."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from .flights import Flight, heights, sample_fall
from .looks import Look
from .scene import (
    GRAVITY,
    SLOWEST,
    WORLD,
    Event,
    Format,
    Scene,
    sample_body,
    sample_surroundings,
)
from .shapes import Bar, Head

OUTSIDE = 8.0  # of the hand beyond the edge of the picture
SHORTEST_HANDLE = 34.0
REST_SECONDS = 0.28, 0.5
FASTEST_LIFT = 125.0
HANDLE_WIDTH = 2.2
STEEPEST = 0.9  # sine of the handle's angle


@dataclass(frozen=True, kw_only=True)
class Hammer(Scene):
    """The head stands at ``x``; the handle leads to a hand beyond the left (``side`` -1) or right (1) edge.

    ``height`` and ``velocity`` (upwards) of the head at time 0; after its k-th impact it rests for ``lifts[k][0]``
    seconds and is lifted with the speed ``lifts[k][1]``.
    """

    height: float
    velocity: float
    x: float
    side: int
    lifts: tuple[tuple[float, float], ...]

    @classmethod
    def sample(cls, rng: np.random.Generator, look: Look, given: Format) -> Self:
        radius, floor_y = sample_body(rng, look)
        side = 1 if rng.random() < 0.5 else -1
        distance = rng.uniform(SHORTEST_HANDLE, WORLD + OUTSIDE - 1.5 * radius)
        headroom = min(floor_y - 2.3 * radius - 1.0, STEEPEST * distance)
        x = WORLD + OUTSIDE - distance if side == 1 else distance - OUTSIDE
        surroundings = sample_surroundings(rng, look)
        highest_lift = min(FASTEST_LIFT, math.sqrt(2 * GRAVITY * headroom))
        while True:
            fall = sample_fall(rng, headroom)
            lifts, time = [], fall.landing
            while time < given.seconds:
                lifts.append((rng.uniform(*REST_SECONDS), rng.uniform(SLOWEST, highest_lift)))
                time += lifts[-1][0] + 2 * lifts[-1][1] / GRAVITY
            scene = cls(
                look=look,
                radius=radius,
                floor_y=floor_y,
                height=fall.height,
                velocity=fall.velocity,
                x=x,
                side=side,
                lifts=tuple(lifts),
                **surroundings,
                **asdict(given),
            )
            if scene.ends_after_its_events():
                return scene

    def flights(self) -> list[Flight]:
        """Parabolas, and the rests between them."""
        flights = [Flight(0.0, self.height, self.velocity)]
        for rest, speed in self.lifts:
            landing = flights[-1].landing
            flights += [Flight(landing, 0.0, 0.0), Flight(landing + rest, 0.0, speed)]
        return flights

    def events(self) -> list[Event]:
        falls = [flight for flight in self.flights() if flight.landing_speed > 0]
        return [
            Event(flight.landing, flight.landing_speed, self.look.floor)
            for flight in falls
            if flight.landing < self.seconds
        ]

    def positions(self, times: np.ndarray) -> np.ndarray:
        """Centre of the head (n, 2) at ``times`` (n,): on a circle around the hand."""
        hand, length = self._hand, abs(self._hand[0] - self.x)
        lift = heights(self.flights(), times)
        along = np.sqrt(length**2 - lift**2)
        return np.stack([hand[0] - self.side * along, hand[1] - lift], axis=1)

    def shapes(self, times: np.ndarray) -> tuple[Bar, Head]:
        centre = self.positions(times)
        hand = np.broadcast_to(self._hand, centre.shape)
        angle = self.side * np.arcsin((hand[:, 1] - centre[:, 1]) / abs(self._hand[0] - self.x))
        return Bar(hand, centre, HANDLE_WIDTH), Head(centre, self.radius, angle)

    @property
    def _hand(self) -> np.ndarray:
        return np.array([WORLD + OUTSIDE if self.side == 1 else -OUTSIDE, self.floor_y - self.radius])
