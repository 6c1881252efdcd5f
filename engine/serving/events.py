"""Progress of a job as server-sent events: ``progress``, ``preview``, and at the end ``completed``, ``failed`` or
``deleted``."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from anyio.to_thread import run_sync

from .service import Service
from .store import VideoJob

POLL = 1.0  # seconds between two looks at the queue
HEARTBEAT = 15.0


async def events(service: Service, job: VideoJob) -> AsyncIterator[str]:
    """The events of a job until it ends, or the server stops."""
    live = service.runner.live(job.id)
    if live is not None:
        with live.watch() as changed:
            last: dict[str, Any] = {}
            preview, spoke = live.preview, time.monotonic()
            while not live.ended and not service.draining:
                changed.clear()
                if live.preview is not None and live.preview is not preview:
                    preview, spoke = live.preview, time.monotonic()
                    picture = "data:image/png;base64," + base64.b64encode(preview.png).decode()
                    yield event("preview", {"step": preview.step, "frames": preview.frames, "image": picture})
                now = _progress(service, job.id)
                if now is not None and now != last:
                    last, spoke = now, time.monotonic()
                    yield event("progress", now)
                elif time.monotonic() - spoke > HEARTBEAT:
                    spoke = time.monotonic()
                    yield ": still here\n\n"
                try:
                    await asyncio.wait_for(changed.wait(), POLL)
                except TimeoutError:
                    continue
    ended = await run_sync(service.store.get, job.id, job.tenant)
    if ended is None:
        yield event("deleted", {"id": job.id})
    elif ended.status in ("completed", "failed"):
        yield event(ended.status, service.video(ended).model_dump())


def _progress(service: Service, job_id: str) -> dict[str, Any] | None:
    live = service.runner.live(job_id)
    if live is None:
        return None
    position = service.runner.position(job_id)
    estimate = service.runner.estimate(live, position)
    return {
        "status": "queued" if position is not None else "in_progress",
        "step": live.step,
        "steps": live.steps,
        "progress": live.progress,
        "queue_position": position,
        "estimated_seconds": None if estimate is None else round(estimate, 1),
    }


def event(name: str, values: dict[str, Any]) -> str:
    """One event as text."""
    return f"event: {name}\ndata: {json.dumps(values)}\n\n"
