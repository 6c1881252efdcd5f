"""A ball that swings on a string against a wall, until it hangs still."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from .looks import Look
from .scene import (
    WORLD,
    Event,
    Format,
    sample_body,
    sample_surroundings,
)
from .shapes import Ball, Bar, Wall
from .swings import LOWEST, HangingScene, Swings

WALL_WIDTH = 6.0
SIZE = 0.8  # of a ball that bounces, so that it has space to swing


@dataclass(frozen=True, kw_only=True)
class Swing(HangingScene):
    """The ball touches the wall on the left (``side`` -1) or on the right (1) when it hangs straight, at ``x``."""

    side: int

    @classmethod
    def sample(cls, rng: np.random.Generator, look: Look, given: Format) -> Self:
        radius, floor_y = sample_body(rng, look)
        radius *= SIZE
        lift = rng.uniform(*LOWEST)
        side = 1 if rng.random() < 0.5 else -1
        from_wall = rng.uniform(radius + 1.5, radius + 1.5 + WALL_WIDTH)
        x = WORLD - from_wall if side == 1 else from_wall
        surroundings = sample_surroundings(rng, look)
        largest = WORLD - from_wall - radius - 1.5
        while True:
            scene = cls(
                look=look,
                radius=radius,
                floor_y=floor_y,
                x=x,
                lift=lift,
                side=side,
                swings=Swings.sample(rng, largest, surroundings["restitution"]),
                **surroundings,
                **asdict(given),
            )
            if scene.ends_after_its_events():
                return scene

    def events(self) -> list[Event]:
        return [Event(time, speed, self.look.floor) for time, speed in self.swings.impacts(self.seconds)]

    def positions(self, times: np.ndarray) -> np.ndarray:
        """Centre of the ball (n, 2) at ``times`` (n,)."""
        return self.hanging(self.x, -self.side * self.swings.distance(times))

    def shapes(self, times: np.ndarray) -> tuple[Wall, Bar, Ball]:
        centre = self.positions(times)
        face = self.x + self.side * self.radius
        edge = WORLD if self.side == 1 else 0.0
        top = self.floor_y - self.lift - 2.4 * self.radius
        return (
            Wall(min(face, edge), max(face, edge), top),
            self.string(self.x, centre),
            Ball(centre, self.radius),
        )
