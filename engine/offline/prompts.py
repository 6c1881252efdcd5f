"""Prompt files: JSON lines, CSV or Parquet, of which each row is a request.

Columns are ``prompt``, other fields of a :class:`~syncflow.engine.types.Request` and ``id``. A file that cannot be
understood is refused as a whole; a row whose values no request can have is an entry with an error.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings import ALIASES, SETTINGS
from ..types import Request
from ..validation import check_names, shown

ID = "id"
COLUMNS = ("prompt", *SETTINGS)
MEDIA = ("video", "image", "extend", "audio", "reference")
INTEGERS = ("seed", "steps", "width", "height", "branch_interval", "audio_seed", "takes")
TEXTS = ("prompt", "negative_prompt", *MEDIA)
LONGEST_ID = 120  # characters; a file name may have 255 bytes
ID_PATTERN = re.compile(rf"\w[\w.-]{{0,{LONGEST_ID - 1}}}")


@dataclass(frozen=True)
class Entry:
    """A row of a prompt file: its ``id``, after which its clip is named, and its request or what is wrong with it.

    ``place`` says where the row is, for messages.
    """

    id: str
    place: str
    request: Request | None
    error: str | None = None


def read_entries(path: Path) -> list[Entry]:
    """The rows of a prompt file, in its order. Relative paths of media start at the folder of the file.

    A row without an ``id`` has its number, from 1. Raises ``ValueError`` for a file that cannot be read, for an unknown
    column (with the nearest that there is), for an id that is no file name or is there twice, and for no rows.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} must end in {', '.join(READERS)}: prompts are read as JSON lines, CSV or Parquet")
    try:
        entries = _entries(reader(path), path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    if not entries:
        raise ValueError(f"{path} has no prompts")
    return entries


def _entries(rows: Iterable[tuple[str, Mapping[str, Any]]], path: Path) -> list[Entry]:
    entries: list[Entry] = []
    places: dict[str, str] = {}
    for number, (place, row) in enumerate(rows, 1):
        place = f"{path.name}, {place}"
        given = {name: value for name, value in row.items() if not _is_missing(value)}
        name = _id(given.pop(ID, number), place)
        if (same := places.setdefault(name.casefold(), place)) is not place:
            raise ValueError(f"{place}: the id {name} is that of {same}, too; each clip needs a name of its own")
        try:
            check_names([*given], COLUMNS, ALIASES, "a prompt file")
        except ValueError as error:
            raise ValueError(f"{place}: {str(error).replace('setting', 'column')}") from None
        try:
            entries.append(Entry(name, place, _request(given, path.parent)))
        except ValueError as error:
            entries.append(Entry(name, place, None, str(error)))
    return entries


def _request(given: Mapping[str, Any], folder: Path) -> Request:
    values: dict[str, Any] = {name: int(v) if name in INTEGERS and _is_whole(v) else v for name, v in given.items()}
    for name in MEDIA:
        if isinstance(values.get(name), str):
            values[name] = folder / values[name]
    return Request(**{"prompt": "", **values})


def _is_missing(value: object) -> bool:
    """Null of JSON and Parquet, and NaN, which data frames have in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_whole(value: object) -> bool:
    """Whether this is a float without a fraction, to which data frames turn integers beside missing values."""
    return isinstance(value, float) and value.is_integer()


def _id(value: object, place: str) -> str:
    name = str(int(value) if _is_whole(value) else value) if isinstance(value, (str, int, float)) else ""
    if isinstance(value, bool) or not ID_PATTERN.fullmatch(name):
        raise ValueError(
            f"{place}: the id is {shown(value)}; it names a file, so it must be letters, digits, _, - and ., at most "
            f"{LONGEST_ID}, and begin with a letter or a digit"
        )
    return name


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path.name}, {place}: this is not JSON ({getattr(error, 'msg', error)})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path.name}, {place}: this is {shown(row)}; a line must be a JSON object")
            yield place, row


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Cells by the kind of their column; an empty one is left out."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                place = f"line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{path.name}, {place}: it must have {len(reader.fieldnames or ())} cells")
                yield place, {name: _cell(name, text) for name, text in row.items() if text.strip()}
        except csv.Error as error:
            raise ValueError(f"{path.name}, line {reader.reader.line_num}: this is not CSV ({error})") from None


def _cell(name: str, text: str) -> Any:
    """A cell of CSV as a value; text that is none of its column stays text, which the request refuses."""
    if name in TEXTS or name == ID:
        return text
    words = text.strip().lower()
    if name == "sound_only":
        return {"true": True, "1": True, "false": False, "0": False}.get(words, text)
    if name == "guidance_interval":
        return [_number(part) for part in words.strip("[]()").replace(",", " ").split()]
    return _number(text.strip())


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install 'syncflow[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]})") from None


READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, Mapping[str, Any]]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
