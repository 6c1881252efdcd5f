"""What happens in a clip, before it is drawn. Every kind of scene is closed form, so event times are exact.

Lengths are pixels of a picture ``WORLD`` = 64 pixels high (the renderer scales them), x to the right and y downwards;
times are seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from .looks import FLOORS, MATERIALS, SIZES, Look
from .shapes import Shape

WORLD = 64.0
GRAVITY = 240.0
REST_SPEED = 38.0  # an object that would leave an impact slower stays where it is
SLOWEST, FASTEST = 70.0, 190.0  # speeds of a first impact
EARLIEST, LATEST = 0.1, 1.4  # times of a first impact
LAST_FRAMES = 1.5  # between the last impact and the end of the clip
BALL = "ball"  # the surface of an impact of two balls


@dataclass(frozen=True)
class Event:
    """An impact: ``time`` (s), ``speed`` of approach (px/s) and the ``surface`` that was hit, a floor or ``BALL``."""

    time: float
    speed: float
    surface: str

    def to_dict(self) -> dict[str, float | str]:
        """Ready for ``json.dump``."""
        return {"time": round(self.time, 6), "speed": round(self.speed, 3), "surface": self.surface}


@dataclass(frozen=True, kw_only=True)
class Format:
    """Length, rates and size of a clip."""

    seconds: float = 2.0
    fps: int = 16
    size: int = 64
    sample_rate: int = 48_000


@dataclass(frozen=True, kw_only=True)
class Scene(Format, ABC):
    """One clip before it is drawn: the look of its object, its motion, and the few variables of its surroundings.

    ``radius`` of the object, ``floor_y`` the picture row that the floor is at, ``restitution`` of an impact,
    ``brightness`` of the background and ``light`` the horizontal side that the lamp stands on (-1 to 1).
    """

    look: Look
    radius: float
    floor_y: float
    restitution: float
    brightness: float = 1.0
    light: float = 0.0
    noise_seed: int = 0

    @classmethod
    @abstractmethod
    def sample(cls, rng: np.random.Generator, look: Look, given: Format) -> Self:
        """A random scene; its first impact comes early enough to be seen, its last one is within the clip."""

    @abstractmethod
    def events(self) -> list[Event]:
        """The impacts inside the clip, in order."""

    @abstractmethod
    def shapes(self, times: np.ndarray) -> Sequence[Shape]:
        """What is seen at ``times`` (n,), from back to front."""

    def ends_after_its_events(self) -> bool:
        """Whether there is an impact, and time to see and hear the last one."""
        events = self.events()
        return bool(events) and events[-1].time < self.seconds - LAST_FRAMES / self.fps


def sample_body(rng: np.random.Generator, look: Look) -> tuple[float, float]:
    """``radius`` and ``floor_y`` of a scene."""
    return SIZES[look.size] * rng.uniform(0.96, 1.04), rng.uniform(52.0, 56.0)


def sample_surroundings(rng: np.random.Generator, look: Look) -> dict[str, Any]:
    """The values of a scene that its motion does not depend on, and its restitution."""
    return {
        "restitution": MATERIALS[look.material] * FLOORS[look.floor] * rng.uniform(0.95, 1.05),
        "brightness": rng.uniform(0.8, 1.2),
        "light": rng.uniform(-1, 1),
        "noise_seed": int(rng.integers(2**31)),
    }
