"""Two balls on strings that collide, part, and collide again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from .looks import Look
from .scene import (
    BALL,
    WORLD,
    Event,
    Format,
    sample_body,
    sample_surroundings,
)
from .shapes import Ball, Bar
from .swings import LOWEST, HangingScene, Swings

MOST_COMMON = 0.3
SIZE = 0.65  # of a ball that bounces, so that two have space to swing


@dataclass(frozen=True, kw_only=True)
class Collision(HangingScene):
    """The balls touch at ``x`` when both hang straight.

    Of equal mass, they move apart by ``swings``, each by half of it, and together by ``common`` times the amplitude:
    1 or -1 would be a ball that strikes one at rest.
    """

    common: float

    @classmethod
    def sample(cls, rng: np.random.Generator, look: Look, given: Format) -> Self:
        radius, floor_y = sample_body(rng, look)
        radius *= SIZE
        lift = rng.uniform(*LOWEST)
        common = rng.uniform(-MOST_COMMON, MOST_COMMON)
        reach = WORLD / 2 - 2 * radius - 1.0
        x = WORLD / 2 + rng.uniform(-0.15, 0.15) * reach
        surroundings = sample_surroundings(rng, look)
        largest = 2 * (reach - abs(x - WORLD / 2)) / (1 + abs(common))  # of the distance between the balls
        while True:
            scene = cls(
                look=look,
                radius=radius,
                floor_y=floor_y,
                x=x,
                lift=lift,
                common=common,
                swings=Swings.sample(rng, largest, surroundings["restitution"]),
                **surroundings,
                **asdict(given),
            )
            if scene.ends_after_its_events():
                return scene

    def events(self) -> list[Event]:
        return [Event(time, speed, BALL) for time, speed in self.swings.impacts(self.seconds)]

    def positions(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centres of the balls, (n, 2) each, at ``times`` (n,)."""
        swings = self.swings
        apart = swings.distance(times) / 2
        together = self.common * swings.amplitude / 2 * np.sin(swings.frequency * (times - swings.first))
        left, right = self.x - self.radius, self.x + self.radius
        return self.hanging(left, together - apart), self.hanging(right, together + apart)

    def shapes(self, times: np.ndarray) -> tuple[Bar, Bar, Ball, Ball]:
        left, right = self.positions(times)
        return (
            self.string(self.x - self.radius, left),
            self.string(self.x + self.radius, right),
            Ball(left, self.radius),
            Ball(right, self.radius),
        )
