"""Continuous batching: the thread that steps batches, and the thread pools that encode and decode beside it.

One lock guards the scheduler and the statistics. Handles are finished, and user code runs, outside of it. The step
thread alone uses batches.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, Self, TypeVar

from ..forking import remember
from .handle import FINAL, Cancelled, Closed, Expired, Handle, State
from .policy import Limits, Policy
from .request_state import OnStep, Phase, RequestState, without_frames
from .running_batch import Backend, RunningBatch
from .scheduler import Scheduler, ShapeGroup, StepDecision
from .statistics import Statistics, Stats

Q = TypeVar("Q")  # request
J = TypeVar("J")  # job: an encoded request
L = TypeVar("L")  # latents
R = TypeVar("R")  # result
FORKED = "the process was forked after the engine had begun to work; load an engine in the child"
log = logging.getLogger(__name__)


class Batcher(Generic[Q, J, L, R]):
    """Takes requests from any thread, and works on them in threads of its own until it is closed.

    >>> with Batcher(backend, Limits(batch=4)) as batcher:
    ...     handles = [batcher.submit(request) for request in requests]
    ...     clips = [handle.result() for handle in handles]

    As a context manager it finishes what was submitted, or cancels it when the block ends by an exception. When a step
    of several requests fails, each starts again alone, once. ``clock`` gives seconds that never decrease.
    """

    def __init__(
        self,
        backend: Backend[Q, J, L, R],
        limits: Limits | None = None,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = limits or Limits()
        self._backend, self._clock = backend, clock
        self._changed = threading.Condition()
        self._scheduler: Scheduler[RequestState[Q, J, R]] = Scheduler(limits, policy or Policy())
        self._statistics = Statistics(clock())
        self._draining = self._closing = self._abandoned = self._forked = False
        self._batches: dict[ShapeGroup[RequestState[Q, J, R]], RunningBatch[Q, J, L, R]] = {}
        self._thread_ids: set[int] = set()
        self._encoders = ThreadPoolExecutor(limits.prepare_threads, "syncflow-prepare", self._start_thread)
        self._decoders = ThreadPoolExecutor(limits.decode_threads, "syncflow-decode", self._start_thread)
        self._step_thread = threading.Thread(target=self._run, name="syncflow-step", daemon=True)
        self._step_thread.start()
        atexit.register(self.close)
        remember(self)

    # Called from any thread

    def submit(
        self, request: Q, *, priority: int = 0, deadline: float | None = None, on_step: OnStep | None = None
    ) -> Handle[R]:
        """Queue a request; returns at once.

        Requests of a higher ``priority`` (-100 to 100) are served first. A request whose last step is not done
        ``deadline`` seconds from now expires. ``on_step(step, steps, preview)`` is called after each of its steps, in
        the thread that steps: keep it short. Raises :class:`Full` when the queue has no room, :class:`Closed` after
        :meth:`drain` or :meth:`close`, and ``ValueError`` for a request that can never fit into memory or a setting out
        of its range.
        """
        handle: Handle[R] = Handle(lambda final: self._on_final(state, final))
        state: RequestState[Q, J, R] = RequestState(
            request=request,
            handle=handle,
            shape=self._backend.shape(request),
            memory=0 if self._scheduler.limits.memory is None else self._backend.memory(request),
            submitted_at=self._clock(),
            priority=priority,
            timeout=deadline,
            on_step=on_step,
        )
        with self._changed:
            if self._forked:
                raise Closed(FORKED)
            if self._draining or self._closing:
                raise Closed("no more requests are taken: the batcher is closing")
            self._scheduler.submit(state)
            self._statistics.submitted += 1
        self._admit_and_notify()
        return handle

    def stats(self) -> Stats:
        """Counts and durations at this moment."""
        with self._changed:
            scheduler = self._scheduler
            live = [state for request in scheduler.requests if (state := request.handle.state) not in FINAL]
            return self._statistics.snapshot(
                self._clock(),
                live,
                queue=scheduler.num_waiting,
                batches=scheduler.num_groups,
                memory=scheduler.reserved,
            )

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait until all are final and their callbacks have run.

        Whether that is so after ``timeout`` seconds. Not from a callback, which it would wait for.
        """
        assert threading.get_ident() not in self._thread_ids, "a callback cannot wait for its own end"
        with self._changed:
            self._draining = True
            return self._forked or self._changed.wait_for(self._is_idle, timeout)

    def abandon(self) -> None:
        """Take no more requests, and end the threads once those that were submitted are final; returns at once."""
        with self._changed:
            self._draining = self._abandoned = True
            self._changed.notify_all()

    def after_fork(self) -> None:
        """In a forked child, which has none of the threads: its requests are cancelled, and none is taken."""
        self._changed = threading.Condition()
        self._closing = self._forked = True
        atexit.unregister(self.close)
        for request in tuple(self._scheduler.requests):
            request.handle.after_fork(Cancelled(FORKED))

    def close(self) -> None:
        """Cancel the requests that are not final, and end the threads once the work in progress is done.

        In one of these threads, as in a callback, it returns at once.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._forked or threading.get_ident() in self._thread_ids:
            return
        self._step_thread.join()
        self._encoders.shutdown()
        self._decoders.shutdown()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self.close()

    def _on_final(self, request: RequestState[Q, J, R], state: State) -> None:
        """The handle of a request is final, and its callbacks have run."""
        with self._changed:
            self._statistics.finished[state] += 1
            if request.phase in (Phase.WAITING, Phase.READY):
                self._scheduler.remove(request)
        self._admit_and_notify()

    # In the threads of the pools

    def _start_thread(self) -> None:
        self._thread_ids.add(threading.get_ident())
        self._backend.start_thread()

    def _encode(self, request: RequestState[Q, J, R]) -> None:
        if request.handle.advance(State.PREPARING):
            try:
                request.job = self._backend.encode(request.request)
            except BaseException as error:
                request.handle.finish(State.FAILED, error=without_frames(error))
        with self._changed:
            if request.handle.done():
                self._scheduler.remove(request)
            else:
                self._scheduler.mark_ready(request, self._clock())
        self._admit_and_notify()

    def _decode(self, request: RequestState[Q, J, R], latents: L) -> None:
        if not request.handle.done():
            try:
                result = self._backend.decode(request.request, latents)
            except BaseException as error:
                request.handle.finish(State.FAILED, error=without_frames(error))
            else:
                request.handle.finish(State.DONE, result)
        self._remove([request])

    # In the step thread

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self._start_thread()
            with self._backend.stepping():
                while not self._may_end():
                    self._expire_overdue()
                    self._remove_finished()
                    self._step_or_wait()
        except BaseException as error:
            log.exception("the thread that steps has failed")
            failure = without_frames(error)
        self._finish_all(failure)

    def _expire_overdue(self) -> None:
        with self._changed:
            overdue = self._scheduler.expire(self._clock())
        for request in overdue:
            message = f"the request was not done within its deadline of {request.timeout:g} s"
            request.handle.finish(State.EXPIRED, error=Expired(message))

    def _remove_finished(self) -> None:
        """Requests whose handles became final while they ran leave their batches."""
        for group, batch in list(self._batches.items()):
            final = [request for request in batch.requests if request.handle.done()]
            failure: BaseException | None = None
            try:
                batch.remove(final)
            except BaseException as error:
                failure = error
            self._remove(final)
            if failure is not None:
                self._fail_batch(group, failure)
            elif not batch.requests:
                del self._batches[group]

    def _step_or_wait(self) -> None:
        with self._changed:
            now = self._clock()
            decision = self._scheduler.next_step(now)
            if decision is None:
                if not self._may_end():
                    due = max(self._scheduler.next_event() - now, 0.0)
                    self._changed.wait(min(due, threading.TIMEOUT_MAX))
                return
        self._step(decision)

    def _step(self, decision: StepDecision[RequestState[Q, J, R]]) -> None:
        group, started = decision.group, self._clock()
        self._record_joining(decision.joining, started)
        try:
            if group not in self._batches:
                self._batches[group] = RunningBatch(self._backend.make_batch(group.shape))
            batch = self._batches[group]
            batch.join(decision.joining)
            stepped = len(batch.requests)
            finished = batch.step()
        except BaseException as error:
            self._fail_batch(group, error)
            return
        now = self._clock()
        with self._changed:
            self._statistics.record_step(now, stepped)
            self._scheduler.record_step(group, now - started)
            for request, _ in finished:
                self._scheduler.mark_decoding(request)
                assert request.first_step_at is not None
                self._statistics.run.add(now - request.first_step_at)
        for request, latents in finished:
            request.job = None
            request.handle.advance(State.DECODING)
            self._start(self._decoders, request, partial(self._decode, request, latents))
        if not batch.requests:
            del self._batches[group]

    def _record_joining(self, requests: Collection[RequestState[Q, J, R]], now: float) -> None:
        with self._changed:
            for request in requests:
                if request.first_step_at is None:
                    request.first_step_at = now
                    self._statistics.wait.add(now - request.submitted_at)
        for request in requests:
            request.handle.advance(State.RUNNING)

    def _fail_batch(self, group: ShapeGroup[RequestState[Q, J, R]], error: BaseException) -> None:
        """A batch has failed and its state is unknown: a single request fails with it, several start again alone.

        Alone, a bad request affects no other, and its second failure is final.
        """
        error = without_frames(error)
        self._batches.pop(group, None)
        requests = tuple(group.running)
        if len(requests) == 1:
            requests[0].handle.finish(State.FAILED, error=error)
            self._remove(requests)
        elif requests:
            log.warning("a step of %d requests failed; each starts again alone", len(requests), exc_info=error)
            with self._changed:
                self._scheduler.isolate(group, self._clock())
            self._remove([request for request in requests if request.handle.done()])

    def _finish_all(self, failure: BaseException | None) -> None:
        """Every request that is left becomes final: cancelled, or failed with the step thread."""
        with self._changed:
            self._closing = True
            requests = tuple(self._scheduler.requests)
        for pool in (self._encoders, self._decoders):
            pool.shutdown(wait=False)
        for request in requests:
            if failure is None:
                request.handle.finish(State.CANCELLED, error=Cancelled("the batcher was closed"))
            else:
                error = RuntimeError("the thread that steps has failed")
                error.__cause__ = failure
                request.handle.finish(State.FAILED, error=error)
        self._batches.clear()
        self._remove(requests)
        if self._abandoned:
            atexit.unregister(self.close)

    # Shared

    def _may_end(self) -> bool:
        return self._closing or (self._abandoned and self._is_idle())

    def _is_idle(self) -> bool:
        return not self._scheduler.requests and self._statistics.finished.total() == self._statistics.submitted

    def _remove(self, requests: Collection[RequestState[Q, J, R]]) -> None:
        if not requests:
            return
        with self._changed:
            for request in requests:
                self._scheduler.remove(request)
        self._admit_and_notify()

    def _admit_and_notify(self) -> None:
        """After any change: encode the requests that fit now, and wake the threads that wait for changes."""
        with self._changed:
            admitted = [] if self._closing else self._scheduler.admit()
            self._changed.notify_all()
        for request in admitted:
            self._start(self._encoders, request, partial(self._encode, request))

    def _start(self, pool: ThreadPoolExecutor, request: RequestState[Q, J, R], work: Callable[[], None]) -> None:
        try:
            pool.submit(work)
        except RuntimeError:  # the pool is shut down, by close or by the end of the program
            request.handle.finish(State.CANCELLED, error=Cancelled("the batcher was closed"))
            self._remove([request])
