"""Sentences that describe a scene: always colour, size, material and floor, never the timing."""

from __future__ import annotations

import numpy as np

from .scene import Look

MATERIAL_WORDS = {"rubber": "rubber", "glass": "glass", "metal": "metal", "wood": "wooden"}
FLOOR_WORDS = {"stone": "stone", "metal": "metal", "wood": "wooden"}

TEMPLATES = (
    "a {size} {color} {material} ball bounces on a {floor} floor",
    "a {size} {color} {material} ball falls on a {floor} floor",
    "a {size} {color} {material} ball hits the {floor} floor",
    "a {color} {material} ball, {size}, drops on a {floor} floor",
    "{size} {color} {material} ball bouncing on {floor} ground",
    "on a {floor} floor a {size} {color} {material} ball bounces",
)


def caption(look: Look, template: int = 0) -> str:
    """The sentence of one template; at most 64 bytes."""
    return TEMPLATES[template].format(
        size=look.size, color=look.color, material=MATERIAL_WORDS[look.material], floor=FLOOR_WORDS[look.floor]
    )


def sample_caption(rng: np.random.Generator, look: Look) -> str:
    """A sentence from a random template."""
    return caption(look, int(rng.integers(len(TEMPLATES))))
