"""Who comes in, who joins, which bucket steps next: decisions on a clock given from outside; no threads, no tensors.

A request waits in the queue, is admitted (its memory is reserved and it is prepared), is ready, joins its bucket's
batch at a step boundary, leaves it when its last step is done, is decoded and released. Admission goes by rank over all
shapes. A request that finds no memory holds up all behind it until there is enough, so that small ones cannot starve
it; one whose batch has no place holds up nobody.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .bucket import Bucket
from .entry import Entry, Phase
from .limits import Limits, Policy
from .queue import Queue, by_rank
from .turns import Turns

E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class Turn(Generic[E]):
    """A bucket steps, after some have joined it."""

    bucket: Bucket[E]
    joining: tuple[E, ...]


class Scheduler(Generic[E]):
    """``entries`` are all that have been submitted and not released, ``memory`` the bytes reserved."""

    def __init__(self, limits: Limits, policy: Policy) -> None:
        self.limits, self.policy = limits, policy
        self.entries: dict[E, None] = {}
        self.memory = 0
        self._queue: Queue[E] = Queue(limits.queue, policy.ageing)
        self._buckets: dict[Bucket[E], None] = {}
        self._shared: dict[Hashable, Bucket[E]] = {}
        self._turns: Turns[Bucket[E]] = Turns()
        self._timed: dict[E, None] = {}

    @property
    def waiting(self) -> int:
        """Length of the queue."""
        return len(self._queue)

    @property
    def buckets(self) -> int:
        """Batches that run or are about to."""
        return len(self._buckets)

    def submit(self, entry: E) -> None:
        """Raises ``ValueError`` for a request that can never fit, :class:`Full` for one too many."""
        if self.limits.memory is not None and entry.cost > self.limits.memory:
            raise ValueError(
                f"the request needs {_gib(entry.cost)} of memory and {_gib(self.limits.memory)} are allowed; "
                "ask for a smaller size or fewer seconds"
            )
        self._queue.push(entry)
        self.entries[entry] = None
        if entry.timeout is not None:
            self._timed[entry] = None

    def admit(self) -> list[E]:
        """Reserve memory for whoever can come in now; they are to be prepared, in this order.

        First for places that are free, then for those ``ahead``, with what memory nobody waits for.
        """
        admitted: list[E] = []
        for places in (self.limits.batch, self.limits.batch + self.limits.ahead):
            while (entry := self._first(places)) is not None:
                if self.limits.memory is not None and self.memory + entry.cost > self.limits.memory:
                    return admitted
                self._reserve(entry)
                admitted.append(entry)
        return admitted

    def prepared(self, entry: E, now: float) -> None:
        """An admitted request is ready to join."""
        bucket = _bucket_of(entry)
        bucket.preparing.remove(entry)
        self._make_ready(entry, bucket, now)

    def turn(self, now: float) -> Turn[E] | None:
        """The next step, or None when there is nothing to step."""
        able = [bucket for bucket in self._buckets if bucket.running or self._begins(bucket) <= now]
        if not able:
            return None
        bucket = self._turns.pick(able)
        free = bucket.places - len(bucket.running) if self.policy.continuous or not bucket.running else 0
        joining = tuple(bucket.ready[:free])
        del bucket.ready[:free]
        bucket.running += joining
        for entry in joining:
            entry.phase = Phase.RUNNING
        return Turn(bucket, joining)

    def stepped(self, bucket: Bucket[E], seconds: float) -> None:
        """A step is done. A request has one share of the device, a bucket for whose places others wait up to twice."""
        running = max(len(bucket.running), 1)
        behind = len(bucket) - len(bucket.running) + (0 if bucket.alone else self._queue.waiting(bucket.key))
        self._turns.charge(bucket, seconds, running + min(behind, running))

    def leave(self, entry: E) -> None:
        """A running request is out of its batch and goes to the decoders; its memory stays reserved."""
        bucket = _bucket_of(entry)
        bucket.running.remove(entry)
        entry.phase, entry.bucket = Phase.DECODING, None
        self._timed.pop(entry, None)
        self._close_if_empty(bucket)

    def isolate(self, bucket: Bucket[E], now: float) -> None:
        """Every running request of a bucket starts again in a bucket of its own."""
        for entry in bucket.running:
            apart = self._open(bucket.key, places=1, alone=True)
            self._make_ready(entry, apart, now)
        bucket.running.clear()
        self._close_if_empty(bucket)

    def release(self, entry: E) -> None:
        """Forget a request, in whatever phase it is, and what was reserved for it."""
        if entry.phase is Phase.GONE:
            return
        if entry.phase is Phase.WAITING:
            self._queue.remove(entry)
        else:
            self.memory -= entry.cost
        if (bucket := entry.bucket) is not None:
            bucket.remove(entry)
            self._close_if_empty(bucket)
        entry.phase, entry.bucket = Phase.GONE, None
        self._timed.pop(entry, None)
        del self.entries[entry]

    def overdue(self, now: float) -> list[E]:
        """Whoever is past the deadline and not yet with the decoders; each is told once."""
        late = [entry for entry in self._timed if entry.deadline <= now]
        for entry in late:
            del self._timed[entry]
        return late

    def next_event(self) -> float:
        """When something falls due though nothing happens: a deadline, or a batch that gathers; or infinity."""
        deadlines = (entry.deadline for entry in self._timed)
        begins = (self._begins(bucket) for bucket in self._buckets if not bucket.running)
        return min((*deadlines, *begins), default=math.inf)

    def _first(self, places: int) -> E | None:
        """The first whose bucket has fewer members than ``places``."""
        return self._queue.first(lambda key: key not in self._shared or len(self._shared[key]) < places)

    def _reserve(self, entry: E) -> None:
        self._queue.remove(entry)
        self.memory += entry.cost
        bucket = self._shared.get(entry.key)
        if bucket is None:
            bucket = self._shared[entry.key] = self._open(entry.key, self.limits.batch)
        bucket.preparing.append(entry)
        entry.phase, entry.bucket = Phase.PREPARING, bucket

    def _make_ready(self, entry: E, bucket: Bucket[E], now: float) -> None:
        entry.phase, entry.bucket, entry.ready_at = Phase.READY, bucket, now
        insort(bucket.ready, entry, key=by_rank)

    def _begins(self, bucket: Bucket[E]) -> float:
        return bucket.begins_at(self.policy.max_wait)

    def _open(self, key: Hashable, places: int, alone: bool = False) -> Bucket[E]:
        bucket: Bucket[E] = Bucket(key, places, alone)
        self._buckets[bucket] = None
        self._turns.open(bucket)
        return bucket

    def _close_if_empty(self, bucket: Bucket[E]) -> None:
        if len(bucket):
            return
        del self._buckets[bucket]
        self._turns.close(bucket)
        if not bucket.alone:
            del self._shared[bucket.key]


def _bucket_of(entry: E) -> Bucket[E]:
    assert entry.bucket is not None
    return entry.bucket


def _gib(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"
