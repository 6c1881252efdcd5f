"""Which colour the object has, and which colour a prompt asks for."""

from __future__ import annotations

import re

import numpy as np

from ..data.impacts import PALETTE
from .tracking import track_object

INSIDE = 0.9
DARKEST = 60

_RGB_TO_CONE = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_CONE_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def object_color(frames: np.ndarray) -> str | None:
    """Name of the palette's colour that the object of ``frames`` uint8 (F, H, W, 3) has; ``None`` when no object is
    found.

    Light and shade are divided out pixel by pixel; the median of what remains goes to the nearest palette colour in
    Oklab.
    """
    mask = track_object(frames).mask >= INSIDE
    pixels = frames[mask].astype(float)
    pixels = pixels[pixels.max(axis=-1) >= DARKEST] if len(pixels) else pixels
    if not len(pixels):
        return None
    found = oklab(np.median(_full_bright(pixels), axis=0))
    palette = oklab(_full_bright(np.array(list(PALETTE.values()), dtype=float)))
    return list(PALETTE)[int(np.argmin(np.linalg.norm(palette - found, axis=-1)))]


def prompt_color(prompt: str) -> str | None:
    """The first colour of the palette that ``prompt`` names as a word of its own; ``None`` when it names none."""
    found = re.search(rf"\b({'|'.join(PALETTE)})\b", prompt, flags=re.IGNORECASE)
    return found.group(1).lower() if found else None


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Oklab (..., 3) of sRGB (..., 3) in 0 to 255: a space in which equal distances look about equally different."""
    unit = np.asarray(rgb, dtype=float) / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _RGB_TO_CONE.T) @ _CONE_TO_LAB.T


def _full_bright(rgb: np.ndarray) -> np.ndarray:
    return rgb * (255 / rgb.max(axis=-1, keepdims=True))
