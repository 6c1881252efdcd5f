"""Files that are made of a result when somebody asks for them, and kept beside it: frames, pictures, measurements."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..media import load_audio, load_clip, save_clip
from ..media.destinations import destination
from ..types import Clip

Inspect = Callable[[Clip], dict[str, Any]]
BINS = 512  # of a waveform
TILES = 8  # of a sprite sheet
MEDIA_TYPES = {
    "video": "video/mp4",
    "audio": "audio/wav",
    "frames": "application/zip",
    "thumbnail": "image/webp",
    "spritesheet": "image/jpeg",
}
FILES = {
    "video": "{take}.mp4",
    "audio": "{take}.wav",
    "frames": "{take}-frames.zip",
    "thumbnail": "{take}-thumbnail.webp",
    "spritesheet": "{take}-spritesheet.jpg",
}


def derive(variant: str, source: Path, target: Path) -> None:
    """Make a variant of a clip, unless it is there. The frames are those of the mp4."""
    if target.exists():
        return
    make = {"frames": _frames, "thumbnail": _thumbnail, "spritesheet": _sprite_sheet}[variant]
    clip = load_clip(source)
    with destination(target) as part:
        make(clip, part)


def measure(source: Path, target: Path, inspect: Inspect | None) -> dict[str, Any]:
    """The waveform's peaks, and what ``inspect`` measures of the clip: an object of JSON, kept in a file.

    ``waveform`` holds the least and the greatest sample of each of 512 spans. Without frames or ``inspect`` it is all.
    """
    if target.exists():
        found: dict[str, Any] = json.loads(target.read_bytes())
        return found
    sound = source.with_suffix(".wav")
    waveform = load_audio(sound)
    spans = np.array_split(waveform, min(BINS, len(waveform)))
    found = {"waveform": [[round(float(each), 4) for each in (span.min(), span.max())] for span in spans]}
    if source.suffix == ".mp4" and inspect is not None:
        clip = load_clip(source)
        found["inspection"] = inspect(Clip(clip.frames, waveform, clip.fps, 48_000))
    with destination(target) as part:
        part.write_text(json.dumps(found))
    return found


def _frames(clip: Clip, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        frames = save_clip(clip, Path(folder) / "frames")
        for path in sorted(frames.iterdir()):
            archive.write(path, path.name)


def _thumbnail(clip: Clip, target: Path) -> None:
    from PIL import Image

    Image.fromarray(clip.frames[len(clip.frames) // 2]).save(target, "webp")


def _sprite_sheet(clip: Clip, target: Path) -> None:
    from PIL import Image

    chosen = clip.frames[np.linspace(0, len(clip.frames) - 1, TILES).round().astype(int)]
    Image.fromarray(np.concatenate(list(chosen), axis=1)).save(target, "jpeg", quality=90)
