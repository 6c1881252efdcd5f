"""How the objects of a scene look: the attributes that a caption names, and the combinations that are held out."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
SIZES = {"small": 6.5, "medium": 9.0, "large": 12.0}  # radius, pixels of a picture WORLD high
MATERIALS = {"rubber": 0.80, "glass": 0.66, "metal": 0.60, "wood": 0.52}  # restitution on a metal floor
FLOORS = {"stone": 1.04, "metal": 1.0, "wood": 0.93}  # factor of restitution

Split = Literal["train", "unseen"]


@dataclass(frozen=True)
class Look:
    """The attributes that a caption names. ``floor`` is what is struck, be it the ground or a wall."""

    color: str
    size: str
    material: str
    floor: str

    @property
    def unseen(self) -> bool:
        """Whether this combination is held out of training (one in six, fixed for ever)."""
        return zlib.crc32(" ".join((self.color, self.size, self.material, self.floor)).encode()) % 6 == 0


@cache
def looks(split: Split) -> tuple[Look, ...]:
    """All combinations of a split; ``train`` and ``unseen`` share none. Raises ``ValueError`` for another split."""
    if split not in ("train", "unseen"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'unseen'")
    every = (Look(*values) for values in product(COLORS, SIZES, MATERIALS, FLOORS))
    return tuple(look for look in every if look.unseen == (split == "unseen"))
