"""The cache of step times that were measured on this machine.

A result is a JSON file in the user's cache (``calibration/<hash of its key>.json``). Its :class:`CalibrationKey` names
everything on which the times depend, so that times of another processor, library or build are never found; a file
counts only if the key in it is equal. Where the cache cannot be written, each process measures once.
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
from typing import Any, Self

import torch

from .... import __version__
from ....kernels import native
from ...exports import cache_folder
from ...package import sha256
from .processor import processor
from .timing import StepTimes

SCHEMA = 2
FOLDER = "calibration"
# Environment variables that change the speed of the libraries.
ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "OV_CPU_MAX_ISA",
    "SYNCFLOW_INSTRUCTIONS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
)
TIE_ORDER = ("native", "torch", "torch-plain")  # order of equally fast runtimes; exported graphs come last
TIE_RATIO = 0.95  # of the speed of the fastest runtime, from which on another counts as equally fast


@dataclass(frozen=True)
class CalibrationKey:
    """Everything on which the times depend.

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
    def here(cls, model: str, precision: str, candidates: tuple[str, ...], exports: Mapping[str, str]) -> Self:
        """The key of this process; ``exports`` are the versions of exported graphs, by runtime."""
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
        """The path of the result."""
        return cache_folder() / FOLDER / f"{self.digest[:32]}.json"


@dataclass(frozen=True)
class Calibration:
    """Times, their key, and the date of the measurement (``YYYY-MM-DD``). ``file`` is None if the times are only in the
    memory of this process."""

    key: CalibrationKey
    times: StepTimes
    date: str
    file: Path | None = None

    def ranking(self) -> list[str]:
        """The runtimes, the fastest first; those within :data:`TIE_RATIO` of the fastest come in a fixed order, so that
        noise does not change the choice."""
        remaining, ranked = dict(self.times.seconds), []
        while remaining:
            best = min(remaining.values())
            tied = [name for name, seconds in remaining.items() if best >= TIE_RATIO * seconds]
            ranked.append(min(tied, key=_tie_rank))
            del remaining[ranked[-1]]
        return ranked

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds of a step by runtime, the fastest first."""
        fastest_first = sorted(self.times.seconds.items(), key=lambda item: item[1])
        return {name: round(1e3 * seconds, 3) for name, seconds in fastest_first}

    def describe(self) -> dict[str, Any]:
        """The date, the key and the file of the measurement."""
        file = None if self.file is None else str(self.file)
        return {"date": self.date, **asdict(self.key), "file": file}


def enabled() -> bool:
    """Whether ``auto`` may time steps: ``SYNCFLOW_CALIBRATION`` is "on" (the default) or "off".

    Raises ``ValueError`` for another value.
    """
    value = os.environ.get("SYNCFLOW_CALIBRATION", "on")
    if value not in ("on", "off"):
        raise ValueError(f"SYNCFLOW_CALIBRATION is {value!r}; it must be on or off")
    return value == "on"


_lock = threading.Lock()
_in_memory: dict[str, Calibration] = {}  # by the hash of their key: results without a file


def load_or_measure(key: CalibrationKey, measure: Callable[[], StepTimes], *, renew: bool = False) -> Calibration:
    """The known result for ``key``, or a new measurement; ``renew`` measures in any case.

    One thread measures at a time, and others wait for its result.
    """
    with _lock:
        known = None if renew else _read(key) or _in_memory.get(key.digest)
        return known or _store(Calibration(key, measure(), datetime.date.today().isoformat()))


def _read(key: CalibrationKey) -> Calibration | None:
    """The result in the file of this key; None if it is missing, damaged, or has another schema or key."""
    try:
        values = json.loads(key.file.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA or values["key"] != _as_json(key):
            return None
        times, date = StepTimes(**values["times"]), values["date"]
        if not (_is_valid(times, key.candidates) and isinstance(date, str)):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Calibration(key, times, date, key.file)


def _is_valid(times: StepTimes, candidates: Collection[str]) -> bool:
    """Whether these are times of these candidates."""
    seconds, timed, expected = times.seconds, {*times.seconds, *times.failures}, set(candidates)
    numbers = all(isinstance(s, float) and math.isfinite(s) and s > 0 for s in seconds.values())
    messages = all(isinstance(message, str) for message in (times.stopped, *times.failures.values()))
    complete = timed <= expected if times.stopped else timed == expected
    return bool(seconds) and numbers and messages and complete


def _store(result: Calibration) -> Calibration:
    """Write a result to disk, or keep it in memory if that fails or if timing was stopped, which may be temporary."""
    _in_memory.pop(result.key.digest, None)
    if not result.times.stopped and _write(result):
        return replace(result, file=result.key.file)
    _in_memory[result.key.digest] = result
    return result


def _write(result: Calibration) -> bool:
    """Write a result to a temporary file and rename it; whether that succeeded."""
    file, part = result.key.file, ""
    values = {"schema": SCHEMA, "key": _as_json(result.key), "times": asdict(result.times), "date": result.date}
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


def _as_json(key: CalibrationKey) -> Any:
    """A key as it is read from JSON."""
    return json.loads(json.dumps(asdict(key)))


def _tie_rank(runtime: str) -> int:
    return TIE_ORDER.index(runtime) if runtime in TIE_ORDER else len(TIE_ORDER)


def _native_hash() -> str:
    """The hash of the file of the C++ part; empty if there is none."""
    file = getattr(native.EXTENSION, "__file__", None)
    return "" if file is None else sha256(Path(file))
