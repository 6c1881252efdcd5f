"""The future of a submitted request: its state, its progress and, in the end, its result or its error."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

R = TypeVar("R")
log = logging.getLogger(__name__)


class Full(RuntimeError):
    """The queue has no room; nothing was taken, and a later attempt may succeed."""


class Closed(RuntimeError):
    """The batcher takes no more requests."""


class Cancelled(RuntimeError):
    """The request was cancelled, or the batcher was closed before it was done."""


class Expired(RuntimeError):
    """The request's deadline passed before its last step was done."""


class State(StrEnum):
    """A request moves forward from QUEUED and ends in one of the last four. It is PREPARING while it is encoded."""

    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


FINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.EXPIRED})


class Progress(NamedTuple):
    """Steps done, and steps in all; (0, 0) until the request runs."""

    done: int
    steps: int


class Handle(Generic[R]):
    """Safe to use from any thread, and from any event loop: ``await handle`` is the result.

    ``for progress in handle`` and ``async for progress in handle`` give the newest :class:`Progress` whenever it has
    changed, and end with the request, however it ends; a request that starts again alone begins again at 0. A waiter
    that gives up (a timeout, a cancelled task) leaves the request as it is. ``on_final`` is called once, when the state
    is final and all callbacks have run.
    """

    def __init__(self, on_final: Callable[[State], None] | None = None) -> None:
        self._changed = threading.Condition()
        self._state = State.QUEUED
        self._times = {State.QUEUED: time.monotonic()}
        self._progress = Progress(0, 0)
        self._result: R | None = None
        self._error: BaseException | None = None
        self._on_final = on_final
        self._watchers: list[Callable[[], None]] = []
        self._callbacks: list[tuple[Callable[[Handle[R]], object], Callable[[], None]]] = []

    def __repr__(self) -> str:
        return f"<Handle {self._state} {self._progress.done}/{self._progress.steps}>"

    @property
    def state(self) -> State:
        """The state at this moment."""
        return self._state

    @property
    def progress(self) -> Progress:
        """Steps done and steps in all."""
        return self._progress

    @property
    def times(self) -> Mapping[State, float]:
        """When the request first came into each state that it has reached: seconds of ``time.monotonic``."""
        return dict(self._times)

    def done(self) -> bool:
        """Whether the state is final."""
        return self._state in FINAL

    def cancel(self) -> bool:
        """End the request now; whether this call is what ended it.

        The handle is final at once. A slot of a running batch is freed at the next step boundary.
        """
        return self.finish(State.CANCELLED, error=Cancelled("the request was cancelled"))

    def result(self, timeout: float | None = None) -> R:
        """The result, once it is there.

        Raises ``TimeoutError`` after ``timeout`` seconds, :class:`Cancelled`, :class:`Expired`, or what the request
        failed with.
        """
        error = self.exception(timeout)
        if error is None:
            return self._result  # type: ignore[return-value]
        try:
            raise error
        finally:
            del error, self  # the error's traceback holds this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What :meth:`result` raises, or None. Raises ``TimeoutError`` after ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(self.done, timeout):
                raise TimeoutError(f"the request is still {self._state} after {timeout:g} s")
        return self._error

    def cancelled(self) -> bool:
        """Whether the request was cancelled."""
        return self._state is State.CANCELLED

    def add_done_callback(self, callback: Callable[[Handle[R]], object]) -> None:
        """Call back with the handle once its state is final, or now if it is.

        Called from an event loop, as ``asyncio.wait`` does, the callback runs in that loop. Otherwise it runs in
        whichever thread ends the request, which may be the one that steps: keep it short.
        """
        call = partial(self._call, callback)
        with suppress(RuntimeError):  # there is no running loop
            call = partial(self._call_in, asyncio.get_running_loop(), callback)
        with self._changed:
            if not self.done():
                self._callbacks.append((callback, call))
                return
        call()

    def remove_done_callback(self, callback: Callable[[Handle[R]], object]) -> int:
        """Forget a callback that has not run; how often it had been added."""
        with self._changed:
            kept = [pair for pair in self._callbacks if pair[0] != callback]
            removed = len(self._callbacks) - len(kept)
            self._callbacks = kept
        return removed

    def __iter__(self) -> Iterator[Progress]:
        last = Progress(0, 0)
        final = False
        while not final:
            with self._changed:
                while not self.done() and self._progress == last:
                    self._changed.wait()
                newest, final = self._progress, self.done()
            if newest != last:
                yield newest
            last = newest

    async def __aiter__(self) -> AsyncIterator[Progress]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(changed.set)

        last = Progress(0, 0)
        with self._changed:
            self._watchers.append(wake)
        try:
            final = False
            while not final:
                changed.clear()
                with self._changed:
                    newest, final = self._progress, self.done()
                if newest != last:
                    yield newest
                last = newest
                if not final:
                    await changed.wait()
        finally:
            with self._changed, suppress(ValueError):
                self._watchers.remove(wake)

    def __await__(self) -> Generator[Any, None, R]:
        return self._outcome().__await__()

    async def _outcome(self) -> R:
        async for _ in self:
            pass
        return self.result(0)

    def advance(self, state: State, progress: Progress | None = None) -> bool:
        """For the batcher: a later state or progress. False, and no change, when the state is final."""
        with self._changed:
            if self.done():
                return False
            self._state = state
            self._times.setdefault(state, time.monotonic())
            self._progress = self._progress if progress is None else progress
            watchers = tuple(self._watchers)
            self._changed.notify_all()
        for wake in watchers:
            wake()
        return True

    def finish(self, state: State, result: R | None = None, error: BaseException | None = None) -> bool:
        """For the batcher: the final state. Only the first call counts; whether this is it."""
        assert state in FINAL
        with self._changed:
            if self.done():
                return False
            self._state, self._result, self._error = state, result, error
            self._times[state] = time.monotonic()
            on_final, watchers, callbacks = self._on_final, self._watchers, self._callbacks
            self._on_final, self._watchers, self._callbacks = None, [], []
            self._changed.notify_all()
        try:
            for wake in watchers:
                wake()
            for _, call in callbacks:
                call()
        finally:
            if on_final is not None:
                on_final(state)
        return True

    def after_fork(self, error: BaseException) -> None:
        """For the batcher, in a forked child: the request is cancelled, and no callback runs."""
        self._changed = threading.Condition()
        self._on_final, self._watchers, self._callbacks = None, [], []
        if not self.done():
            self._state, self._error = State.CANCELLED, error

    def _call_in(self, loop: asyncio.AbstractEventLoop, callback: Callable[[Handle[R]], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(callback, self)

    def _call(self, callback: Callable[[Handle[R]], object]) -> None:
        try:
            callback(self)
        except Exception:
            log.exception("a callback of a request failed")
