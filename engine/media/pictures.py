"""Decoded pictures upright, in RGB, without transparency, with square pixels."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from .limits import check_pixels

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.stream import VideoStream

SQUARE = Fraction(1)  # the shape of a pixel
BACKGROUND = 255  # transparent parts are white
SCALING_THREADS = 1  # by default FFmpeg starts one per core for every frame, and fails where it may not start them
MAX_ASPECT = 16  # of a pixel; beyond it the header is damaged


def picture(frame: VideoFrame, size: tuple[int, int] | None, aspect: Fraction, *, oriented: bool = True) -> np.ndarray:
    """The frame as uint8 (H, W, 3), upright, in ``size`` (width, height); its pixels are ``aspect`` times as wide as
    high. It stays as stored unless ``oriented``.
    """
    has_alpha = _has_alpha(frame)
    image = frame.to_ndarray(format="rgba" if has_alpha else "rgb24", threads=SCALING_THREADS)
    across, flip_x, flip_y = _orientation(frame) if oriented else (False, False, False)
    return turned(opaque(image) if has_alpha else image, across, flip_x, flip_y, size, aspect)


def turned(
    image: np.ndarray, across: bool, flip_x: bool, flip_y: bool, size: tuple[int, int] | None, aspect: Fraction
) -> np.ndarray:
    """A picture mirrored at its diagonal (``across``), then in x and in y, then in ``size`` with square pixels."""
    if across:
        image, aspect = image.swapaxes(0, 1), 1 / aspect
    image = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return square(image, aspect) if size is None else fit(image, size, aspect)


def square(image: np.ndarray, aspect: Fraction) -> np.ndarray:
    """A picture whose pixels are ``aspect`` times as wide as high, as wide as it looks, in square pixels."""
    size = max(1, round(image.shape[1] * aspect)), image.shape[0]
    check_pixels(f"the picture, whose pixels are {float(aspect):g} times as wide as high,", *size)
    return fit(image, size, aspect)


def fit(image: np.ndarray, size: tuple[int, int], aspect: Fraction = Fraction(1)) -> np.ndarray:
    """A picture uint8 (H, W, 3) whose pixels are ``aspect`` times as wide as high, cut around its centre to the shape
    of ``size`` (width, height) and resized to it.
    """
    import av

    height, width, _ = image.shape
    if (width, height) == size and aspect == 1:
        return np.ascontiguousarray(image)
    scale = min(width * aspect / size[0], Fraction(height, size[1]))
    cut_width = min(width, max(1, round(size[0] * scale / aspect)))
    cut_height = min(height, max(1, round(size[1] * scale)))
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    cut = np.ascontiguousarray(image[top : top + cut_height, left : left + cut_width])
    interpolation = "AREA" if scale > 1 else "LANCZOS"
    resized = av.VideoFrame.from_ndarray(cut, format="rgb24").reformat(
        *size, interpolation=interpolation, threads=SCALING_THREADS
    )
    return resized.to_ndarray(format="rgb24", threads=SCALING_THREADS)


def opaque(image: np.ndarray) -> np.ndarray:
    """RGBA (H, W, 4) over the background."""
    alpha = image[..., 3:].astype(np.uint16)
    return ((image[..., :3] * alpha + BACKGROUND * (255 - alpha) + 127) // 255).astype(np.uint8)


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a pixel over its height, as FFmpeg takes it."""
    return plausible(stream.sample_aspect_ratio)


def plausible(aspect: Fraction | None) -> Fraction:
    """The aspect of a pixel that a file states; square where it states none or one that nobody has."""
    return Fraction(aspect) if aspect and Fraction(1, MAX_ASPECT) <= aspect <= MAX_ASPECT else SQUARE


def _has_alpha(frame: VideoFrame) -> bool:
    """A palette may have transparent colours too."""
    return frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Whether to mirror at the diagonal, in x and in y: by the display matrix, to the nearest quarter turn."""
    try:
        stored: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data beside it of a kind that PyAV does not know; the angle is what is left
        return ((False, False, False), (True, False, True), (False, True, True), (True, True, False))[
            round(frame.rotation / 90) % 4
        ]
    if stored is None:
        return False, False, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(stored))  # x' = a x + c y, y' = b x + d y
    across = abs(b) + abs(c) > abs(a) + abs(d)
    return (True, c < 0, b < 0) if across else (False, a < 0, d < 0)
