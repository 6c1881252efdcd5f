"""Counts and times for a metrics page."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .handle import State

WINDOW = 10.0  # seconds over which rates are taken
KEPT = 1024  # newest requests whose times are kept


@dataclass(frozen=True)
class Percentiles:
    """Of the newest requests, in seconds; 0 without any. ``count`` is how many there were since the beginning."""

    count: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float], count: int) -> Percentiles:
        """Nearest ranks."""
        ordered = sorted(values)
        if not ordered:
            return cls()
        return cls(count, *(ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99)))


@dataclass(frozen=True)
class Stats:
    """A moment of a batcher.

    ``states``: requests now in each of the first four states, and since the beginning in each of the final ones.
    ``queue`` requests wait, ``running`` are in ``batches``, ``memory`` bytes are reserved. ``steps`` of batches and
    ``request_steps`` of requests have been made since the beginning; ``steps_per_second`` over the last 10 s.
    ``wait`` is from submission to the first step, ``run`` from there to the end of the last.
    """

    states: Mapping[State, int]
    queue: int
    running: int
    batches: int
    memory: int
    steps: int
    request_steps: int
    steps_per_second: float
    wait: Percentiles
    run: Percentiles


@dataclass
class Times:
    """Durations of requests: the newest, and how many in all."""

    newest: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    count: int = 0

    def add(self, seconds: float) -> None:
        """One more."""
        self.newest.append(seconds)
        self.count += 1

    def percentiles(self) -> Percentiles:
        """As of now."""
        return Percentiles.of(self.newest, self.count)


class Meter:
    """What a batcher has done since ``now``."""

    def __init__(self, now: float) -> None:
        self.wait, self.run = Times(), Times()
        self.taken = self.steps = self.request_steps = 0
        self.ended: Counter[State] = Counter()
        self._began = now
        self._recent: deque[float] = deque()

    def stepped(self, now: float, requests: int) -> None:
        """A batch has made a step."""
        self.steps += 1
        self.request_steps += requests
        self._recent.append(now)
        self._forget(now)

    def snapshot(self, now: float, live: Iterable[State], *, queue: int, batches: int, memory: int) -> Stats:
        """``live`` are the states of the requests that have not ended."""
        self._forget(now)
        counts = Counter(live)
        states = {state: counts[state] + self.ended[state] for state in State}
        elapsed = min(max(now - self._began, 1e-9), WINDOW)
        return Stats(
            states=MappingProxyType(states),
            queue=queue,
            running=states[State.RUNNING],
            batches=batches,
            memory=memory,
            steps=self.steps,
            request_steps=self.request_steps,
            steps_per_second=len(self._recent) / elapsed,
            wait=self.wait.percentiles(),
            run=self.run.percentiles(),
        )

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0] <= now - WINDOW:
            self._recent.popleft()
