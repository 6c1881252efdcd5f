"""Stored jobs through the engine: each is submitted, joins the running batch, and its clips are written.

A job is completed in this order: files beside, renamed; then its row. A process that ends between the two finds the
files at its next start and only changes the row; one that ends before makes the job again. So every job is finished
once, whenever the process is killed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from ..batching import Closed, Full, Handle, State
from ..engine import Engine
from ..media.isolated import reading_isolated
from ..types import Clip
from .errors import ApiError
from .files import DataFolder
from .job_queue import JobQueue
from .live import Durations, LiveJob, Preview
from .metrics import Metrics
from .previews import LatentProjection
from .settings import ServerSettings
from .store import JobStore, VideoJob
from .tracing import Tracing
from .translation import make_request, refused

log = logging.getLogger("syncflow.serving")
RETRY = 0.2  # seconds until the engine is asked again


class Runner:
    """Runs the queued jobs of a store. Safe to use from any thread."""

    def __init__(
        self,
        engine: Engine,
        store: JobStore,
        folder: DataFolder,
        settings: ServerSettings,
        metrics: Metrics,
        tracing: Tracing | None = None,
    ) -> None:
        self.engine, self.store, self.folder, self.settings = engine, store, folder, settings
        self.metrics, self.tracing = metrics, tracing
        self.durations = Durations()
        sequence = engine.config.sequence
        with engine.components.using("video"):
            self._projection = LatentProjection.fit(engine.components.video, sequence, engine.device)
        self._changed = threading.Condition()
        self._queue = JobQueue()
        self._live: dict[str, LiveJob] = {}
        self._stopping = False
        self._submitters = ThreadPoolExecutor(settings.uploads.processes, "syncflow-submit")
        self._writers = ThreadPoolExecutor(settings.in_flight, "syncflow-write")  # they wait for encoders and the disk
        self._dispatcher = threading.Thread(target=self._dispatch, name="syncflow-dispatch", daemon=True)

    def start(self) -> None:
        """Recover what an earlier process left, and begin to work."""
        self.folder.clean(self.store.ids())
        for job in self.store.with_status("in_progress"):
            self._recover(job)
        for job in self.store.with_status("queued"):
            self.add(job)
        self._dispatcher.start()

    def add(self, job: VideoJob) -> None:
        """Take in a queued job."""
        live = LiveJob(job)
        if self.tracing is not None:
            live.span = self.tracing.begin(job, self.engine.config.name)
        with self._changed:
            self._live[job.id] = live
            self._queue.push(job.id, job.tenant, job.number)
            self._changed.notify_all()

    def live(self, job_id: str) -> LiveJob | None:
        """A job that waits or runs."""
        return self._live.get(job_id)

    def position(self, job_id: str) -> int | None:
        """The position of a job in the queue; None for one that does not wait."""
        with self._changed:
            return self._queue.position(job_id)

    def counts(self) -> tuple[int, int]:
        """Jobs that wait, and jobs that are with the engine or being written."""
        with self._changed:
            return len(self._queue), self._queue.in_flight

    def estimate(self, live: LiveJob, position: int | None) -> float | None:
        """Seconds until a job is done: from its own steps, and before those from the times of earlier jobs."""
        left = live.seconds_left
        if left is not None:
            return left
        own = self.durations.estimate(live.inference_steps)
        if own is None or position is None:
            return own
        return own * (1 + position / self.settings.in_flight)

    def delete(self, job: VideoJob) -> bool:
        """Cancel and forget a job, with its files; whether it was there.

        One that runs leaves its batch at the next step.
        """
        if not self.store.delete(job.id, job.tenant):
            return False
        with self._changed:
            self._queue.remove(job.id)
            live = self._live.get(job.id)
        if live is not None:
            live.deleted = True
            if live.handle is not None:
                live.handle.cancel()
            elif not live.dispatched:
                self._end(live)
            self.metrics.jobs.labels("cancelled").inc()
        self.folder.remove(job.id)
        return True

    def pause(self) -> None:
        """Start no more jobs."""
        self._stopping = True

    def drain(self, timeout: float) -> bool:
        """Start no more jobs, and wait for those in flight; whether all ended in time. The others are queued again."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._queue.in_flight, timeout)
        self._submitters.shutdown(wait=True, cancel_futures=True)
        for live in tuple(self._live.values()):
            if live.handle is not None:
                live.handle.cancel()
            live.notify()
        with self._changed:
            self._changed.wait_for(lambda: not self._queue.in_flight, 30)
        self._writers.shutdown()
        return done

    def _recover(self, job: VideoJob) -> None:
        """A job that was in progress when an earlier process ended."""
        result = self.folder.result(job.id)
        if result is not None:
            self.store.complete(job.id, result)
        elif job.attempts >= self.settings.attempts:
            message = f"the server ended {job.attempts} times while it made this video; it is not tried again"
            self.store.fail(job.id, "server_error", message)
        else:
            self.store.requeue(job.id, counted=True)
        log.info("recovered a job", extra={"job_id": job.id, "had_result": result is not None})

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._may_start())
                if self._stopping:
                    return
                job_id = self._queue.pop()
                live = self._live[job_id or ""]
                live.dispatched = True
            self._submitters.submit(self._guarded, live, partial(self._submit, live)).add_done_callback(
                partial(self._end_if_cancelled, live)
            )

    def _may_start(self) -> bool:
        return len(self._queue) > 0 and self._queue.in_flight < self.settings.in_flight

    def _guarded(self, live: LiveJob, work: Callable[[], None]) -> None:
        """Whatever a job does to the server, it ends: failed, or queued again where the server stops."""
        try:
            work()
        except Exception as error:
            try:
                if self._stopping and isinstance(error, Closed):
                    self.store.requeue(live.id, counted=False)
                else:
                    self._fail(live, error)
            finally:
                self._end(live)

    def _end_if_cancelled(self, live: LiveJob, future: Future[None]) -> None:
        """A job that was not submitted before the server stopped is queued still."""
        if future.cancelled():
            self._end(live)

    def _submit(self, live: LiveJob) -> None:
        if not self.store.start(live.id) or live.deleted:
            self._end(live)
            return
        job = live.job
        live.started_at = time.monotonic()
        self.metrics.queue_time.observe(live.started_at - live.queued_at)
        upload = self.folder.upload(job.id) if job.upload is not None else None
        on_step = partial(self._on_step, live, job.params["task"] != "text-to-audio")
        with reading_isolated(self.settings.uploads.reading):
            request = make_request(job.params, upload)
            while True:
                try:
                    live.handle = self.engine.submit(request, on_step=on_step)
                    break
                except Full:  # others use the engine, too
                    time.sleep(RETRY)
        if live.deleted:
            live.handle.cancel()
        live.handle.add_done_callback(partial(self._hand_over, live))
        live.notify()

    def _hand_over(self, live: LiveJob, handle: Handle[list[Clip]]) -> None:
        """In a thread of the engine, which has others to serve."""
        with suppress(RuntimeError):  # the server has stopped; the next one makes the job again
            self._writers.submit(self._guarded, live, partial(self._finish, live, handle))

    def _finish(self, live: LiveJob, handle: Handle[list[Clip]]) -> None:
        if handle.state is State.CANCELLED:
            if not live.deleted:
                self.store.requeue(live.id, counted=False)
        elif (error := handle.exception(0)) is not None:
            self._fail(live, error)
        else:
            self._complete(live, handle.result(0))
        self._end(live)

    def _complete(self, live: LiveJob, clips: list[Clip]) -> None:
        result = self.folder.save_result(live.id, clips)
        if not self.store.complete(live.id, result):  # it was deleted meanwhile
            self.folder.remove(live.id)
            return
        live.completed = True
        if live.job.upload is not None:
            self.folder.remove_upload(live.id)
        now = time.monotonic()
        began, stepped = live.first_step_at or now, live.started_at or now
        self.durations.add(live.inference_steps, now - began, max(began - stepped, 0.0))
        self.metrics.completed(now - live.queued_at, now - began, clips)
        log.info("a video is completed", extra={"job_id": live.id, "seconds": round(now - live.queued_at, 3)})

    def _fail(self, live: LiveJob, error: BaseException) -> None:
        """What a user did wrong is said; what the server did wrong stands in its log, by its kind alone."""
        if isinstance(error, (ValueError, ApiError)):
            message = refused(error, self.folder.upload(live.id)).message
            self.store.fail(live.id, "invalid_request", message)
        else:
            self.store.fail(live.id, "server_error", "the video could not be made; the server's log has the job's id")
        live.error = type(error).__name__
        log.error("a job has failed", extra={"job_id": live.id, "error": live.error})
        self.metrics.jobs.labels("failed").inc()

    def _end(self, live: LiveJob) -> None:
        with self._changed:
            if live.ended:
                return
            live.ended = True
            self._live.pop(live.id, None)
            if live.dispatched:
                self._queue.end(live.tenant)
            self._changed.notify_all()
        if self.tracing is not None:
            self.tracing.end(live, {} if live.handle is None else live.handle.times)
        live.handle = None
        live.notify()

    def _on_step(self, live: LiveJob, shown: bool, step: int, steps: int, preview: Callable[[], Any]) -> None:
        """In the thread that steps."""
        if live.first_step_at is None:
            live.first_step_at = time.monotonic()
        live.step, live.steps = step, steps
        if shown and live.watched and (step % self.settings.preview_every == 0 or step == steps):
            png, frames = self._projection.strip(preview())
            if live.preview is None or live.preview.png != png:  # a video that leads is finished before its sound
                live.preview = Preview(step, png, frames)
        live.notify()
