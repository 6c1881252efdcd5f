"""What a server says of itself: its model, its health, its metrics, and the state of its engine."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import asdict
from typing import Any, get_args

from anyio.to_thread import run_sync
from fastapi import APIRouter, Response

from .access import Key, Served
from .errors import ApiError
from .routes_videos import refusals
from .schemas import MAX_PROMPT, Task
from .service import Service

COUNTS = ("queue", "running", "batches", "memory", "steps", "request_steps", "steps_per_second")
router = APIRouter(tags=["server"])


@router.get("/v1/models", responses=refusals(401, 429))
async def list_models(service: Served, key: Key) -> dict[str, Any]:
    """The served model, its tasks, defaults and limits."""
    return {"object": "list", "data": [_model(service)]}


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@router.get("/ready", responses=refusals(503))
async def ready(service: Served) -> dict[str, str]:
    """Whether new videos are accepted: 503 while the server stops."""
    if service.draining:
        raise ApiError(503, "the server is stopping", "stopping", retry_after=10)
    await run_sync(service.store.counts)
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Served) -> Response:
    """Metrics for Prometheus."""
    return Response(await run_sync(service.metrics.text), media_type="text/plain; version=0.0.4")


@router.get("/debug/engine", responses=refusals(401, 403, 429))
async def debug_engine(service: Served, key: Key) -> dict[str, Any]:
    """The engine, its queue and batches, stored jobs by status, and threads; for keys of administrators."""
    if not key.admin:
        raise ApiError(403, "the state of the engine is for keys with admin", "permission_denied")
    return await run_sync(_state, service)


def _model(service: Service) -> dict[str, Any]:
    config, limits = service.engine.config, service.settings.requests
    sequence, sampling = config.sequence, config.sampling
    return {
        "id": config.name,
        "object": "model",
        "created": int(service.started_at),
        "owned_by": "syncflow",
        "tasks": [task for task in get_args(Task) if _serves(service, task)],
        "defaults": {
            "seconds": sequence.seconds,
            "width": sequence.width,
            "height": sequence.height,
            "fps": sequence.fps,
            "num_inference_steps": sampling.steps,
            "guidance_scale": sampling.guidance,
            "sync_guidance": sampling.sync_guidance,
            "v2a_sync_guidance": sampling.v2a_sync_guidance,
        },
        "limits": {
            **asdict(limits),
            "size_multiple": sequence.space_factor * sequence.patch,
            "prompt": MAX_PROMPT,
            "upload_bytes": service.settings.uploads.bytes,
            "upload_seconds": service.settings.uploads.seconds,
        },
    }


def _serves(service: Service, task: str) -> bool:
    ddit = service.engine.config.ddit
    needs = {
        "video-to-audio": ddit.audio_reads_video,
        "audio-to-video": ddit.video_reads_audio,
        "text-to-audio": ddit.audio_text,
    }
    return bool(needs.get(task, True))


def _state(service: Service) -> dict[str, Any]:
    stats = service.engine.batcher.stats()
    queued, in_flight = service.runner.counts()
    durations = service.runner.durations
    return {
        "engine": service.engine.describe(),
        "deterministic": service.engine.backend.deterministic,
        "limits": asdict(service.engine.limits),
        "policy": asdict(service.engine.policy),
        "batching": {
            "states": {str(state): count for state, count in stats.states.items()},
            **{name: getattr(stats, name) for name in COUNTS},
            "wait": asdict(stats.wait),
            "run": asdict(stats.run),
        },
        "queue": {"queued": queued, "in_flight": in_flight, "stored": service.store.counts()},
        "durations": {"step_seconds": durations.step, "other_seconds": durations.rest},
        "process": {
            "uptime_seconds": round(time.time() - service.started_at, 1),
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "python": sys.version.split()[0],
        },
    }
