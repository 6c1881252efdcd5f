"""Clips with captions in a folder or in shards, rendered or real, as a data set of fixed windows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from ...engine.config import SequenceConfig
from ...engine.media import load_clip, probe
from ...engine.media.isolated import reading_isolated
from ...engine.progress import progress_bar
from ...engine.runtime.threads import available_cpus
from ...engine.validation import whole_between
from .shards import SUFFIX, Member, read_shard, shard_files

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")

MOST_WINDOWS = 1000
ROUNDING = 0.25  # frames
Window = Literal["first", "random"]


class ClipSample(TypedDict):
    """One training example: ``frames`` uint8 (F, H, W, 3), ``waveform`` float32 (M,), what it shows and where it is
    from.
    """

    frames: np.ndarray
    waveform: np.ndarray
    caption: str
    file_name: str


@dataclass(frozen=True)
class UnreadableClip:
    """A file that training leaves out, and why, in a sentence."""

    file_name: str
    reason: str


@dataclass(frozen=True)
class ClipEntry:
    """A video, its caption and whatever else its line of the metadata says.

    One of a shard is a ``member`` of it, and its ``path`` goes on from that of the shard. ``fault``: why it cannot be
    read, where that is known.
    """

    path: Path
    caption: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    member: Member | None = None
    fault: str = ""

    @property
    def size(self) -> int:
        """Bytes of the video, 0 where there is none."""
        if self.member is not None:
            return self.member.size
        return self.path.stat().st_size if self.path.is_file() else 0

    def name(self, folder: Path) -> str:
        """Its path from a folder on, where it is in there."""
        return (self.path.relative_to(folder) if self.path.is_relative_to(folder) else self.path).as_posix()

    @contextmanager
    def file(self) -> Iterator[Path]:
        """Within, the video as a file. Raises ``ValueError`` for one with a fault."""
        if self.fault:
            raise ValueError(self.fault)
        if self.member is None:
            yield self.path
            return
        with self.member.unpacked(self.path.suffix) as file:
            try:
                yield file
            except ValueError as error:
                raise ValueError(str(error).replace(str(file), str(self.path))) from None


class ClipFolder:
    """Windows of ``sequence.seconds`` from every video of a folder, torch-free and safe in loader workers.

    Captions stand in ``metadata.jsonl`` or ``metadata.csv`` (``file_name``, ``text``: the Hugging Face convention) or
    in a ``.txt`` file beside each video; ``path`` may also be a list of the first kinds under another name, or shards
    (:func:`find_clips`). ``window``
    is the first one of a video or a random one, drawn from (seed, epoch, index) among those that begin with a frame;
    ``windows`` are taken of every video, one after the other. A video that is shorter than the window is continued by
    its last frame and silence. ``entries`` are those of the folder to take, all by default. Raises ``ValueError`` for
    a folder without clips, for a clip without file or caption and, on access, for a file that cannot be read.
    """

    def __init__(
        self,
        path: str | Path | Sequence[Path],
        sequence: SequenceConfig,
        *,
        window: Window = "first",
        seed: int = 0,
        windows: int = 1,
        entries: Sequence[ClipEntry] | None = None,
    ) -> None:
        if window not in ("first", "random"):
            raise ValueError(f"window is {window!r}; it must be 'first' or 'random'")
        first = Path(path if isinstance(path, str | Path) else path[0])
        self.path = first if first.is_dir() else first.parent
        self.sequence = sequence
        self.window = window
        self.seed = seed
        self.windows = whole_between("windows", windows, 1, MOST_WINDOWS)
        self.epoch = 0
        self.entries = list(entries) if entries is not None else find_clips(path)

    def __len__(self) -> int:
        return len(self.entries) * self.windows

    @property
    def seconds(self) -> float:
        """Duration of a window."""
        return self.sequence.frames / self.sequence.fps

    def __getitem__(self, index: int) -> ClipSample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index is {index}; there are {len(self)} windows")
        place, window = divmod(index % len(self), self.windows)
        entry = self.entries[place]
        sequence = self.sequence
        with entry.file() as file:
            clip = load_clip(
                file,
                fps=sequence.fps,
                size=(sequence.width, sequence.height),
                sample_rate=sequence.sample_rate,
                start=self._start(place, window, file),
                seconds=self.seconds,
            )
        return ClipSample(
            frames=clip.frames,
            waveform=clip.waveform,
            caption=entry.caption,
            file_name=entry.name(self.path),
        )

    def read(self, index: int) -> ClipSample | UnreadableClip:
        """A window, read in a process of its own, so that no file can stop a run: one that is damaged or at which a
        media library crashes is returned with the reason.
        """
        with reading_isolated():
            try:
                return self[index]
            except ValueError as error:
                return UnreadableClip(self.entries[index // self.windows].name(self.path), str(error))

    def __iter__(self) -> Iterator[ClipSample]:
        return (self[index] for index in range(len(self)))

    def set_epoch(self, epoch: int) -> None:
        """Choose other random windows."""
        self.epoch = epoch

    def is_longer(self, count: int = 256) -> bool:
        """Whether a video is longer than the window, as far as ``count`` of them, evenly chosen, can tell."""
        chosen = self.entries[:: max(1, len(self.entries) // count)]
        return any(self._places(whole_frames(entry, self.sequence.fps)) > 1 for entry in chosen)

    def _start(self, index: int, window: int, path: Path) -> float:
        if self.window == "first":
            return 0.0
        generator = np.random.default_rng((self.seed, self.epoch * self.windows + window, index))
        return float(generator.integers(self._places(frames_of(path, self.sequence.fps))) / self.sequence.fps)

    def _places(self, frames: int) -> int:
        """How many windows of a video of so many frames begin with a frame and end in it; 1 for one that is shorter."""
        return 1 + max(0, frames - self.sequence.frames)


def frames_of(path: Path, fps: int) -> int:
    """Frames at ``fps`` that a file fills; its container may have rounded its duration by a part of a frame. 0 for one
    that cannot be read.
    """
    state = path.stat() if path.is_file() else None
    return int(_seconds(path, state and (state.st_mtime_ns, state.st_size)) * fps + ROUNDING)


@cache
def _seconds(path: Path, state: tuple[int, int] | None) -> float:
    """Duration of a file in this ``state``, read in a process of its own; 0 for one that cannot be read."""
    try:
        return probe(path, isolated=True).seconds
    except ValueError:
        return 0.0


def whole_frames(entry: ClipEntry, fps: int) -> int:
    """:func:`frames_of` a video, 0 for one with a fault."""
    if entry.fault:
        return 0
    with entry.file() as path:
        return frames_of(path, fps)


def by_length(entries: Sequence[ClipEntry], fps: int, lengths: Sequence[int]) -> dict[int, list[ClipEntry]]:
    """Every video under the longest of ``lengths`` (frames at ``fps``) that it fills, one that fills none under the
    shortest; lengths without a video are left out.
    """
    ordered = sorted(set(lengths))
    found: dict[int, list[ClipEntry]] = {length: [] for length in ordered}
    for entry, frames in zip(entries, _frames_of_all(entries, fps), strict=True):
        found[max((length for length in ordered if length <= frames), default=ordered[0])].append(entry)
    return {length: chosen for length, chosen in found.items() if chosen}


def _frames_of_all(entries: Sequence[ClipEntry], fps: int) -> Iterator[int]:
    """:func:`whole_frames` of every video, several at a time; other processes read them."""
    with ThreadPoolExecutor(available_cpus()) as pool:
        frames = pool.map(whole_frames, entries, repeat(fps))
        yield from progress_bar(frames, total=len(entries), desc="reading lengths of clips", unit="clip")


def find_clips(source: str | Path | Sequence[Path]) -> list[ClipEntry]:
    """The captioned videos of a folder, in the order of its metadata or of their names; those that a ``.jsonl`` or
    ``.csv`` file lists, relative to its folder; or those of shards (:mod:`.shards`), which are tar files, a range of
    them such as ``shards/{000..012}.tar``, or in a folder without a list. Raises ``ValueError``.
    """
    paths = [Path(source)] if isinstance(source, str | Path) else list(source)
    if paths and all(path.suffix == SUFFIX for path in paths):
        return _clips_of_shards([shard for path in paths for shard in shard_files(path)])
    if len(paths) != 1:
        raise ValueError(f"clips are those of one folder, one list, or shards ({SUFFIX}); {len(paths)} paths are given")
    folder = paths[0]
    if folder.is_file():
        if folder.suffix not in (".jsonl", ".csv"):
            raise ValueError(f"{folder} is no list of clips; its name must end in .jsonl, .csv or {SUFFIX}")
        if not (entries := _listed_clips(folder)):
            raise ValueError(f"{folder} lists no clips")
        return entries
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of clips")
    listed = next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)
    if listed is None and (shards := shard_files(folder)):
        return _clips_of_shards(shards)
    entries = _listed_clips(listed) if listed else _sidecar_clips(folder)
    if not entries:
        raise ValueError(
            f"{folder} holds no clips; it needs videos and {' or '.join(METADATA_FILES)}, or a .txt for each, or shards"
        )
    return entries


def _clips_of_shards(shards: Sequence[Path]) -> list[ClipEntry]:
    """The clips of all shards; a damaged shard and a clip without a caption are entries with a fault."""
    entries = []
    for shard in shards:
        clips, fault = read_shard(shard, VIDEO_SUFFIXES)
        for clip in clips:
            path = shard / clip.name
            missing = "" if clip.caption else f"{path} has no caption"
            entries.append(ClipEntry(path, clip.caption, clip.metadata, clip.member, missing))
        if fault:
            entries.append(ClipEntry(shard, "", fault=fault))
    if all(entry.fault for entry in entries):
        first = f"; the first: {entries[0].fault}" if entries else ""
        raise ValueError(f"{', '.join(map(str, shards[:3]))} hold no captioned clips{first}")
    return entries


def _listed_clips(listed: Path) -> list[ClipEntry]:
    entries = []
    for number, row in _rows(listed):
        columns = tuple(row)
        name, caption = row.pop("file_name", None), row.pop("text", None)
        if not isinstance(name, str) or not isinstance(caption, str) or not name or not caption.strip():
            has = ", ".join(map(str, columns)) or "no fields"
            raise ValueError(f"{listed} line {number} needs a file_name and a text that are not empty; it has {has}")
        path = listed.parent / name
        if not path.is_file():
            raise ValueError(f"{listed} line {number} names {name}, which does not exist")
        entries.append(ClipEntry(path, caption.strip(), row))
    return entries


def _rows(listed: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and fields of every row of a metadata file."""
    lines = io.StringIO(read_text(listed), newline="")
    if listed.suffix == ".csv":
        reader = csv.DictReader(lines)
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{listed} line {reader.line_num} has more values than columns; a text with a comma needs quotes"
                )
            yield reader.line_num, dict(row)
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{listed} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{listed} line {number} is not a JSON object")
        yield number, row


def read_text(file: Path) -> str:
    """A file in UTF-8, with or without a byte order mark. Raises ``ValueError`` for one in another encoding."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8 ({error.reason} at byte {error.start})") from error


def _sidecar_clips(folder: Path) -> list[ClipEntry]:
    videos = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    sidecars = [path.with_suffix(".txt") for path in videos]
    captions = [read_text(file).strip() if file.is_file() else "" for file in sidecars]
    if missing := [path for path, caption in zip(videos, captions, strict=True) if not caption]:
        raise ValueError(
            f"{len(missing)} of the {len(videos)} videos in {folder} have no caption, the first is "
            f"{missing[0].name!r}; write one into {missing[0].with_suffix('.txt').name!r} beside it, list the videos "
            f"to train on in {METADATA_FILES[0]}, or move the others away"
        )
    return [ClipEntry(path, caption) for path, caption in zip(videos, captions, strict=True)]
