"""Reading in a process of its own, which a crash or a hang of a media library ends instead of the caller.

``python -m syncflow.engine.media`` reads a call as JSON on standard input and answers on standard output: a
line of JSON, then arrays as NumPy stores them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..types import Clip
from .limits import LIBRARY_BYTES, memory_limit

READ_SECONDS = 300.0  # after which a reader is ended


@dataclass(frozen=True)
class ReadLimits:
    """Limits of the process that reads a file: its time in ``seconds``, and ``memory``, the bytes that the decoded
    frames or samples may take (None: half of the machine's, at most 32 GiB).
    """

    seconds: float = READ_SECONDS
    memory: int | None = None


_limits: ContextVar[ReadLimits | None] = ContextVar("limits", default=None)


@contextlib.contextmanager
def reading_isolated(limits: ReadLimits | None = None) -> Iterator[None]:
    """Within the block, this thread or task reads every file in another process, under these limits."""
    token = _limits.set(limits or ReadLimits())
    try:
        yield
    finally:
        _limits.reset(token)


def wanted(isolated: bool | None) -> bool:
    """Whether to read in another process: as asked, within :func:`reading_isolated`, or as the environment says."""
    if isolated is None and _limits.get() is not None:
        return True
    return os.environ.get("SYNCFLOW_ISOLATED_MEDIA", "") not in ("", "0") if isolated is None else isolated


def read(function: str, path: Path, settings: dict[str, Any], limits: ReadLimits | None = None) -> Any:
    """What a function of :mod:`syncflow.engine.media.reading` gives, computed in another process.

    Raises ``ValueError`` where it does, and for a file at which the process crashes or exceeds its ``limits`` (by
    default those of :func:`reading_isolated`).
    """
    limits = limits or _limits.get() or ReadLimits()
    call = json.dumps({"function": function, "path": os.fspath(path.absolute()), "settings": settings}, default=float)
    # The parent of the package, which need not be installed.
    root = str(Path(sys.modules[__package__.partition(".")[0]].__path__[0]).parent)
    memory = {} if limits.memory is None else {"SYNCFLOW_MEDIA_BYTES": str(limits.memory)}
    environment = {
        **os.environ,
        **memory,
        "SYNCFLOW_ISOLATED_MEDIA": "0",
        "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)]),
    }
    try:
        finished = subprocess.run(
            [sys.executable, "-m", __package__],
            input=call.encode(),
            capture_output=True,
            timeout=limits.seconds,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{path} cannot be read as media: its reader took more than {limits.seconds:g} s") from error
    answer = io.BytesIO(finished.stdout)
    try:
        head = json.loads(answer.readline())
    except ValueError:
        end = f"ended by signal {-finished.returncode}" if finished.returncode < 0 else f"code {finished.returncode}"
        raise ValueError(f"{path} cannot be read as media: its reader crashed ({end})") from None
    if "error" in head:
        raise ValueError(head["error"].replace(os.fspath(path.absolute()), os.fspath(path)))
    return _from(function, head, [np.lib.format.read_array(answer) for _ in range(head.pop("arrays"))])


def _from(function: str, head: dict[str, Any], arrays: list[np.ndarray]) -> Any:
    from .reading import MediaInfo

    if function == "probe":
        return MediaInfo(**head)
    return arrays[0] if function == "load_audio" else Clip(arrays[0], arrays[1], *head["clip"], *arrays[2:])


def _answer(call: dict[str, Any], output: BinaryIO) -> None:
    from . import reading

    try:
        found = getattr(reading, call["function"])(Path(call["path"]), isolated=False, **call["settings"])
    except (ValueError, MemoryError) as error:
        output.write(json.dumps({"error": str(error) or f"{call['path']} needs more memory than there is"}).encode())
        return
    head: dict[str, Any] = {}
    arrays: list[np.ndarray] = []
    if isinstance(found, Clip):
        head["clip"] = [found.fps, found.sample_rate, dict(found.provenance)]
        arrays = [found.frames, found.waveform, *([] if found.latents is None else [found.latents])]
    elif isinstance(found, np.ndarray):
        arrays = [found]
    else:
        head.update(found.to_dict())
    output.write(json.dumps({**head, "arrays": len(arrays)}).encode() + b"\n")
    for array in arrays:
        np.save(output, array, allow_pickle=False)


def _limit_memory() -> None:
    """Let an allocation fail that a damaged file asks for, where the system has such a limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = LIBRARY_BYTES + 2 * memory_limit()
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Answer one call."""
    _limit_memory()
    _answer(json.load(sys.stdin), sys.stdout.buffer)
