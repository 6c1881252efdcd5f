"""What happens in a clip: one ball, one floor, gravity. Everything is closed form, so event times are exact.

Lengths are pixels of a picture ``WORLD`` = 64 pixels high (the renderer scales them), times are seconds, heights are
measured upwards from the floor to the underside of the ball.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from typing import Literal

import numpy as np

WORLD = 64.0
GRAVITY = 240.0
REST_SPEED = 38.0
ROLL_SECONDS = 0.35

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
SIZES = {"small": 6.5, "medium": 9.0, "large": 12.0}
MATERIALS = {"rubber": 0.80, "glass": 0.66, "metal": 0.60, "wood": 0.52}
FLOORS = {"stone": 1.04, "metal": 1.0, "wood": 0.93}

Split = Literal["train", "unseen"]


@dataclass(frozen=True)
class Look:
    """The attributes that a caption names."""

    color: str
    size: str
    material: str
    floor: str

    @property
    def unseen(self) -> bool:
        """Whether this combination is held out of training (one in six, fixed for ever)."""
        return zlib.crc32(" ".join((self.color, self.size, self.material, self.floor)).encode()) % 6 == 0


@dataclass(frozen=True)
class Event:
    """An impact: ``time`` (s), ``speed`` of approach (px/s) and the ``surface`` that was hit."""

    time: float
    speed: float
    surface: str

    def to_dict(self) -> dict[str, float | str]:
        """Ready for ``json.dump``."""
        return {"time": round(self.time, 6), "speed": round(self.speed, 3), "surface": self.surface}


@dataclass(frozen=True)
class Scene:
    """One clip before it is drawn: the look, the initial motion and the few smooth variables of the surroundings.

    ``height`` and ``velocity`` (upwards) at time 0, ``x`` and ``drift`` of the centre, ``floor_y`` the picture row
    that the ball stands on, ``brightness`` of the background and ``light`` the horizontal side the lamp stands on (-1
    to 1).
    """

    look: Look
    radius: float
    floor_y: float
    height: float
    velocity: float
    x: float
    drift: float
    restitution: float
    brightness: float = 1.0
    light: float = 0.0
    noise_seed: int = 0
    seconds: float = 2.0
    fps: int = 16
    size: int = 64
    sample_rate: int = 48_000

    def flights(self) -> list[tuple[float, float, float]]:
        """Parabolas as (start time, start height, upward start speed); after the last one the ball stands on the
        floor.
        """
        flights = [(0.0, self.height, self.velocity)]
        while True:
            start, height, velocity = flights[-1]
            speed = math.sqrt(velocity**2 + 2 * GRAVITY * height)
            landing = start + (velocity + speed) / GRAVITY
            rebound = self.restitution * speed
            flights.append((landing, 0.0, rebound if rebound >= REST_SPEED else 0.0))
            if rebound < REST_SPEED or landing >= self.seconds:
                return flights

    def events(self) -> list[Event]:
        """The impacts inside the clip, in order."""
        flights = self.flights()
        return [
            Event(landing, math.sqrt(velocity**2 + 2 * GRAVITY * height), self.look.floor)
            for (_, height, velocity), (landing, _, _) in pairwise(flights)
            if landing < self.seconds
        ]

    def positions(self, times: np.ndarray) -> np.ndarray:
        """Centre of the ball (n, 2) as x, y in picture coordinates (y downwards) at ``times`` (n,)."""
        flights = self.flights()
        starts, heights, velocities = np.array(flights).T
        which = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, len(flights) - 1)
        t = times - starts[which]
        height = heights[which] + velocities[which] * t - 0.5 * GRAVITY * t**2
        rest = starts[-1]
        rolling = np.maximum(times - rest, 0)
        travelled = np.minimum(times, rest) + ROLL_SECONDS * (1 - np.exp(-rolling / ROLL_SECONDS))
        lift = np.where(times >= rest, 0.0, np.maximum(height, 0.0))
        return np.stack([self.x + self.drift * travelled, self.floor_y - self.radius - lift], axis=1)


@cache
def looks(split: Split) -> tuple[Look, ...]:
    """All combinations of a split; ``train`` and ``unseen`` share none. Raises ``ValueError`` for another split."""
    if split not in ("train", "unseen"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'unseen'")
    every = (Look(*values) for values in product(COLORS, SIZES, MATERIALS, FLOORS))
    return tuple(look for look in every if look.unseen == (split == "unseen"))


def sample_scene(
    rng: np.random.Generator,
    split: Split = "train",
    *,
    seconds: float = 2.0,
    fps: int = 16,
    size: int = 64,
    sample_rate: int = 48_000,
) -> Scene:
    """A random scene with its first impact between 0.1 s and about 1.2 s, and its last one within the clip."""
    choices = looks(split)
    look = choices[rng.integers(len(choices))]
    radius = SIZES[look.size] * rng.uniform(0.96, 1.04)
    floor_y = rng.uniform(52.0, 56.0)
    headroom = floor_y - 2 * radius - 1.0
    margin = radius + 1.5
    x, goal = rng.uniform(margin, WORLD - margin, size=2)
    restitution = MATERIALS[look.material] * FLOORS[look.floor] * rng.uniform(0.95, 1.05)
    brightness, light = rng.uniform(0.8, 1.2), rng.uniform(-1, 1)
    noise_seed = int(rng.integers(2**31))
    while True:
        first = rng.uniform(0.1, 1.4)
        height = rng.uniform(0.0, headroom)
        velocity = GRAVITY * first / 2 - height / first
        speed = GRAVITY * first - velocity
        highest = height + max(velocity, 0.0) ** 2 / (2 * GRAVITY)
        rebound = (restitution * speed) ** 2 / (2 * GRAVITY)
        if max(highest, rebound) > headroom or not 70 <= speed <= 190:
            continue
        scene = Scene(
            look, radius, floor_y, height, velocity, x, float(np.clip((goal - x) / seconds, -14, 14)), restitution,
            brightness, light, noise_seed, seconds, fps, size, sample_rate,
        )  # fmt: skip
        events = scene.events()
        if events and events[-1].time < seconds - 1.5 / fps:
            return scene
