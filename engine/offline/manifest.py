"""The manifest of a folder of clips: JSON lines, one for each clip that was made or that failed.

A record is appended in one write after the files of its clip are in place, so that a process that ends at any moment
loses at most the clips that it was writing. A line that was cut off by a power failure is passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

PATTERN = "manifest*.jsonl"


@dataclass(frozen=True)
class FileRecord:
    """A file of a clip: its ``name`` in the folder, its size and its sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """The end of one entry, with the settings of its ``request``.

    Of one that is done: ``digest`` identifies all that its clips follow from (settings, known media, model, format),
    ``model`` is the model hash, and ``seconds`` is the time from the start of the request to its saved files.
    """

    id: str
    status: Literal["done", "failed"]
    request: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    model: str = ""
    files: tuple[FileRecord, ...] = ()
    seconds: float = 0.0
    error: str | None = None

    def line(self) -> bytes:
        """A line of the manifest."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, "", (), {}, 0.0)}
        return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n"

    @classmethod
    def parse(cls, line: str) -> Self | None:
        """The record of a line; None for one that is cut off or from elsewhere."""
        try:
            values = json.loads(line)
            known = {name: values[name] for name in values.keys() & {field.name for field in fields(cls)}}
            known["files"] = tuple(FileRecord(**file) for file in values.get("files", ()))
            record = cls(**known)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None
        texts = (record.id, record.digest, *(file.name for file in record.files))
        return record if all(isinstance(text, str) for text in texts) else None


class Manifest:
    """The manifest of one run, open for appending; only one process at a time can have it open.

    Raises ``ValueError`` for one that another process has open, and for a folder that cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
        try:
            self._lock()
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                os.write(self._file, b"\n")  # ends a line that was cut off
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on this system
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.path} is in use by another run; end it first, or give each a --shard") from None
        except OSError:  # a file system without locks
            return

    def append(self, record: Record) -> None:
        """Add a record, and have it on disk."""
        line = record.line()
        while line:
            line = line[os.write(self._file, line) :]
        with suppress(OSError):  # a file system without it
            os.fsync(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)


def read_records(folder: Path) -> Iterator[Record]:
    """The records of all manifests of a folder: of runs on one machine and of every shard.

    Raises ``ValueError`` for a manifest that cannot be read.
    """
    for path in sorted(folder.glob(PATTERN)):
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    if (record := Record.parse(line)) is not None:
                        yield record
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None


def done_by_id(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of clips that were made, by the id of their entry."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record.status == "done":
            found.setdefault(record.id, []).append(record)
    return found
