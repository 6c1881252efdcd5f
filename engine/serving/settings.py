"""Settings of a server: where it stores jobs, and every limit that it enforces."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..media.isolated import ReadLimits
from ..validation import number_between, whole_between

GIB = 2**30
MIB = 2**20
DAY = 86_400.0


@dataclass(frozen=True)
class RequestLimits:
    """The largest request that is accepted: Euler ``steps``, ``seconds`` of a clip, ``pixels`` of a frame, ``takes``.

    Raises ``ValueError`` with what is allowed.
    """

    steps: int = 200
    seconds: float = 20.0
    pixels: int = 1024 * 1024
    takes: int = 8

    def __post_init__(self) -> None:
        for name in ("steps", "pixels", "takes"):
            whole_between(name, getattr(self, name), 1, 2**31)
        number_between("seconds", self.seconds, 0, 60, above=True)


@dataclass(frozen=True)
class UploadLimits:
    """The largest file that is read: ``bytes`` as sent, ``seconds`` and ``pixels`` of a frame as its header says.

    ``reading`` limits the process that decodes it; at most ``processes`` of them run. Raises ``ValueError`` with what
    is allowed.
    """

    bytes: int = 64 * MIB
    seconds: float = 60.0
    pixels: int = 4096 * 2304
    reading: ReadLimits = field(default_factory=lambda: ReadLimits(seconds=60.0, memory=1 * GIB))
    processes: int = 2

    def __post_init__(self) -> None:
        for name in ("bytes", "pixels", "processes"):
            whole_between(name, getattr(self, name), 1, 2**40)
        number_between("seconds", self.seconds, 0, DAY, above=True)


@dataclass(frozen=True)
class ServerSettings:
    """``data``: the folder of uploads, results and, unless ``database`` is the URL of another one, the database.

    At most ``queue`` jobs wait (429 for one more) and ``in_flight`` are with the engine; a job during which the process
    ended ``attempts`` times is given up. Results are removed ``retention`` seconds after their completion, the oldest
    ones earlier where the folder exceeds ``disk`` bytes. A preview is made every ``preview_every`` steps while somebody
    watches. After SIGTERM jobs in progress have ``drain`` seconds; what is not done then is made after the next start.
    ``keys`` is the file of API keys; without one everybody is one tenant. Raises ``ValueError`` with what is allowed.
    """

    data: Path
    database: str | None = None
    keys: Path | None = None
    requests: RequestLimits = RequestLimits()
    uploads: UploadLimits = UploadLimits()
    queue: int = 256
    in_flight: int = 16
    attempts: int = 5
    retention: float = 7 * DAY
    disk: int = 10 * GIB
    preview_every: int = 5
    drain: float = 30.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        for name in ("queue", "in_flight", "attempts", "preview_every"):
            whole_between(name, getattr(self, name), 1, 2**20)
        whole_between("disk", self.disk, MIB, 2**60)
        number_between("retention", self.retention, 0, 10_000 * DAY, above=True)
        number_between("drain", self.drain, 0, DAY)

    @property
    def database_url(self) -> str:
        """The URL of the database, by default of a file in the data folder."""
        return self.database or f"sqlite:///{self.data / 'jobs.sqlite3'}"


def retry_after(seconds: float) -> int:
    """A ``Retry-After`` header: whole seconds, from 1 to an hour."""
    return min(max(math.ceil(seconds), 1), 3600) if math.isfinite(seconds) else 3600


def names_of(kind: type) -> tuple[str, ...]:
    """The settings of a dataclass."""
    return tuple(found.name for found in fields(kind))
