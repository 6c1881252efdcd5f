"""Jobs that wait or run in this process: their progress, previews, and those who watch them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ..batching import Handle
from ..types import Clip
from .store import VideoJob


@dataclass(frozen=True)
class Preview:
    """A PNG with ``frames`` pictures side by side, after ``step``."""

    step: int
    png: bytes
    frames: int


class LiveJob:
    """One stored ``job`` until it ends. Threads of the engine change it, event loops watch it."""

    def __init__(self, job: VideoJob) -> None:
        self.job, self.id, self.tenant = job, job.id, job.tenant
        self.inference_steps: int = job.params["num_inference_steps"]
        self.step = self.steps = 0  # of the loop, which steps the modalities one after the other if one leads
        self.preview: Preview | None = None
        self.handle: Handle[list[Clip]] | None = None
        self.started_at: float | None = None
        self.first_step_at: float | None = None
        self.queued_at = time.monotonic()
        self.dispatched = self.ended = self.deleted = False
        self.span: Any = None  # of OpenTelemetry
        self.completed = False
        self.error: str | None = None  # its type
        self._lock = threading.Lock()
        self._watchers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def progress(self) -> int:
        """Percent of the steps that are done, at most 99 before the end."""
        return min(99, 100 * self.step // max(self.steps, 1))

    @property
    def seconds_left(self) -> float | None:
        """Of its steps, at the pace of those that are done; None before the second one."""
        if self.first_step_at is None or self.step < 2:
            return None
        return (time.monotonic() - self.first_step_at) / (self.step - 1) * (self.steps - self.step)

    @property
    def outcome(self) -> str:
        """How it ended; ``requeued``: the server stopped."""
        if self.completed or self.error is not None:
            return "completed" if self.completed else "failed"
        return "cancelled" if self.deleted else "requeued"

    @property
    def watched(self) -> bool:
        """Whether anybody watches."""
        return bool(self._watchers)

    def notify(self) -> None:
        """Wake those who watch."""
        with self._lock:
            watchers = tuple(self._watchers)
        for loop, changed in watchers:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(changed.set)

    @contextmanager
    def watch(self) -> Iterator[asyncio.Event]:
        """An event that is set at every change; in an event loop."""
        watcher = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._watchers.append(watcher)
        try:
            yield watcher[1]
        finally:
            with self._lock:
                self._watchers.remove(watcher)


class Durations:
    """How long jobs take: moving averages over the newest ones, in seconds."""

    WEIGHT = 0.2  # of the newest

    def __init__(self) -> None:
        self.step: float | None = None
        self.rest: float | None = None

    def add(self, steps: int, stepping: float, rest: float) -> None:
        """A job was done: its inference ``steps`` took ``stepping`` seconds, everything else ``rest``."""
        self.step = self._mixed(self.step, stepping / max(steps, 1))
        self.rest = self._mixed(self.rest, rest)

    def estimate(self, steps: float) -> float | None:
        """Seconds of a job with this many inference steps to go; None before the first job was done."""
        return None if self.step is None or self.rest is None else steps * self.step + self.rest

    def _mixed(self, old: float | None, new: float) -> float:
        return new if old is None else (1 - self.WEIGHT) * old + self.WEIGHT * new
