"""The files of a clip in the output folder: their names, what their content follows from, whether they are intact."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..media.destinations import TEMPORARY
from ..media.writing import latents_path
from ..package import is_inside, sha256
from ..types import Clip, Request
from .manifest import FileRecord, Record

FORMATS = ("mp4", "mov", "mkv", "webm", "gif", "wav")
STALE_SECONDS = 3600.0  # no clip takes this long to write
FORMAT_VERSION = 1  # counts up when the same request gives other files


@dataclass(frozen=True)
class Outputs:
    """Where and how clips are saved: ``x.mp4`` for the entry x, with several takes ``x-1.mp4``, ``x-2.mp4``, ….

    A sound alone is a ``.wav``. ``latents`` of the video are saved beside an mp4. Raises ``ValueError`` for latents
    beside another format.
    """

    folder: Path
    format: str = "mp4"
    latents: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; it must be one of {', '.join(FORMATS)}")
        if self.latents and self.format != "mp4":
            raise ValueError(f"latents are saved beside an mp4, and the format is {self.format}")

    def names(self, name: str, request: Request) -> list[str]:
        """The names of the clips of an entry, one for each take."""
        suffix = "wav" if request.sound_only else self.format
        takes = [""] if request.takes == 1 else [f"-{i + 1}" for i in range(request.takes)]
        return [f"{name}{take}.{suffix}" for take in takes]

    def save(self, name: str, request: Request, clips: Sequence[Clip]) -> tuple[FileRecord, ...]:
        """Write the clips of an entry, each beside its place and then renamed. Raises ``ValueError`` as saving does."""
        found = []
        for clip, file in zip(clips, self.names(name, request), strict=True):
            latents = self.latents and not request.sound_only
            path = clip.save(self.folder / file, latents=latents)
            found += [path, latents_path(path)] if latents else [path]
        return tuple(FileRecord(path.name, path.stat().st_size, sha256(path)) for path in found)

    def digest(self, request: Request, model: str) -> str:
        """The sha256 of all that the clips of a request follow from; of known media it is the content that counts."""
        settings = {name: _content(value) for name, value in settings_of(request).items()}
        values = [FORMAT_VERSION, model, self.names("", request), self.latents, settings]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def is_intact(self, record: Record) -> bool:
        """Whether all files of a record are there as they were written."""
        return bool(record.files) and all(self._is_intact(file) for file in record.files)

    def _is_intact(self, file: FileRecord) -> bool:
        path = self.folder / file.name
        with suppress(OSError):
            return is_inside(file.name) and path.stat().st_size == file.bytes and sha256(path) == file.sha256
        return False

    def remove_stale(self) -> None:
        """Remove what processes that were killed had begun to write; not what others are writing now."""
        for path in self._stale(time.time() - STALE_SECONDS):
            with suppress(OSError):
                path.unlink()

    def _stale(self, before: float) -> Iterator[Path]:
        for path in self.folder.glob(f"{TEMPORARY}*"):
            with suppress(OSError):
                if path.is_file() and path.stat().st_mtime < before:
                    yield path


def settings_of(request: Request) -> dict[str, Any]:
    """The prompt and the settings of a request that are not left to defaults."""
    values = {field.name: (getattr(request, field.name), field.default) for field in fields(request)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _content(value: Any) -> Any:
    """A value as JSON; of a file its checksum. One that cannot be read fails later, with a reason."""
    if not isinstance(value, Path):
        return value
    with suppress(OSError):
        return {"sha256": sha256(value)}
    return {"missing": str(value)}
