"""What a run has to do: the entries of its shard that are not done, those of one shape after each other."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..config import ModelConfig
from ..media import probe
from ..tasks import default
from ..types import Request
from ..validation import shown
from .manifest import done_by_id, read_records
from .outputs import Outputs
from .prompts import Entry

CHECKING_THREADS = 8  # read and hash files beside each other


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th row, beginning with row ``index``, from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """A shard as I/N. Raises ``ValueError``."""
        index, slash, count = text.partition("/")
        if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
            return cls(int(index), int(count))
        raise ValueError(f"shard is {shown(text)}; it must be I/N with I from 1 to N, for example 2/8")


def manifest_name(shard: Shard | None) -> str:
    """``manifest.jsonl``, or one for each shard: many file systems do not let two hosts append to one file."""
    return "manifest.jsonl" if shard is None else f"manifest-{shard.index}-of-{shard.count}.jsonl"


@dataclass(frozen=True)
class Item:
    """An entry to do, and its ``work`` in pixel-second-steps, by which progress is measured."""

    entry: Entry
    work: float


@dataclass(frozen=True)
class Plan:
    """``items`` to do, in this order, and how many entries are done already."""

    items: tuple[Item, ...]
    done: int


def make_plan(
    entries: Sequence[Entry], outputs: Outputs, config: ModelConfig, model: str, shard: Shard | None = None
) -> Plan:
    """Leave out what is done and intact; sort the rest by shape, the largest first, so that equal shapes share batches.

    ``model`` is the model hash. Raises ``ValueError`` where two entries would write the same file.
    """
    _check_names(entries, outputs)
    mine = entries if shard is None else entries[shard.index - 1 :: shard.count]
    done = done_by_id(read_records(outputs.folder))

    def is_done(entry: Entry) -> bool:
        records = done.get(entry.id)
        if not records or entry.request is None:
            return False
        digest = outputs.digest(entry.request, model)
        return any(record.digest == digest and outputs.is_intact(record) for record in reversed(records))

    with ThreadPoolExecutor(CHECKING_THREADS) as pool:
        left = [entry for entry, done in zip(mine, pool.map(is_done, mine), strict=True) if not done]
        shapes = list(pool.map(lambda entry: _shape(entry.request, config), left))
    order = sorted(range(len(left)), key=lambda i: (-shapes[i][0], shapes[i], i))
    items = tuple(Item(left[i], shapes[i][0] * _steps(left[i].request, config)) for i in order)
    return Plan(items, len(mine) - len(left))


def _check_names(entries: Sequence[Entry], outputs: Outputs) -> None:
    owners: dict[str, Entry] = {}
    for entry in entries:
        for name in [] if entry.request is None else outputs.names(entry.id, entry.request):
            if (other := owners.setdefault(name.casefold(), entry)) is not entry:
                raise ValueError(f"{entry.place} and {other.place} would both be saved as {name}; change an id")


def _shape(request: Request | None, config: ModelConfig) -> tuple[float, ...]:
    """Pixel-seconds, and what of a request decides with which others it can share a batch."""
    if request is None:
        return 0.0, 0.0, 0, 0, 0.0
    base = config.sequence
    width, height = default(request.width, base.width), default(request.height, base.height)
    seconds = default(request.seconds, _natural_seconds(request, base.seconds))
    return width * height * seconds, seconds, width, height, _media_seconds(request.reference, 0.0)


def _natural_seconds(request: Request, base: float) -> float:
    """The duration of a clip for which none is asked."""
    if request.extend is not None:
        return _media_seconds(request.extend, base) + base / 2
    return _media_seconds(default(request.video, request.audio), base)


def _media_seconds(media: object, otherwise: float) -> float:
    """The duration of a file; that of one that cannot be read does not matter, since its request fails."""
    with suppress(ValueError):
        return probe(media).seconds if isinstance(media, Path) else otherwise
    return otherwise


def _steps(request: Request | None, config: ModelConfig) -> int:
    return config.sampling.steps if request is None else default(request.steps, config.sampling.steps)
