"""Pictures and animated WebP by Pillow: FFmpeg reads neither tiles and mirrored orientations nor animated WebP."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .limits import check_pixels
from .pictures import SQUARE, opaque, plausible, square
from .timing import DEFAULT_FPS, Timed, Timeline, common_rate

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF")
DEEP_MODES = ("I", "F")  # more than eight bits, which FFmpeg converts rightly
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: the tag, and its values that swap width and height
WEBP_TICK = Fraction(1, 1000)


def read_still(path: Path) -> np.ndarray | None:
    """The first picture of a file, upright uint8 (H, W, 3); ``None`` for what Pillow does not read."""
    with _opened(path) as image:
        if image is None or image.mode.startswith(DEEP_MODES):
            return None
        return _rgb(image)


def is_animated_webp(path: Path) -> bool:
    """Whether the header says so."""
    with path.open("rb") as file:
        head = file.read(21)
    return len(head) == 21 and head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def webp_pictures(path: Path) -> Iterator[Timed[np.ndarray]]:
    """The pictures of an animated WebP and their times."""
    at = Fraction(0)
    with _opened(path) as image:
        if image is None:
            raise ValueError(f"{path} cannot be read as media: it is damaged, truncated or of another kind")
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            duration = Fraction(image.info.get("duration", 0)) / 1000 or 1 / DEFAULT_FPS
            yield Timed(at, duration, _rgb(image))
            at += duration


def webp_timeline(path: Path) -> tuple[Timeline, tuple[int, int]]:
    """When an animated WebP ends, its rate, and its (width, height)."""
    times, end, size = [], Fraction(0), (0, 0)
    for picture in webp_pictures(path):
        times.append(picture.at)
        end = picture.at + (picture.duration or 0)
        size = (picture.picture.shape[1], picture.picture.shape[0])
    return Timeline(Fraction(0), end, common_rate(times, end, WEBP_TICK, Fraction(len(times)) / end)), size


@contextmanager
def _opened(path: Path) -> Iterator[Image | None]:
    """An image whose every failure is a ``ValueError`` that names the file."""
    from PIL import Image, UnidentifiedImageError

    damaged = f"{path} cannot be read as a picture: it is damaged, truncated or of another kind"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = Image.open(path, formats=FORMATS)
            except UnidentifiedImageError:
                image = None
            if image is None:
                yield None
                return
            with image:
                check_pixels(str(path), *image.size)
                yield image
    except Image.DecompressionBombError as error:
        check_pixels(str(path), *(_stated_size(path) or (2**20, 2**20)))
        raise ValueError(damaged) from error
    except MemoryError as error:
        raise ValueError(f"{path} needs more memory than there is to be read") from error
    except (OSError, SyntaxError, EOFError, TypeError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise ValueError(damaged) from error


def _rgb(image: Image) -> np.ndarray:
    from PIL import ImageOps

    across, aspect = image.getexif().get(ORIENTATION, 1) in TURNED, _pixel_aspect(image)
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        pixels = opaque(np.asarray(upright.convert("RGBA")))
    else:
        pixels = np.array(upright.convert("RGB"))
    return square(pixels, 1 / aspect if across else aspect)


def _pixel_aspect(image: Image) -> Fraction:
    """Width of a pixel as stored over its height.

    A density in pixels per inch or metre counts as its standard says (T.871, PNG), one without a unit as FFmpeg writes
    the aspect.
    """
    info = image.info
    if "jfif_density" in info:
        across, down = info["jfif_density"]
        has_unit = info.get("jfif_unit") in (1, 2)
    elif "aspect" in info:
        (across, down), has_unit = info["aspect"], False
    elif image.format == "PNG" and "dpi" in info:
        (across, down), has_unit = info["dpi"], True
    else:
        return SQUARE
    if not (across > 0 and down > 0):
        return SQUARE
    aspect = Fraction(across / down).limit_denominator(1000)
    return plausible(1 / aspect if has_unit and aspect else aspect)


def _stated_size(path: Path) -> tuple[int, int] | None:
    """Width and height in the header of a PNG."""
    with path.open("rb") as file:
        head = file.read(24)
    return struct.unpack(">II", head[16:24]) if head[:4] == b"\x89PNG" and len(head) == 24 else None
