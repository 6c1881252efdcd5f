"""Counts and durations of a batcher, for metrics."""

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
    """Durations of the newest requests, in seconds (0 without any); ``count`` is of all requests since the start."""

    count: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float], count: int) -> Percentiles:
        """Percentiles by nearest rank."""
        ordered = sorted(values)
        if not ordered:
            return cls()
        return cls(count, *(ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99)))


@dataclass(frozen=True)
class Stats:
    """A snapshot of a batcher.

    ``states``: requests now in each of the first four states, and since the start in each of the final ones. ``queue``
    requests wait, ``running`` are in ``batches``, ``memory`` bytes are reserved (0 without a limit of memory, for which
    alone they are predicted). ``steps`` of batches and
    ``request_steps`` of requests were done since the start; ``steps_per_second`` over the last 10 s. ``wait`` is from
    submission to the first step, ``run`` from there to the end of the last.
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
class Durations:
    """Durations of the newest requests, and the number of all."""

    newest: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    count: int = 0

    def add(self, seconds: float) -> None:
        """Record one request."""
        self.newest.append(seconds)
        self.count += 1

    def percentiles(self) -> Percentiles:
        """Of the newest requests."""
        return Percentiles.of(self.newest, self.count)


class Statistics:
    """Counts and durations since ``now``, as they accumulate."""

    def __init__(self, now: float) -> None:
        self.wait, self.run = Durations(), Durations()
        self.submitted = self.steps = self.request_steps = 0
        self.finished: Counter[State] = Counter()
        self._started = now
        self._recent_steps: deque[float] = deque()

    def record_step(self, now: float, requests: int) -> None:
        """A batch of ``requests`` has been stepped."""
        self.steps += 1
        self.request_steps += requests
        self._recent_steps.append(now)
        self._drop_old_steps(now)

    def snapshot(self, now: float, live: Iterable[State], *, queue: int, batches: int, memory: int) -> Stats:
        """The statistics at ``now``; ``live`` are the states of the requests that are not final."""
        self._drop_old_steps(now)
        counts = Counter(live)
        states = {state: counts[state] + self.finished[state] for state in State}
        elapsed = min(max(now - self._started, 1e-9), WINDOW)
        return Stats(
            states=MappingProxyType(states),
            queue=queue,
            running=states[State.RUNNING],
            batches=batches,
            memory=memory,
            steps=self.steps,
            request_steps=self.request_steps,
            steps_per_second=len(self._recent_steps) / elapsed,
            wait=self.wait.percentiles(),
            run=self.run.percentiles(),
        )

    def _drop_old_steps(self, now: float) -> None:
        while self._recent_steps and self._recent_steps[0] <= now - WINDOW:
            self._recent_steps.popleft()
