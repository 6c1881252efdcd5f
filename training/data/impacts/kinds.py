"""The kinds of events: what strikes what, and how a sentence says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .bounce import Bounce
from .collision import Collision
from .hammer import Hammer
from .looks import Split, looks
from .scene import Format, Scene
from .swing import Swing

Kind = Literal["bounce", "hammer", "swing", "collision"]


@dataclass(frozen=True)
class KindOfEvent:
    """The scenes of a kind, and ``templates`` of their captions, which name every attribute in 64 bytes at most."""

    scene: type[Scene]
    templates: tuple[str, ...]


KINDS: dict[Kind, KindOfEvent] = {
    "bounce": KindOfEvent(
        Bounce,
        (
            "a {size} {color} {material} ball bounces on a {floor} floor",
            "a {size} {color} {material} ball falls on a {floor} floor",
            "a {size} {color} {material} ball hits the {floor} floor",
            "a {color} {material} ball, {size}, drops on a {floor} floor",
            "{size} {color} {material} ball bouncing on {floor} ground",
            "on a {floor} floor a {size} {color} {material} ball bounces",
        ),
    ),
    "hammer": KindOfEvent(
        Hammer,
        (
            "a {size} {color} {material} hammer knocks on a {floor} floor",
            "a {size} {color} {material} hammer strikes a {floor} floor",
            "a {size} {color} {material} hammer beats the {floor} floor",
            "a {color} {material} hammer, {size}, pounds a {floor} floor",
            "{size} {color} {material} hammer pounding {floor} ground",
            "on a {floor} floor a {size} {color} {material} hammer knocks",
        ),
    ),
    "swing": KindOfEvent(
        Swing,
        (
            "a {size} {color} {material} ball swings against a {floor} wall",
            "a {size} {color} {material} ball on a string hits a {floor} wall",
            "a {size} {color} {material} ball swings at the {floor} wall",
            "a {color} {material} ball, {size}, swings at a {floor} wall",
            "{size} {color} {material} ball swinging against {floor} wall",
            "against a {floor} wall a {size} {color} {material} ball swings",
        ),
    ),
    "collision": KindOfEvent(
        Collision,
        (
            "two {size} {color} {material} balls collide over a {floor} floor",
            "two {size} {color} {material} balls clash over a {floor} floor",
            "two {size} {color} {material} balls meet above {floor} ground",
            "two {color} {material} balls, {size}, collide over {floor} floor",
            "{size} {color} {material} balls colliding over {floor} ground",
            "over a {floor} floor two {size} {color} {material} balls clash",
        ),
    ),
}


def check_kinds(kinds: tuple[str, ...]) -> None:
    """Raise ``ValueError`` where there are none, one is unknown, or one is named twice."""
    known = get_args(Kind)
    if not kinds:
        raise ValueError(f"kinds names no kind of event; there are {', '.join(known)}")
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ValueError(f"there is no kind of event {unknown[0]!r}; there are {', '.join(known)}")
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds are {', '.join(kinds)}; each may be named once")


def sample_scene(
    rng: np.random.Generator, split: Split = "train", kind: Kind = "bounce", given: Format | None = None
) -> Scene:
    """A random scene of a kind. Raises ``ValueError`` for another split or kind."""
    check_kinds((kind,))
    choices = looks(split)
    return KINDS[kind].scene.sample(rng, choices[rng.integers(len(choices))], given or Format())
