"""One server's parts in one place, and what the routes ask of them."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..engine import Engine
from ..media.isolated import reading_isolated
from ..types import Request
from .derived import Inspect
from .errors import ApiError, wrong_value
from .files import DataFolder
from .keys import ApiKey, KeyRing, RateLimiter
from .metrics import Metrics
from .runner import Runner
from .schemas import Take, Video, VideoCreateParams, VideoError
from .settings import MIB, ServerSettings, retry_after
from .store import JobStore, NewJob, VideoJob
from .tracing import Tracing
from .translation import complete_params, make_request, refused
from .uploads import FIELD, MediaKind

log = logging.getLogger("syncflow.serving")
SWEEP = 30.0  # seconds between two searches for what has expired
KEPT_FREE = 64 * MIB  # of the disk


class Service:
    """The engine, the jobs and the limits of a server."""

    def __init__(
        self, engine: Engine, settings: ServerSettings, inspect: Inspect | None = None, tracing: Tracing | None = None
    ) -> None:
        self.engine, self.settings, self.inspect, self.tracing = engine, settings, inspect, tracing
        self.keys, self.rates, self.metrics = KeyRing.load(settings.keys), RateLimiter(), Metrics()
        self.folder = DataFolder(settings.data)
        self.store = JobStore(settings.database_url, self.folder.server)
        self.runner = Runner(engine, self.store, self.folder, settings, self.metrics, tracing)
        self.metrics.observe(engine.describe(), self.runner.counts, engine.batcher.stats)
        self.draining = False
        if engine.limits.memory is not None:
            engine.backend.memory(engine.pipeline.prepare(Request("the first estimate takes seconds")))
        self.started_at = time.time()

    def prepare(self, given: VideoCreateParams, kind: MediaKind | None, upload: Path | None) -> dict[str, Any]:
        """Complete parameters of a request that the model can serve. Raises :class:`ApiError` for any other."""
        limits, config = self.settings.requests, self.engine.config
        params = complete_params(given, kind, config, limits)
        try:
            with reading_isolated(self.settings.uploads.reading):
                prepared = self.engine.pipeline.prepare(make_request(params, upload))
            most = self.engine.limits.memory
            needed = 0 if most is None else self.engine.backend.memory(prepared)
        except ValueError as error:
            raise refused(error, upload) from error
        if most is not None and needed > most:
            raise wrong_value("size", f"size and seconds need {needed:,} bytes of memory and {most:,} are allowed")
        if prepared.sequence.seconds > limits.seconds:
            message = f"{FIELD} has {prepared.sequence.seconds:g} s; at most {limits.seconds:g} s are generated"
            raise wrong_value("seconds" if upload is None else FIELD, message)
        return params | {"seconds": prepared.sequence.seconds}

    def add(self, new: NewJob, key: ApiKey) -> tuple[VideoJob, bool]:
        """Store a job and let it run. -> the job, and whether it is new. Raises :class:`ApiError`."""
        self.check_accepting()
        try:
            job, is_new = self.store.add(new, key, self.settings.queue)
        except ApiError as error:
            if error.status == 429 and error.code != "quota_exceeded":
                error.retry_after = retry_after(self.runner.durations.estimate(self.engine.config.sampling.steps) or 2)
            self.metrics.refused.labels(error.code).inc()
            raise
        if is_new:
            self.runner.add(job)
        return job, is_new

    def check_accepting(self) -> None:
        """Raises :class:`ApiError` where no job can be taken: 503 while draining, 429 where the disk is full."""
        if self.draining:
            raise ApiError(503, "the server is stopping", "stopping", retry_after=10)
        if shutil.disk_usage(self.settings.data).free < KEPT_FREE + self.settings.uploads.bytes:
            raise ApiError(429, "the disk of the server is full", "disk_full", retry_after=60)

    def job(self, video_id: str, key: ApiKey) -> VideoJob | None:
        """A job of the key's tenant."""
        return self.store.get(video_id, key.tenant)

    def video(self, job: VideoJob) -> Video:
        """A job as the API shows it."""
        params, live = job.params, self.runner.live(job.id)
        fps = self.engine.config.sequence.fps
        position = estimate = None
        done = 100 if job.status == "completed" else 0
        if live is not None and not done:
            position = self.runner.position(job.id)
            estimate = self.runner.estimate(live, position)
            done = live.progress
        takes = [] if job.result is None else job.result["takes"]
        expires = None if job.completed_at is None else int(job.completed_at + self.settings.retention)
        return Video(
            id=job.id,
            model=self.engine.config.name,
            status=job.status,
            progress=done,
            created_at=int(job.created_at),
            completed_at=None if job.completed_at is None else int(job.completed_at),
            expires_at=expires,
            prompt=params["prompt"],
            seconds=f"{params['seconds']:g}",
            size=f"{params['width']}x{params['height']}",
            error=None if job.error is None else VideoError(**job.error),
            task=params["task"],
            seed=params["seed"],
            num_frames=round(params["seconds"] * fps),
            fps=fps,
            num_inference_steps=params["num_inference_steps"],
            queue_position=position,
            estimated_seconds=None if estimate is None else round(estimate, 2),
            params=dict(params),
            takes=[
                Take(take=number, audio_seed=take.get("audio_seed", params["seed"]), files=take["files"])
                for number, take in enumerate(takes, 1)
            ],
        )

    def sweep(self, clock: Callable[[], float] = time.time) -> int:
        """Remove expired jobs, and the oldest ones where the folder is too large. -> how many."""
        removed = 0
        for job in self.store.finished(clock() - self.settings.retention):
            removed += self._forget(job)
        size = self.folder.size()
        while size > self.settings.disk and (oldest := self.store.finished(most=16)):
            for job in oldest:
                removed += self._forget(job)
            size = self.folder.size()
        self.metrics.data.set(size)
        if removed:
            log.info("removed expired videos", extra={"videos": removed})
        return removed

    def pause(self) -> None:
        """Take and start no more jobs, from a signal handler: no lock, no log."""
        self.draining = True
        self.runner.pause()

    def stop(self) -> bool:
        """Finish what is in progress within the drain time, and close everything. Whether all was finished."""
        self.pause()
        log.info("stopping: jobs in progress are finished")
        finished = self.runner.drain(self.settings.drain)
        self.store.close()
        self.folder.close()
        if self.tracing is not None:
            self.tracing.close()
        return finished

    def _forget(self, job: VideoJob) -> bool:
        gone = self.store.delete(job.id)
        self.folder.remove(job.id)
        return gone
