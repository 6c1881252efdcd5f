"""Published sets of clips, as they are distributed, listed as ``train.jsonl`` and ``test.jsonl`` for training.

Nothing is copied. The split is that of the set, by source video: a source that both halves name is left out of
training, so that no window of a test video was trained on.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...engine.replacement import replacement
from .clips import VIDEO_SUFFIXES, read_text

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
YOUTUBE_ID = 11  # characters
HIT_COLUMNS = 2  # at least, of a line of annotations: the time, the material, and mostly the motion and the reaction


@dataclass(frozen=True)
class PublishedClip:
    """A clip that a set names: the stem of its file, the ``source`` it was cut from, and what its line will say.

    ``folder`` is the name of the file's folder, where the set says it: names in two folders may be equal.
    """

    stem: str
    source: str
    split: Split
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    folder: str = ""

    def file_of(self, videos: Sequence[Path]) -> Path | None:
        """Its file among those of its stem: the one in its folder, or else the first."""
        return next((path for path in videos if path.parent.name == self.folder), next(iter(videos), None))


@dataclass(frozen=True)
class Listing:
    """How many clips each list has, how many named files are missing, and how many were in both halves."""

    train: int
    test: int
    missing: int
    leaked: int

    def __str__(self) -> str:
        return (
            f"{self.train} clips to train on and {self.test} to test with; {self.missing} that the set names are "
            f"missing, {self.leaked} were left out of training because their source is in the test half"
        )


def list_published(folder: str | Path, name: str) -> Listing:
    """Write ``train.jsonl`` and ``test.jsonl`` of a set into its folder. ``name`` is one of :data:`PUBLISHED`.

    Raises ``ValueError`` for another name, and for a folder that is not of that set.
    """
    folder = Path(folder)
    if name not in PUBLISHED:
        raise ValueError(f"there is no reader for {name!r}; there are {', '.join(PUBLISHED)}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    videos: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            videos.setdefault(path.stem, []).append(path)
    named = list(PUBLISHED[name](folder))
    tested = {clip.source for clip in named if clip.split == "test"}
    rows: dict[Split, list[str]] = {"train": [], "test": []}
    missing = leaked = 0
    for clip in named:
        if (file := clip.file_of(videos.get(clip.stem, ()))) is None:
            missing += 1
        elif clip.split == "train" and clip.source in tested:
            leaked += 1
        else:
            row = {"file_name": file.relative_to(folder).as_posix(), "text": clip.text, **clip.metadata}
            rows[clip.split].append(json.dumps(row, ensure_ascii=False) + "\n")
    if not any(rows.values()):
        raise ValueError(f"{folder} has none of the {len(named)} videos that its lists name")
    for split in SPLITS:
        with replacement(folder / f"{split}.jsonl") as part:
            part.write_text("".join(rows[split]), encoding="utf-8")
    return Listing(len(rows["train"]), len(rows["test"]), missing, leaked)


def vggsound(folder: Path) -> Iterator[PublishedClip]:
    """VGGSound: ``vggsound.csv`` (YouTube id, start in s, label, split) beside 10 s clips ``{id}_{start:06d}.mp4``."""
    listed = _needed(folder, "vggsound.csv")
    for number, row in enumerate(csv.reader(io.StringIO(read_text(listed), newline="")), 1):
        if len(row) != 4 or not row[1].strip().isdigit() or row[3] not in SPLITS:
            raise ValueError(f"{listed} line {number} is not an id, a start in seconds, a label and train or test")
        source, start, label, split = row
        yield PublishedClip(f"{source}_{int(start):06d}", source, split, label)  # type: ignore[arg-type]


def greatest_hits(folder: Path) -> Iterator[PublishedClip]:
    """The Greatest Hits: ``train.txt`` and ``test.txt`` with a stem on each line, ``{stem}_denoised.mp4`` (or
    ``…_thumb.mp4`` of the small version) and ``{stem}_times.txt`` with the hits: time, material, motion, reaction.
    """
    small = next(folder.rglob("*_denoised_thumb.mp4"), None) is not None
    annotations = {path.name.removesuffix("_times.txt"): path for path in folder.rglob("*_times.txt")}
    for split in SPLITS:
        for line in _lines(_needed(folder, f"{split}.txt")):
            stem = line.removesuffix(".mp4").removesuffix("_denoised")
            hits = _hits(annotations[stem]) if stem in annotations else []
            materials = list(dict.fromkeys(hit["material"] for hit in hits if hit["material"] != "None"))
            text = "a drumstick hits " + (" and ".join(materials) if materials else "things")
            file = f"{stem}_denoised" + ("_thumb" if small else "")
            yield PublishedClip(file, stem, split, text, {"events": hits})


def avsync15(folder: Path) -> Iterator[PublishedClip]:
    """AVSync15: ``train.txt`` and ``test.txt`` with ``class/name.mp4`` on each line, the name begins with a YouTube
    id.
    """
    for split in SPLITS:
        listed = _needed(folder, f"{split}.txt")
        for number, line in enumerate(_lines(listed), 1):
            label, slash, name = line.rpartition("/")
            if not slash:
                raise ValueError(f"{listed} line {number} is not class/name: {line!r}")
            kind = label.rpartition("/")[2]
            text = kind.replace("_", " ")
            yield PublishedClip(Path(name).stem, name[:YOUTUBE_ID], split, text, {"label": text}, kind)


PUBLISHED: dict[str, Callable[[Path], Iterator[PublishedClip]]] = {
    "vggsound": vggsound,
    "greatest-hits": greatest_hits,
    "avsync15": avsync15,
}


def _needed(folder: Path, name: str) -> Path:
    found = next((path for path in sorted(folder.rglob(name)) if path.is_file()), None)
    if found is None:
        raise ValueError(f"{folder} has no {name}, which this set is distributed with")
    return found


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _hits(path: Path) -> list[dict[str, Any]]:
    """Annotated hits that have a time."""
    hits = []
    for line in _lines(path):
        values = line.split()
        try:
            time = float(values[0])
        except ValueError:
            continue
        if len(values) >= HIT_COLUMNS:
            hits.append({"time": time, "material": values[1], **({"motion": values[2]} if len(values) > 2 else {})})
    return hits
