"""Reading in a process of its own, which a crash or a hang of a media library ends instead of the caller.

On Linux a fork server (:mod:`~syncflow.engine.media.fork_server`) starts such a reader; elsewhere each one is a
``python -m syncflow.engine.media --once``. A call is JSON; the answer is a line of JSON, then arrays as NumPy stores
them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..types import Clip
from . import fork_server
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
    asked = os.environ.get("SYNCFLOW_MEDIA_BYTES", "") if limits.memory is None else str(limits.memory)
    call: dict[str, Any] = {"function": function, "path": os.fspath(path.absolute()), "settings": settings}
    call |= {"seconds": limits.seconds, "memory": asked}
    try:
        content, code = _run(json.dumps(call, default=float).encode(), limits.seconds)
    except TimeoutError as error:
        raise ValueError(f"{path} cannot be read as media: its reader took more than {limits.seconds:g} s") from error
    if code:
        end = f"ended by signal {-code}" if code < 0 else f"code {code}"
        raise ValueError(f"{path} cannot be read as media: its reader crashed ({end})")
    answer = io.BytesIO(content)
    head = json.loads(answer.readline())
    if "error" in head:
        raise ValueError(head["error"].replace(os.fspath(path.absolute()), os.fspath(path)))
    return _from(function, head, [np.lib.format.read_array(answer) for _ in range(head.pop("arrays"))])


def _run(call: bytes, seconds: float) -> tuple[bytes, int]:
    """The answer of a reader, and its exit code. Raises ``TimeoutError``."""
    if fork_server.AVAILABLE:
        content, code = _fork_server.call(call)
        if code == -signal.SIGALRM:
            raise TimeoutError
        return content, code
    try:
        finished = subprocess.run(
            [*_command(), "--once"], input=call, capture_output=True, timeout=seconds, env=_environment()
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return finished.stdout, finished.returncode


def _start(calls: socket.socket) -> subprocess.Popen[bytes]:
    """The fork server; Ctrl+C is not for it."""
    quiet, environment = subprocess.DEVNULL, _environment()
    return subprocess.Popen(
        _command(), stdin=calls.fileno(), stdout=quiet, stderr=quiet, env=environment, start_new_session=True
    )


_fork_server = fork_server.ForkServer(_start)


def _command() -> list[str]:
    return [sys.executable, "-m", __package__]


def _environment() -> dict[str, str]:
    # The parent of the package, which need not be installed.
    root = str(Path(sys.modules[__package__.partition(".")[0]].__path__[0]).parent)
    path = os.pathsep.join([root, *filter(None, sys.path)])
    return {**os.environ, "SYNCFLOW_ISOLATED_MEDIA": "0", "PYTHONPATH": path}


def _from(function: str, head: dict[str, Any], arrays: list[np.ndarray]) -> Any:
    from .reading import MediaInfo

    if function == "probe":
        return MediaInfo(**head)
    return arrays[0] if function == "load_audio" else Clip(arrays[0], arrays[1], *head["clip"], *arrays[2:])


def _answer(call: dict[str, Any], output: BinaryIO) -> None:
    from . import reading

    os.environ["SYNCFLOW_MEDIA_BYTES"] = call["memory"]
    _limit_memory()
    try:
        found = getattr(reading, call["function"])(Path(call["path"]), isolated=False, **call["settings"])
    except (ValueError, MemoryError) as error:
        output.write(json.dumps({"error": str(error) or f"{call['path']} needs more memory than there is"}).encode())
        return
    head: dict[str, Any] = {}
    arrays: list[np.ndarray] = []
    if isinstance(found, Clip):
        head["clip"] = [found.fps, found.sample_rate, dict(found.provenance)]
        found_arrays = (found.frames, found.waveform, found.latents)
        arrays = [np.ascontiguousarray(array) for array in found_arrays if array is not None]
    elif isinstance(found, np.ndarray):
        arrays = [np.ascontiguousarray(found)]
    else:
        head.update(found.to_dict())
    output.write(json.dumps({**head, "arrays": len(arrays)}).encode() + b"\n")
    for array in arrays:  # np.save asks for a position, which a pipe has not
        np.lib.format.write_array_header_1_0(output, np.lib.format.header_data_from_array_1_0(array))
        output.write(array.data)


def _limit_memory() -> None:
    """Let an allocation fail that a damaged file asks for, where the system has such a limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = LIBRARY_BYTES + 2 * memory_limit()
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read(message: bytes, answer: int) -> None:
    """In a forked reader, which the kernel ends after its time."""
    call = json.loads(message)
    signal.setitimer(signal.ITIMER_REAL, call["seconds"])
    with open(answer, "wb") as output:
        _answer(call, output)


def main(arguments: Sequence[str]) -> None:
    """Serve calls with the libraries loaded, or answer one."""
    if "--once" in arguments:
        _answer(json.load(sys.stdin), sys.stdout.buffer)
        return
    for name in ("av", "PIL.Image", "PIL.ImageOps", f"{__package__}.reading"):
        importlib.import_module(name)
    fork_server.serve(_read)
