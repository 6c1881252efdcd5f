"""The jobs that wait, fairly among tenants: next comes the first job of the tenant that has the fewest in flight."""

from __future__ import annotations

from collections import Counter, deque


class JobQueue:
    """First in, first out within a tenant. Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[tuple[int, str]]] = {}
        self._tenant_of: dict[str, str] = {}
        self._in_flight: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tenant_of)

    @property
    def in_flight(self) -> int:
        """Jobs that were popped and have not ended."""
        return self._in_flight.total()

    def push(self, job_id: str, tenant: str, number: int) -> None:
        """Append a job; ``number`` orders jobs by their creation."""
        waiting = self._waiting.setdefault(tenant, deque())
        index = len(waiting)
        while index and waiting[index - 1][0] > number:  # one that comes back goes before later ones
            index -= 1
        waiting.insert(index, (number, job_id))
        self._tenant_of[job_id] = tenant

    def pop(self) -> str | None:
        """The next job, now in flight; None where none waits."""
        if not self._waiting:
            return None
        tenant = min(self._waiting, key=lambda name: (self._in_flight[name], self._waiting[name][0][0]))
        _, job_id = self._waiting[tenant].popleft()
        self._forget(tenant, job_id)
        self._in_flight[tenant] += 1
        return job_id

    def end(self, tenant: str) -> None:
        """A job in flight has ended."""
        self._in_flight[tenant] -= 1
        if not self._in_flight[tenant]:
            del self._in_flight[tenant]

    def remove(self, job_id: str) -> bool:
        """Remove a job that waits; whether it was there."""
        tenant = self._tenant_of.get(job_id)
        if tenant is None:
            return False
        self._waiting[tenant] = deque(pair for pair in self._waiting[tenant] if pair[1] != job_id)
        self._forget(tenant, job_id)
        return True

    def position(self, job_id: str) -> int | None:
        """How many jobs are likely to be served before this one; None for a job that does not wait."""
        if job_id not in self._tenant_of:
            return None
        order = sorted(
            (self._in_flight[tenant] + index, number, waiting_id)
            for tenant, waiting in self._waiting.items()
            for index, (number, waiting_id) in enumerate(waiting)
        )
        return next(place for place, (_, _, waiting_id) in enumerate(order) if waiting_id == job_id)

    def _forget(self, tenant: str, job_id: str) -> None:
        del self._tenant_of[job_id]
        if not self._waiting[tenant]:
            del self._waiting[tenant]
