"""The thread that steps, and the threads that prepare and decode beside it.

One lock guards the scheduler and the meter. Handles are settled, and user code runs, without it. The step thread alone
touches batches.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .bucket import Bucket
from .entry import Phase
from .errors import Cancelled, Closed, Expired
from .handle import FINAL, State
from .limits import Limits, Policy
from .scheduler import Scheduler, Turn
from .seats import Seats
from .stages import Stages
from .stats import Meter, Stats
from .task import Task, without_frames

log = logging.getLogger(__name__)


class Worker:
    """Runs tasks from submission to their end."""

    def __init__(
        self, stages: Stages[Any, Any, Any, Any], limits: Limits, policy: Policy, clock: Callable[[], float]
    ) -> None:
        self._stages, self._clock = stages, clock
        self._changed = threading.Condition()
        self._scheduler: Scheduler[Task] = Scheduler(limits, policy)
        self._meter = Meter(clock())
        self._draining = self._closing = False
        self._seats: dict[Bucket[Task], Seats[Task]] = {}
        self._own: set[int] = set()
        self._preparing = ThreadPoolExecutor(limits.prepare_threads, "syncflow-prepare", self._enrol)
        self._decoding = ThreadPoolExecutor(limits.decode_threads, "syncflow-decode", self._enrol)
        self._thread = threading.Thread(target=self._run, name="syncflow-step", daemon=True)
        self._thread.start()

    # From any thread

    def submit(self, task: Task) -> None:
        """Raises :class:`Full`, :class:`Closed`, or ``ValueError`` for a task that can never fit."""
        with self._changed:
            if self._draining or self._closing:
                raise Closed("no more requests are taken: the batcher is closing")
            self._scheduler.submit(task)
            self._meter.taken += 1
        self._proceed()

    def ended(self, task: Task, state: State) -> None:
        """A task's handle has become final, and its callbacks have been called."""
        with self._changed:
            self._meter.ended[state] += 1
            if task.phase in (Phase.WAITING, Phase.READY):
                self._scheduler.release(task)
        self._proceed()

    def stats(self) -> Stats:
        """This moment."""
        with self._changed:
            scheduler = self._scheduler
            states = [state for task in scheduler.entries if (state := task.handle.state) not in FINAL]
            return self._meter.snapshot(
                self._clock(),
                states,
                queue=scheduler.waiting,
                batches=scheduler.buckets,
                memory=scheduler.memory,
            )

    def drain(self, timeout: float | None) -> bool:
        """Take no more; wait until all have ended and their callbacks are done. Whether they have."""
        assert threading.get_ident() not in self._own, "a callback cannot wait for its own end"
        with self._changed:
            self._draining = True
            return self._changed.wait_for(self._is_idle, timeout)

    def close(self) -> bool:
        """Cancel what is left and wait until all threads have ended; False, at once, when called in one of them."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.get_ident() in self._own:
            return False
        self._thread.join()
        self._preparing.shutdown()
        self._decoding.shutdown()
        return True

    # In the threads of the pools

    def _enrol(self) -> None:
        self._own.add(threading.get_ident())

    def _prepare(self, task: Task) -> None:
        if task.handle.advance(State.PREPARING):
            try:
                task.job = self._stages.prepare(task.request)
            except BaseException as error:
                task.handle.settle(State.FAILED, error=without_frames(error))
        with self._changed:
            if task.handle.done():
                self._scheduler.release(task)
            else:
                self._scheduler.prepared(task, self._clock())
        self._proceed()

    def _decode(self, task: Task, latents: Any) -> None:
        if not task.handle.done():
            try:
                result = self._stages.decode(task.request, task.job, latents)
            except BaseException as error:
                task.handle.settle(State.FAILED, error=without_frames(error))
            else:
                task.handle.settle(State.DONE, result)
        self._release([task])

    # In the step thread

    def _run(self) -> None:
        self._enrol()
        failure: BaseException | None = None
        try:
            while not self._closing:
                self._expire()
                self._unseat()
                self._step_or_sleep()
        except BaseException as error:
            log.exception("the thread that steps has failed")
            failure = without_frames(error)
        self._end(failure)

    def _expire(self) -> None:
        with self._changed:
            late = self._scheduler.overdue(self._clock())
        for task in late:
            message = f"the request was not done within its deadline of {task.timeout:g} s"
            task.handle.settle(State.EXPIRED, error=Expired(message))

    def _unseat(self) -> None:
        """Those who ended while they ran leave their batches."""
        for bucket, seats in list(self._seats.items()):
            tasks = [task for task in seats.tasks if task.handle.done()]
            failure: BaseException | None = None
            try:
                seats.leave(tasks)
            except BaseException as error:
                failure = error
            self._release(tasks)
            if failure is not None:
                self._break_up(bucket, failure)
            elif not seats.tasks:
                del self._seats[bucket]

    def _step_or_sleep(self) -> None:
        with self._changed:
            now = self._clock()
            turn = self._scheduler.turn(now)
            if turn is None:
                if not self._closing:
                    due = max(self._scheduler.next_event() - now, 0.0)
                    self._changed.wait(min(due, threading.TIMEOUT_MAX))
                return
        self._step(turn)

    def _step(self, turn: Turn[Task]) -> None:
        bucket, began = turn.bucket, self._clock()
        self._joined(turn.joining, began)
        try:
            if bucket not in self._seats:
                self._seats[bucket] = Seats(self._stages.make(bucket.key))
            seats = self._seats[bucket]
            seats.join(turn.joining)
            requests = len(seats.tasks)
            finished = seats.step()
        except BaseException as error:
            self._break_up(bucket, error)
            return
        now = self._clock()
        with self._changed:
            self._meter.stepped(now, requests)
            self._scheduler.stepped(bucket, now - began)
            for task, _ in finished:
                self._scheduler.leave(task)
                self._meter.run.add(now - task.first_step)
        for task, latents in finished:
            task.handle.advance(State.DECODING)
            self._start(self._decoding, self._decode, task, latents)
        if not seats.tasks:
            del self._seats[bucket]

    def _joined(self, tasks: Collection[Task], now: float) -> None:
        with self._changed:
            for task in tasks:
                if math.isnan(task.first_step):
                    task.first_step = now
                    self._meter.wait.add(now - task.submitted)
        for task in tasks:
            task.handle.advance(State.RUNNING)

    def _break_up(self, bucket: Bucket[Task], error: BaseException) -> None:
        """A batch has failed, and nothing is known of its state: one request fails with it, several start again alone.

        Alone, a bad request takes nobody along, and its second failure is its end.
        """
        error = without_frames(error)
        self._seats.pop(bucket, None)
        tasks = tuple(bucket.running)
        if len(tasks) == 1:
            tasks[0].handle.settle(State.FAILED, error=error)
            self._release(tasks)
        elif tasks:
            log.warning("a step of %d requests failed; each starts again alone", len(tasks), exc_info=error)
            with self._changed:
                self._scheduler.isolate(bucket, self._clock())
            self._release([task for task in tasks if task.handle.done()])

    def _end(self, failure: BaseException | None) -> None:
        """Nobody is left without an end."""
        with self._changed:
            self._closing = True
            tasks = tuple(self._scheduler.entries)
        for pool in (self._preparing, self._decoding):
            pool.shutdown(wait=False)
        for task in tasks:
            if failure is None:
                task.handle.settle(State.CANCELLED, error=Cancelled("the batcher was closed"))
            else:
                error = RuntimeError("the thread that steps has failed")
                error.__cause__ = failure
                task.handle.settle(State.FAILED, error=error)
        self._seats.clear()
        self._release(tasks)

    # Shared

    def _is_idle(self) -> bool:
        return not self._scheduler.entries and self._meter.ended.total() == self._meter.taken

    def _release(self, tasks: Collection[Task]) -> None:
        if not tasks:
            return
        with self._changed:
            for task in tasks:
                self._scheduler.release(task)
        self._proceed()

    def _proceed(self) -> None:
        """Something has changed: let in whoever fits now, and wake who waits for changes."""
        with self._changed:
            admitted = [] if self._closing else self._scheduler.admit()
            self._changed.notify_all()
        for task in admitted:
            self._start(self._preparing, self._prepare, task)

    def _start(self, pool: ThreadPoolExecutor, work: Callable[..., None], task: Task, *values: Any) -> None:
        try:
            pool.submit(work, task, *values)
        except RuntimeError:  # the pool is shut down, by close or by the end of the program
            task.handle.settle(State.CANCELLED, error=Cancelled("the batcher was closed"))
            self._release([task])
