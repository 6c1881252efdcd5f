"""Clips in shards, as WebDataset lays them out: tar files whose members of one key belong together.

``000017.mp4`` is a video and ``000017.txt`` its caption, or without one ``000017.json`` with a ``caption`` or ``text``
among its metadata. Members are read where they stand in the tar file, in any order; nothing is unpacked but the clip in
use.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ...engine.replacement import replacement

if TYPE_CHECKING:
    from .clips import ClipEntry

SUFFIX = ".tar"
BLOCK = 1 << 20  # bytes
MOST_CAPTION = 1 << 20  # bytes
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Member:
    """A file in a tar file: ``size`` bytes from ``offset`` on."""

    archive: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Its content, or what there is of it in an archive that was cut off."""
        return b"".join(self._blocks())

    @contextmanager
    def unpacked(self, suffix: str) -> Iterator[Path]:
        """Within, its content is in a temporary file of this suffix."""
        with tempfile.TemporaryDirectory(prefix="syncflow-clip-") as folder:
            path = Path(folder) / f"clip{suffix}"
            with path.open("wb") as file:
                file.writelines(self._blocks())
            yield path

    def _blocks(self) -> Iterator[bytes]:
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            left = self.size
            while left and (block := file.read(min(left, BLOCK))):
                left -= len(block)
                yield block


@dataclass(frozen=True)
class ShardClip:
    """A video of a shard, under its ``name`` there, with what its caption files say; ``caption`` is empty without."""

    name: str
    member: Member
    caption: str
    metadata: dict[str, Any]


def shard_files(path: Path) -> list[Path]:
    """The shards that a path names: a tar file, all of a folder, or a range such as ``shards/{000..012}.tar``.

    Empty where it names none. Raises ``ValueError`` for a shard of a range that is missing.
    """
    if path.is_dir():
        return sorted(path.glob(f"*{SUFFIX}"))
    if path.suffix != SUFFIX:
        return []
    found = [Path(name) for name in _expanded(str(path))]
    for file in found:
        if not file.is_file():
            raise ValueError(f"{file} is not a file; it should be a shard of clips")
    return found


def _expanded(pattern: str) -> list[str]:
    """``a{08..10}`` as a08, a09, a10: as a shell expands it; several ranges in one pattern, too."""
    if (found := RANGE.search(pattern)) is None:
        return [pattern]
    first, last = found.groups()
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    before, after = pattern[: found.start()], pattern[found.end() :]
    numbers = range(int(first), int(last) + 1)
    return [before + f"{number:0{width}}" + rest for number in numbers for rest in _expanded(after)]


def read_shard(archive: Path, video_suffixes: Sequence[str]) -> tuple[list[ShardClip], str]:
    """The videos of a shard in its order, and where it is damaged, why, in a sentence; what follows is lost then."""
    videos: dict[str, tuple[str, Member]] = {}
    captions: dict[str, str] = {}
    described: dict[str, dict[str, Any]] = {}
    end, fault = 0, ""
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if not info.isreg() or info.issparse():
                    continue
                name = PurePosixPath(info.name)
                key, suffix = str(name.with_suffix("")), name.suffix.lower()
                member = Member(archive, info.offset_data, info.size)
                if suffix in video_suffixes:
                    videos.setdefault(key, (info.name, member))
                elif suffix == ".txt" and info.size <= MOST_CAPTION:
                    captions[key] = _text(member.read()).strip()
                elif suffix == ".json" and info.size <= MOST_CAPTION:
                    described[key] = _description(member.read())
        if any(Member(archive, end, tarfile.BLOCKSIZE).read()):  # zeros mark the end; tarfile stops at anything
            fault = f"{archive} is damaged at byte {end}, and the clips after it are missing"
    except (tarfile.TarError, OSError) as error:
        fault = f"{archive} is damaged, and clips of it are missing: {error}"
    clips = []
    for key, (video, member) in videos.items():
        metadata, caption = described.get(key, {}), captions.get(key, "")
        if not caption:
            caption = str(metadata.pop("caption", None) or metadata.pop("text", None) or "").strip()
        clips.append(ShardClip(video, member, caption, metadata))
    return clips, fault


def _text(content: bytes) -> str:
    """Of a member in UTF-8, with or without a byte order mark; nothing of one that is damaged."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return ""


def _description(content: bytes) -> dict[str, Any]:
    """The object of a member; nothing of one that is damaged."""
    try:
        found = json.loads(_text(content))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write_shards(entries: Sequence[ClipEntry], out: Path, clips_per_shard: int = 1000) -> list[Path]:
    """Write clips with their captions and metadata into shards ``000000.tar``, … of a folder; their files as they are.

    The n-th clip has the key n, six digits or more. Raises ``ValueError`` for a folder with other shards, or with those
    that are read.
    """
    out.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(entries), clips_per_shard)
    shards = [out / f"{first // clips_per_shard:06d}{SUFFIX}" for first in starts]
    read = {entry.member.archive.resolve() for entry in entries if entry.member is not None}
    if others := sorted(one for one in out.glob(f"*{SUFFIX}") if one not in shards or one.resolve() in read):
        raise ValueError(f"{out} holds other shards ({others[0].name}); choose another folder")
    for first, shard in zip(starts, shards, strict=True):
        with replacement(shard) as part, tarfile.open(part, "w") as tar:
            for number, entry in enumerate(entries[first : first + clips_per_shard], first):
                with entry.file() as path:
                    _add(tar, f"{number:06d}{entry.path.suffix.lower()}", path.read_bytes())
                _add(tar, f"{number:06d}.txt", entry.caption.encode())
                if entry.metadata:
                    _add(tar, f"{number:06d}.json", json.dumps(dict(entry.metadata)).encode())
    return shards


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
