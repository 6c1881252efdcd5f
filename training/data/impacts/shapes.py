"""What a scene is drawn of: things of one outline that move. Lengths as in :mod:`.scene`; n moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ball:
    """A shaded ball of the look's colour and material around ``centre`` (n, 2), with a shadow on the floor."""

    centre: np.ndarray
    radius: float


@dataclass(frozen=True)
class Head:
    """The head of a hammer: a cylinder of the look's colour and material, as long as its ``radius`` to both sides of
    ``centre`` (n, 2), turned by ``angle`` (n,) from upright, with a shadow on the floor.
    """

    centre: np.ndarray
    radius: float
    angle: np.ndarray


@dataclass(frozen=True)
class Bar:
    """A string or a handle: a dark line of a ``width`` from ``start`` to ``end``, (n, 2) each."""

    start: np.ndarray
    end: np.ndarray
    width: float


@dataclass(frozen=True)
class Wall:
    """A low wall of the floor's material on the floor, from ``left`` to ``right`` and up to the row ``top``."""

    left: float
    right: float
    top: float


Shape = Ball | Head | Bar | Wall
