"""Sentences that describe a scene: always colour, size, material and floor, never the timing."""

from __future__ import annotations

import numpy as np

from .kinds import KINDS, Kind
from .looks import Look

MATERIAL_WORDS = {"rubber": "rubber", "glass": "glass", "metal": "metal", "wood": "wooden"}
FLOOR_WORDS = {"stone": "stone", "metal": "metal", "wood": "wooden"}


def caption(look: Look, kind: Kind = "bounce", template: int = 0) -> str:
    """The sentence of one template; at most 64 bytes."""
    return (
        KINDS[kind]
        .templates[template]
        .format(size=look.size, color=look.color, material=MATERIAL_WORDS[look.material], floor=FLOOR_WORDS[look.floor])
    )


def sample_caption(rng: np.random.Generator, look: Look, kind: Kind = "bounce") -> str:
    """A sentence from a random template."""
    return caption(look, kind, int(rng.integers(len(KINDS[kind].templates))))
