"""Continuous batching: requests join and leave running batches between steps."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

from .handle import Handle, State
from .limits import Limits, Policy
from .stages import Stages
from .stats import Stats
from .task import Task
from .worker import Worker

Q = TypeVar("Q")
J = TypeVar("J")
L = TypeVar("L")
R = TypeVar("R")


class Batcher(Generic[Q, J, L, R]):
    """Takes requests from any thread and works on them in threads of its own until it is closed.

    >>> with Batcher(stages, Limits(batch=4)) as batcher:
    ...     handles = [batcher.submit(request) for request in requests]
    ...     clips = [handle.result() for handle in handles]

    As a context manager it finishes what it has taken, or cancels it when the block ends by an exception. When a step
    of several requests fails, each starts again alone, once. ``clock`` gives seconds that never go back.
    """

    def __init__(
        self,
        stages: Stages[Q, J, L, R],
        limits: Limits | None = None,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages, self._clock = stages, clock
        self._worker = Worker(stages, limits or Limits(), policy or Policy(), clock)
        atexit.register(self.close)

    def submit(self, request: Q, *, priority: int = 0, deadline: float | None = None) -> Handle[R]:
        """Take a request; returns at once.

        A higher ``priority`` (-100 to 100) comes in first. A request whose last step is not done ``deadline`` seconds
        from now expires. Raises :class:`Full` when the queue has no room, :class:`Closed` after :meth:`drain` or
        :meth:`close`, and ``ValueError`` for a request that can never fit into memory or a setting out of its range.
        """

        def settled(state: State) -> None:
            self._worker.ended(task, state)

        handle: Handle[Any] = Handle(settled)
        task = Task(
            key=self._stages.key(request),
            cost=self._stages.cost(request),
            submitted=self._clock(),
            priority=priority,
            timeout=deadline,
            request=request,
            handle=handle,
        )
        self._worker.submit(task)
        return handle

    def stats(self) -> Stats:
        """Counts and times of this moment."""
        return self._worker.stats()

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait until all have ended and been told; whether they have after ``timeout`` s.

        Not from a callback, which it would wait for.
        """
        return self._worker.drain(timeout)

    def close(self) -> None:
        """Cancel what has not ended, and end the threads: after the step, preparations and decodings of the moment."""
        if self._worker.close():
            atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self.close()
