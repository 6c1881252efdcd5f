"""Many clips in one picture: the frames of each in a row, and under them its sound, onsets and visible impacts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .events import video_events
from .onsets import audio_onsets

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...engine.types import Clip

FRAMES, SIDE, COLUMNS = 12, 56, 2  # frames of a clip and their longer side (pixels), clips beside each other
SOUND, LINE, GAP = 30, 18, 12  # heights of the sound and of the prompt, and what is between clips (pixels)
PAPER, INK, WAVE, ONSET, IMPACT = "white", "#1f2933", "#8a97a5", "#e8590c", "#0b7285"


def contact_sheet(clips: Sequence[Clip], titles: Sequence[str]) -> Image:
    """A picture of ``clips``, each under its title: onsets are lines through its sound, impacts triangles above it."""
    from PIL import Image

    tiles = [_tile(clip, title) for clip, title in zip(clips, titles, strict=True)]
    width, height = (max(sides) for sides in zip(*(tile.size for tile in tiles), strict=True))
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + GAP) + GAP, rows * (height + GAP) + GAP), PAPER)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (GAP + i % COLUMNS * (width + GAP), GAP + i // COLUMNS * (height + GAP)))
    return sheet


def _tile(clip: Clip, title: str) -> Image:
    from PIL import Image, ImageDraw

    _, height, width, _ = clip.frames.shape
    scale = SIDE / max(height, width)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    tile = Image.new("RGB", (FRAMES * wide, LINE + high + SOUND), PAPER)
    draw = ImageDraw.Draw(tile)
    draw.text((0, 2), title, fill=INK)
    for k in range(FRAMES):
        frame = clip.frames[int((k + 0.5) / FRAMES * len(clip.frames))]
        tile.paste(Image.fromarray(frame).resize((wide, high)), (k * wide, LINE))
    middle, top = LINE + high + SOUND // 2, LINE + high
    peak = max(float(np.abs(clip.waveform).max(initial=0.0)), 1e-3)
    for x, piece in enumerate(np.array_split(clip.waveform, tile.width)):
        reach = float(np.abs(piece).max(initial=0.0)) / peak * (SOUND / 2 - 4)
        draw.line((x, middle - reach, x, middle + reach), fill=WAVE)
    for onset in audio_onsets(clip.waveform, clip.sample_rate):
        x = onset / clip.seconds * tile.width
        draw.line((x, top, x, tile.height), fill=ONSET)
    for impact in video_events(clip.frames, clip.fps):
        x = impact / clip.seconds * tile.width
        draw.polygon([(x - 4, top), (x + 4, top), (x, top + 7)], fill=IMPACT)
    return tile
