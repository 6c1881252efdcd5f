"""Runs a command and ends with it every process that the command has started: ``python -m … guard PARENT COMMAND…``.

The guard is a process of its own, without libraries, between the one that watches a run and the one that works. It ends
the whole tree when the command ends, when it gets SIGTERM, and when its parent dies by any signal. Processes that have
left the group of the command (compilers in sessions of their own) are found too: Linux gives orphans to the guard.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
WATCHED = {signal.SIGTERM, signal.SIGCHLD}
PATIENCE = 20.0  # seconds until killed processes that do not end, such as those that wait for a device, are left


def guarded(command: list[str]) -> list[str]:
    """``command`` under a guard whose parent is this process."""
    return [sys.executable, "-m", f"{__package__}.guard", str(os.getpid()), *command]


def end_with_parent(number: int, parent: int) -> None:
    """Let Linux send signal ``number`` to this process when its parent dies; end now if that has already happened."""
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        raise SystemExit(1)


def main(arguments: list[str]) -> int:
    """The exit code of the command, 128 + n if signal n ended it; 143 after SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    end_with_parent(signal.SIGTERM, int(arguments[0]))
    own = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        end_with_parent(signal.SIGKILL, own)

    worker = subprocess.Popen(arguments[1:], preexec_fn=prepare)  # safe: this process has one thread
    while worker.poll() is None:
        if signal.sigwait(WATCHED) == signal.SIGTERM:
            end_descendants()
            return 128 + signal.SIGTERM
    end_descendants()
    return worker.returncode if worker.returncode >= 0 else 128 - worker.returncode


def end_descendants() -> None:
    """SIGKILL to every process below this one until none is left."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for process in descendants(os.getpid()):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def descendants(root: int) -> list[int]:
    """The processes below ``root``, by /proc; none where that does not exist."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, pending = [], [root]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
