"""Two balls on strings that collide, part, and collide again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from .looks import Look
from .scene import (
    BALL,
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
from .shapes import Ball, Bar
from .swing import FREQUENCY, LOWEST, PIVOT_Y, STRING_WIDTH
from .swings import Swings

MOST_COMMON = 0.5
SIZE = 0.75  # of a ball that is alone, so that two have room to swing


@dataclass(frozen=True, kw_only=True)
class Collision(Scene):
    """The balls touch at ``x`` when both hang straight, their undersides ``lift`` above the floor.

    Of equal mass, they move apart by ``swings``, each by half of it, and together by ``common`` times the amplitude:
    1 or -1 would be a ball that strikes one at rest.
    """

    x: float
    lift: float
    common: float
    swings: Swings

    @classmethod
    def sample(cls, rng: np.random.Generator, look: Look, given: Format) -> Self:
        radius, floor_y = sample_body(rng, look)
        radius *= SIZE
        lift = rng.uniform(*LOWEST)
        common = rng.uniform(-MOST_COMMON, MOST_COMMON)
        reach = WORLD / 2 - 2 * radius - 1.0
        x = WORLD / 2 + rng.uniform(-0.3, 0.3) * reach
        surroundings = sample_surroundings(rng, look)
        room = 2 * (reach - abs(x - WORLD / 2)) / (1 + abs(common))  # of the distance between the balls
        while True:
            frequency = rng.uniform(*FREQUENCY)
            amplitude = rng.uniform(0.3 * room, room)
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
                common=common,
                swings=swings,
                **surroundings,
                **asdict(given),
            )
            if scene.ends_after_its_events():
                return scene

    def events(self) -> list[Event]:
        return [Event(time, speed, BALL) for time, speed in self.swings.impacts(self.seconds)]

    def positions(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centres of the balls, (n, 2) each, at ``times`` (n,)."""
        apart = self.radius + self.swings.distance(times) / 2
        phase = self.swings.frequency * (times - self.swings.first)
        together = self.common * self.swings.amplitude / 2 * np.sin(phase)
        length = self.floor_y - self.radius - self.lift - PIVOT_Y

        def hanging(side: int) -> np.ndarray:
            away = together + side * (apart - self.radius)
            x = self.x + side * self.radius + away
            return np.stack([x, PIVOT_Y + np.sqrt(length**2 - away**2)], axis=1)

        return hanging(-1), hanging(1)

    def shapes(self, times: np.ndarray) -> tuple[Bar, Bar, Ball, Ball]:
        left, right = self.positions(times)
        pivots = [np.broadcast_to([self.x + side * self.radius, PIVOT_Y], left.shape) for side in (-1, 1)]
        return (
            Bar(pivots[0], left, STRING_WIDTH),
            Bar(pivots[1], right, STRING_WIDTH),
            Ball(left, self.radius),
            Ball(right, self.radius),
        )
