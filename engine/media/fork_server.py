"""A process that has the media libraries loaded and forks a reader for every call (Linux).

Loading the libraries takes longer than reading most files. The fork server opens no file itself, so a reader begins as
a new process does, whatever became of the readers before it.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

AVAILABLE = sys.platform == "linux"
MESSAGE_BYTES = 1 << 16
Start = Callable[[socket.socket], "subprocess.Popen[bytes]"]  # the command that runs `serve`, with this standard input
Reader = Callable[[bytes, int], None]  # does what a message says, and writes to a file descriptor


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[bytes]
    calls: socket.socket


class ForkServer:
    """The caller's side, for any thread: the server is started by the first call, and again where it was killed."""

    def __init__(self, start: Start) -> None:
        self._start, self._lock = start, threading.Lock()
        self._running: _Running | None = None
        os.register_at_fork(after_in_child=self._after_fork)
        atexit.register(self.close)

    def call(self, message: bytes) -> tuple[bytes, int]:
        """What a reader writes, and its exit code, which is negative for a signal.

        Raises ``ConnectionError`` where no server stays alive.
        """
        running = self._server()
        try:
            return _ask(running.calls, message)
        except ConnectionError:
            return _ask(self._server(instead_of=running).calls, message)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server, which is started if need be."""
        return self._server().process

    def close(self) -> None:
        """End the server; readers that run go on."""
        with self._lock:
            self._end()

    def _server(self, instead_of: _Running | None = None) -> _Running:
        with self._lock:
            if self._running is instead_of:
                self._end()
            if self._running is None:
                calls, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with other:
                    self._running = _Running(self._start(other), calls)
            return self._running

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.calls.close()
            running.process.kill()
            running.process.wait()

    def _after_fork(self) -> None:
        """The child has a server of its own."""
        self._lock, self._running = threading.Lock(), None


def _ask(calls: socket.socket, message: bytes) -> tuple[bytes, int]:
    (answer, answer_end), (status, status_end) = os.pipe(), os.pipe()
    with open(answer, "rb") as content, open(status, "rb") as code:
        try:
            socket.send_fds(calls, [message], [answer_end, status_end])
        finally:
            os.close(answer_end)
            os.close(status_end)
        written, said = content.read(), code.read()
    if not said:
        raise ConnectionError("the fork server has ended")
    return written, int(said)


def serve(read: Reader) -> None:
    """The server's side: fork for every message on standard input, until its other end is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that watch the readers
    with socket.socket(fileno=0) as calls:
        while True:
            message, descriptors, _, _ = socket.recv_fds(calls, MESSAGE_BYTES, 2)
            if not message:
                return
            if os.fork() == 0:
                calls.close()
                _exit_after(_watch, read, message, *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def _watch(read: Reader, message: bytes, answer: int, status: int) -> None:
    """Fork a reader, and write its exit code when it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reader = os.fork()
    if reader == 0:
        os.close(status)
        _exit_after(read, message, answer)
    os.close(answer)
    os.write(status, b"%d" % os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]))


def _exit_after(work: Callable[..., None], *arguments: Any) -> None:
    """End a forked process with the code 0, or 1 after an exception, without what its parent does at its end."""
    code = 1
    try:
        work(*arguments)
        code = 0
    finally:
        os._exit(code)
