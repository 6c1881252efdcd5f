"""What was timed on this machine, kept so that it is timed once.

A result is JSON in the user's cache (``calibration/<hash of its key>.json``). Its :class:`Key` names all that the times
depend on, so one of another processor, library or build is never found, and what a file of that name holds counts only
if its key is the same to the letter. Where the cache cannot be written, a process times once.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...kernels import native
from ..exports import cache_folder
from ..package import sha256
from .processor import processor
from .timing import Times

SCHEMA = 1
FOLDER = "calibration"
# Environment variables that limit, or otherwise change, how fast the libraries compute.
ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "SYNCFLOW_INSTRUCTIONS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
)
PREFERRED = ("native", "torch", "torch-plain")  # of runtimes that are equally fast; those of exported graphs come after
ALIKE = 0.95  # of the speed of the fastest; what reaches it counts as equally fast


@dataclass(frozen=True)
class Key:
    """All that the times depend on.

    ``processor`` by name and a hash of its features; ``instructions`` of the native part; ``environment`` variables
    that are set, of :data:`ENVIRONMENT`; ``versions`` of syncflow, torch, the native part (a hash of its file) and, by
    runtime, of the library and the files of exported graphs; ``model``, the hash of the package, or of the
    configuration where the model was never saved; ``candidates``, the runtimes that are timed.
    """

    processor: str
    instructions: str | None
    environment: Mapping[str, str]
    threads: int
    versions: Mapping[str, str]
    model: str
    precision: str
    candidates: tuple[str, ...]

    @classmethod
    def here(cls, model: str, precision: str, candidates: tuple[str, ...], exports: Mapping[str, str]) -> Key:
        """That of this process; ``exports`` are the versions of exported graphs, by runtime."""
        return cls(
            processor=str(processor()),
            instructions=native.instructions(),
            environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            threads=torch.get_num_threads(),
            versions={"syncflow": __version__, "torch": torch.__version__, "native": _native_hash(), **exports},
            model=model,
            precision=precision,
            candidates=candidates,
        )

    @property
    def digest(self) -> str:
        """A hash of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def file(self) -> Path:
        """Where the result is kept."""
        return cache_folder() / FOLDER / f"{self.digest[:32]}.json"


@dataclass(frozen=True)
class Calibration:
    """What was timed, under which conditions, and when (``YYYY-MM-DD``). ``file`` is where that is kept, None where
    only this process knows it."""

    key: Key
    times: Times
    date: str
    file: Path | None = None

    def ranking(self) -> list[str]:
        """The runtimes, the one to take first: those as fast as the fastest (:data:`ALIKE`) in a fixed order, then the
        next ones likewise. So noise does not change the choice, and nothing slower than that is ever first."""
        left, ranked = dict(self.times.seconds), []
        while left:
            best = min(left.values())
            alike = [name for name, seconds in left.items() if best >= ALIKE * seconds]
            ranked.append(min(alike, key=_preference))
            del left[ranked[-1]]
        return ranked

    def milliseconds(self) -> dict[str, float]:
        """Of a step, by runtime, the fastest first."""
        fastest_first = sorted(self.times.seconds.items(), key=lambda item: item[1])
        return {name: round(1e3 * seconds, 3) for name, seconds in fastest_first}

    def describe(self) -> dict[str, Any]:
        """When and under which conditions, and where that is kept."""
        file = None if self.file is None else str(self.file)
        return {"date": self.date, **asdict(self.key), "file": file}


def enabled() -> bool:
    """Whether ``auto`` may time anything: ``SYNCFLOW_CALIBRATION`` is "on", the default, or "off".

    Raises ``ValueError`` for another value.
    """
    value = os.environ.get("SYNCFLOW_CALIBRATION", "on")
    if value not in ("on", "off"):
        raise ValueError(f"SYNCFLOW_CALIBRATION is {value!r}; it must be on or off")
    return value == "on"


_lock = threading.Lock()
_of_process: dict[str, Calibration] = {}  # by the hash of their key: results that no file holds


def calibrated(key: Key, measure: Callable[[], Times], *, renew: bool = False) -> Calibration:
    """What was measured under these conditions, or is measured now; with ``renew`` anew in any case.

    One thread at a time measures; others wait for what it finds.
    """
    with _lock:
        known = None if renew else _read(key) or _of_process.get(key.digest)
        return known or _keep(Calibration(key, measure(), datetime.date.today().isoformat()))


def _read(key: Key) -> Calibration | None:
    """What is kept under this key; None for a file that is missing, damaged, or of another version or key."""
    try:
        values = json.loads(key.file.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA or values["key"] != _plain(key):
            return None
        times, date = Times(**values["times"]), values["date"]
        if not (_plausible(times, key.candidates) and isinstance(date, str)):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Calibration(key, times, date, key.file)


def _plausible(times: Times, candidates: Collection[str]) -> bool:
    """Whether these can be the times of these runtimes."""
    seconds, told, asked = times.seconds, {*times.seconds, *times.failures}, set(candidates)
    numbers = all(isinstance(s, float) and math.isfinite(s) and s > 0 for s in seconds.values())
    words = all(isinstance(said, str) for said in (times.stopped, *times.failures.values()))
    complete = told <= asked if times.stopped else told == asked
    return bool(seconds) and numbers and words and complete


def _keep(found: Calibration) -> Calibration:
    """On disk, or, where that cannot be written or timing was stopped, which may be a matter of today, in memory."""
    _of_process.pop(found.key.digest, None)
    if not found.times.stopped and _write(found):
        return replace(found, file=found.key.file)
    _of_process[found.key.digest] = found
    return found


def _write(found: Calibration) -> bool:
    """Write a result beside its place and rename it: whether that could be done."""
    file, part = found.key.file, ""
    values = {"schema": SCHEMA, "key": _plain(found.key), "times": asdict(found.times), "date": found.date}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(suffix=".part", prefix=".", dir=file.parent)
        with open(descriptor, "w", encoding="utf-8") as stream:
            json.dump(values, stream, indent=2)
        os.replace(part, file)
    except OSError:
        if part:
            with suppress(OSError):
                os.unlink(part)
        return False
    return True


def _plain(key: Key) -> Any:
    """A key as JSON gives it back."""
    return json.loads(json.dumps(asdict(key)))


def _preference(runtime: str) -> int:
    return PREFERRED.index(runtime) if runtime in PREFERRED else len(PREFERRED)


def _native_hash() -> str:
    """Of the file of the native part; nothing where there is none."""
    file = getattr(native.EXTENSION, "__file__", None)
    return "" if file is None else sha256(Path(file))
