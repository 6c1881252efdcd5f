"""A ball that swings on a string against a wall, until it hangs still."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from .looks import Look
from .scene import (
    EARLIEST,
    FASTEST,
    LATEST,
    SLOWEST,
    WORLD,
    Event,
    Format,
    Scene,
    sample_body,
    sample_surroundings,
)
from .shapes import Ball, Bar, Wall
from .swings import Swings

PIVOT_Y = -8.0
STRING_WIDTH = 1.0
WALL_WIDTH = 6.0
LOWEST = 3.0, 9.0  # of the ball above the floor
FREQUENCY = 4.0, 8.0  # rad/s


@dataclass(frozen=True, kw_only=True)
class Swing(Scene):
    """The ball hangs at ``x``, its underside ``lift`` above the floor, and touches the wall on the left (``side`` -1)
    or on the right (1) when it hangs straight.
    """

    x: float
    lift: float
    side: int
    swings: Swings

    @classmethod
    def sample(cls, rng: np.random.Generator, look: Look, given: Format) -> Self:
        radius, floor_y = sample_body(rng, look)
        lift = rng.uniform(*LOWEST)
        side = 1 if rng.random() < 0.5 else -1
        from_wall = rng.uniform(radius + 1.5, radius + 1.5 + WALL_WIDTH)
        x = WORLD - from_wall if side == 1 else from_wall
        surroundings = sample_surroundings(rng, look)
        room = WORLD - from_wall - radius - 1.5
        while True:
            frequency = rng.uniform(*FREQUENCY)
            amplitude = rng.uniform(10.0, room)
            first = rng.uniform(EARLIEST, min(LATEST, np.pi / frequency))
            swings = Swings(first, amplitude, frequency, surroundings["restitution"])
            if not SLOWEST <= swings.speed <= FASTEST:
                continue
            scene = cls(
                look=look,
                radius=radius,
                floor_y=floor_y,
                x=x,
                lift=lift,
                side=side,
                swings=swings,
                **surroundings,
                **asdict(given),
            )
            if scene.ends_after_its_events():
                return scene

    def events(self) -> list[Event]:
        return [Event(time, speed, self.look.floor) for time, speed in self.swings.impacts(self.seconds)]

    def positions(self, times: np.ndarray) -> np.ndarray:
        """Centre of the ball (n, 2) at ``times`` (n,): on a circle around the pivot above the picture."""
        away = self.swings.distance(times)
        length = self.floor_y - self.radius - self.lift - PIVOT_Y
        return np.stack([self.x - self.side * away, PIVOT_Y + np.sqrt(length**2 - away**2)], axis=1)

    def shapes(self, times: np.ndarray) -> tuple[Wall, Bar, Ball]:
        centre = self.positions(times)
        face = self.x + self.side * self.radius
        edge = WORLD if self.side == 1 else 0.0
        top = self.floor_y - self.lift - 2.4 * self.radius
        pivot = np.broadcast_to([self.x, PIVOT_Y], centre.shape)
        return (
            Wall(min(face, edge), max(face, edge), top),
            Bar(pivot, centre, STRING_WIDTH),
            Ball(centre, self.radius),
        )
