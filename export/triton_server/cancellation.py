"""Cancelled requests of NVIDIA Triton Inference Server: found by asking, since its Python backend calls nobody back."""

from __future__ import annotations

import logging
import threading
from typing import Any

from ...engine.batching import Handle

INTERVAL = 0.05  # seconds between two questions; about a step of a small model on a GPU
log = logging.getLogger(__name__)


class CancellationWatcher:
    """Cancels the handles of requests whose clients have cancelled or gone, in a thread of its own.

    A sender is asked until :meth:`forget`, and never afterwards: its request is gone once the last response is sent.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._changed = threading.Condition()
        self._watched: dict[int, tuple[Any, Handle[Any]]] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="triton-cancel", daemon=True)
        self._thread.start()

    def watch(self, sender: Any, handle: Handle[Any]) -> None:
        """Cancel ``handle`` as soon as ``sender.is_cancelled()``."""
        with self._changed:
            self._watched[id(sender)] = sender, handle
            self._changed.notify()

    def forget(self, sender: Any) -> None:
        """Do not ask this sender again; to be called before it sends the last response."""
        with self._changed:
            self._watched.pop(id(sender), None)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._watched)
                if self._closing:
                    return
                cancelled = [handle for sender, handle in self._watched.values() if _is_cancelled(sender)]
            for handle in cancelled:  # outside of the lock, since callbacks run
                handle.cancel()
            with self._changed:
                self._changed.wait_for(lambda: self._closing, self._interval)


def _is_cancelled(sender: Any) -> bool:
    try:
        return bool(sender.is_cancelled())
    except Exception:
        log.exception("a request cannot be asked whether it is cancelled")
        return False
