"""Scheduling decisions at step boundaries, on a clock given from outside: no threads, no tensors.

A request waits in the queue, is admitted (its memory is reserved and it is encoded), is ready, joins the batch of its
shape group at a step boundary, leaves it after its last step, is decoded and removed.

*Queue.* Priority with ageing: a request of priority p that has waited w seconds counts p + w / ageing. All age at one
rate, so the order of two requests never changes; it is that of the rank submitted_at / ageing - p, first come first
served within a rank. A request is overtaken only by one of a higher priority q submitted at most (q - p) * ageing
seconds later.

*Admission.* By rank over all shapes. A request that finds no memory blocks those behind it until there is enough, so
that small requests cannot starve it; one whose batch is full blocks none.

*Fair share.* Weighted fair queueing of device time among shape groups: the virtual time of a group is its device time
over its weight, and the group with the least virtual time steps next. A group that arrives, or returns, starts at the
virtual time that is being served, so that idle time earns nothing. Between two steps of a group whose step costs s at
weight w, another of weight v gets at most v s / w seconds and one step more.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import Any, Generic, TypeVar

from .handle import Full
from .policy import Limits, Policy
from .request_state import Phase, RequestState

S = TypeVar("S", bound=RequestState[Any, Any, Any])
G = TypeVar("G", bound=Hashable)
by_rank = attrgetter("rank")


class Queue(Generic[S]):
    """At most ``capacity`` waiting requests, sorted by rank within each shape."""

    def __init__(self, capacity: int, ageing: float) -> None:
        self.capacity, self.ageing = capacity, ageing
        self._by_shape: dict[Hashable, list[S]] = {}
        self._serial = count()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def num_waiting(self, shape: Hashable) -> int:
        """How many requests of a shape wait."""
        return len(self._by_shape.get(shape, ()))

    def push(self, request: S) -> None:
        """Add a request. Raises :class:`Full`."""
        if self._length >= self.capacity:
            raise Full(f"the queue is full: {self._length} requests wait and {self.capacity} may; try again later")
        request.rank = request.submitted_at / self.ageing - request.priority, next(self._serial)
        insort(self._by_shape.setdefault(request.shape, []), request, key=by_rank)
        self._length += 1

    def first(self, allowed: Callable[[Hashable], bool]) -> S | None:
        """The request of least rank among the allowed shapes."""
        heads = [requests[0] for shape, requests in self._by_shape.items() if allowed(shape)]
        return min(heads, key=by_rank, default=None)

    def remove(self, request: S) -> None:
        """Remove a request from any position."""
        requests = self._by_shape[request.shape]
        index = bisect_left(requests, request.rank, key=by_rank)
        assert requests[index] is request
        del requests[index]
        if not requests:
            del self._by_shape[request.shape]
        self._length -= 1


@dataclass(eq=False)
class ShapeGroup(Generic[S]):
    """Admitted requests of one latent shape, of which at most ``capacity`` run; ``ready`` is sorted by rank.

    ``isolated``: a group of a single request, which no other may join.
    """

    shape: Hashable
    capacity: int
    isolated: bool = False
    preparing: list[S] = field(default_factory=list)
    ready: list[S] = field(default_factory=list)
    running: list[S] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.preparing) + len(self.ready) + len(self.running)

    def remove(self, request: S) -> None:
        """Remove a member in any phase."""
        for members in (self.preparing, self.ready, self.running):
            if request in members:
                members.remove(request)

    def starts_at(self, max_wait: float) -> float:
        """When a batch without running requests starts: at once if it is full, or ``max_wait`` s after its first."""
        if len(self.ready) >= self.capacity:
            return -math.inf
        return min((request.ready_at for request in self.ready), default=math.inf) + max_wait


class FairShare(Generic[G]):
    """The virtual times of all groups."""

    def __init__(self) -> None:
        self._virtual_time: dict[G, float] = {}
        self._last_selected: dict[G, int] = {}
        self._served = 0.0
        self._selections = 0

    def add(self, group: G) -> None:
        """A group arrives."""
        self._virtual_time[group], self._last_selected[group] = self._served, 0

    def remove(self, group: G) -> None:
        """A group goes."""
        del self._virtual_time[group], self._last_selected[group]

    def select(self, able: Collection[G]) -> G:
        """The group, of those able to step, that steps next; of equal virtual times the least recently selected."""
        selected = min(able, key=lambda group: (self._virtual_time[group], self._last_selected[group]))
        self._served = max(self._served, self._virtual_time[selected])
        for idle in self._virtual_time.keys() - set(able):
            self._virtual_time[idle] = max(self._virtual_time[idle], self._served)
        self._selections += 1
        self._last_selected[selected] = self._selections
        return selected

    def charge(self, group: G, seconds: float, weight: float) -> None:
        """A step of a group took ``seconds`` of device time."""
        self._virtual_time[group] += seconds / weight


@dataclass(frozen=True)
class StepDecision(Generic[S]):
    """The group to step next, after the requests ``joining`` have joined its batch."""

    group: ShapeGroup[S]
    joining: tuple[S, ...]


class Scheduler(Generic[S]):
    """``requests`` are all that were submitted and not removed, ``reserved`` the bytes of memory reserved for them."""

    def __init__(self, limits: Limits, policy: Policy) -> None:
        self.limits, self.policy = limits, policy
        self.requests: dict[S, None] = {}
        self.reserved = 0
        self._queue: Queue[S] = Queue(limits.queue, policy.ageing)
        self._groups: dict[ShapeGroup[S], None] = {}
        self._group_of: dict[S, ShapeGroup[S]] = {}
        self._open_groups: dict[Hashable, ShapeGroup[S]] = {}
        self._fair_share: FairShare[ShapeGroup[S]] = FairShare()
        self._timed: dict[S, None] = {}

    @property
    def num_waiting(self) -> int:
        """Length of the queue."""
        return len(self._queue)

    @property
    def num_groups(self) -> int:
        """Batches that run or are about to."""
        return len(self._groups)

    def group_of(self, request: S) -> ShapeGroup[S] | None:
        """The group of a request between admission and its last step."""
        return self._group_of.get(request)

    def submit(self, request: S) -> None:
        """Queue a request. Raises ``ValueError`` for one that can never fit, :class:`Full` for one too many."""
        if self.limits.memory is not None and request.memory > self.limits.memory:
            raise ValueError(
                f"the request needs {_gib(request.memory)} of memory and {_gib(self.limits.memory)} are allowed; "
                "ask for a smaller size or fewer seconds"
            )
        self._queue.push(request)
        self.requests[request] = None
        if request.timeout is not None:
            self._timed[request] = None

    def admit(self) -> list[S]:
        """Reserve memory for every request that can enter now; they are to be encoded, in this order.

        First for free slots of batches, then for those ``ahead``, with memory that no waiting request needs.
        """
        admitted: list[S] = []
        for members in (self.limits.batch, self.limits.batch + self.limits.ahead):
            while (request := self._first_with_room(members)) is not None:
                if self.limits.memory is not None and self.reserved + request.memory > self.limits.memory:
                    return admitted
                self._reserve(request)
                admitted.append(request)
        return admitted

    def mark_ready(self, request: S, now: float) -> None:
        """An admitted request has been encoded and can join."""
        group = self._group_of[request]
        group.preparing.remove(request)
        self._make_ready(request, group, now)

    def next_step(self, now: float) -> StepDecision[S] | None:
        """The next step, or None when there is nothing to step."""
        able = [group for group in self._groups if group.running or group.starts_at(self.policy.max_wait) <= now]
        if not able:
            return None
        group = self._fair_share.select(able)
        free = group.capacity - len(group.running) if self.policy.continuous or not group.running else 0
        joining = tuple(group.ready[:free])
        del group.ready[:free]
        group.running += joining
        for request in joining:
            request.phase = Phase.RUNNING
        return StepDecision(group, joining)

    def record_step(self, group: ShapeGroup[S], seconds: float) -> None:
        """A step is done. A group weighs as many shares as requests run, up to twice that if others wait for it."""
        running = max(len(group.running), 1)
        behind = len(group) - len(group.running) + (0 if group.isolated else self._queue.num_waiting(group.shape))
        self._fair_share.charge(group, seconds, running + min(behind, running))

    def mark_decoding(self, request: S) -> None:
        """A running request has left its batch and is decoded; its memory stays reserved."""
        request.phase = Phase.DECODING
        self._timed.pop(request, None)
        self._leave_group(request)

    def isolate(self, group: ShapeGroup[S], now: float) -> None:
        """Every running request of a group starts again in a group of its own."""
        for request in group.running:
            self._make_ready(request, self._add_group(group.shape, capacity=1, isolated=True), now)
        group.running.clear()
        self._remove_if_empty(group)

    def remove(self, request: S) -> None:
        """Forget a request in any phase, and release what was reserved for it."""
        if request.phase is Phase.REMOVED:
            return
        if request.phase is Phase.WAITING:
            self._queue.remove(request)
        else:
            self.reserved -= request.memory
        self._leave_group(request)
        request.phase = Phase.REMOVED
        self._timed.pop(request, None)
        del self.requests[request]

    def expire(self, now: float) -> list[S]:
        """Requests past their deadline whose steps are not done; each is returned once."""
        overdue = [request for request in self._timed if request.deadline <= now]
        for request in overdue:
            del self._timed[request]
        return overdue

    def next_event(self) -> float:
        """When something is due without any change: a deadline, or the start of a gathering batch; or infinity."""
        deadlines = (request.deadline for request in self._timed)
        starts = (group.starts_at(self.policy.max_wait) for group in self._groups if not group.running)
        return min((*deadlines, *starts), default=math.inf)

    def _first_with_room(self, members: int) -> S | None:
        """The first waiting request whose group has fewer than ``members``."""

        def has_room(shape: Hashable) -> bool:
            return shape not in self._open_groups or len(self._open_groups[shape]) < members

        return self._queue.first(has_room)

    def _reserve(self, request: S) -> None:
        self._queue.remove(request)
        self.reserved += request.memory
        group = self._open_groups.get(request.shape)
        if group is None:
            group = self._open_groups[request.shape] = self._add_group(request.shape, self.limits.batch)
        group.preparing.append(request)
        request.phase, self._group_of[request] = Phase.PREPARING, group

    def _make_ready(self, request: S, group: ShapeGroup[S], now: float) -> None:
        request.phase, request.ready_at, self._group_of[request] = Phase.READY, now, group
        insort(group.ready, request, key=by_rank)

    def _leave_group(self, request: S) -> None:
        group = self._group_of.pop(request, None)
        if group is not None:
            group.remove(request)
            self._remove_if_empty(group)

    def _add_group(self, shape: Hashable, capacity: int, isolated: bool = False) -> ShapeGroup[S]:
        group: ShapeGroup[S] = ShapeGroup(shape, capacity, isolated)
        self._groups[group] = None
        self._fair_share.add(group)
        return group

    def _remove_if_empty(self, group: ShapeGroup[S]) -> None:
        if len(group):
            return
        del self._groups[group]
        self._fair_share.remove(group)
        if not group.isolated:
            del self._open_groups[group.shape]


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
