"""The server on Ray Serve: replicas of an engine whose number follows the load. ::

    serve run syncflow.engine.serving.ray_serve:build max_replicas=8 gpus=1

A request is answered by the replica that made its video, so only the endpoint that waits is served: there are no stored
jobs, and none of the paths with an id.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from ..batching import Limits
from ..engine import Engine
from .app import create_app
from .errors import ApiError, respond
from .settings import GIB, ServerSettings
from .tracing import configured

PATHS = ("/v1/videos/sync", "/v1/models", "/health", "/ready", "/metrics", "/openapi.json")
KEPT_SECONDS = 600.0  # that a client has to read its file
SHUTDOWN_SECONDS = 45.0  # longer than the drain of a server


class ReplicaSettings(BaseModel):
    """What ``serve run`` may set, and a configuration file of Ray Serve under ``args``."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Folder of a model package; by default the bundled one.")
    runtime: str = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    deterministic: bool = False
    batch: int = Field(8, ge=1, description="Requests of one size that a replica steps together.")
    keys: str | None = Field(None, description="File of API keys; rates are counted by each replica.")
    cpus: float = Field(1, gt=0, description="CPUs of a replica.")
    gpus: float = Field(0, ge=0, description="GPUs of a replica.")
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(4, ge=1)
    max_queued: int = Field(256, ge=1, description="Requests that wait for a replica; one more gets status 503.")
    upscale_delay: float = Field(10, ge=0, description="Seconds of more load before a replica is added.")
    downscale_delay: float = Field(300, ge=0, description="Seconds of less load before a replica ends.")


def build(settings: ReplicaSettings) -> Any:
    """The application for ``serve run`` and ``serve.run``."""
    from ray import serve

    def make_app() -> FastAPI:
        return replica_app(settings)

    deployment: Any = serve.deployment(serve.ingress(make_app)())
    return deployment.options(
        name="syncflow",
        max_ongoing_requests=2 * settings.batch,
        max_queued_requests=settings.max_queued,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.batch,
            "upscale_delay_s": settings.upscale_delay,
            "downscale_delay_s": settings.downscale_delay,
        },
    ).bind()


def replica_app(settings: ReplicaSettings) -> FastAPI:
    """The application of one replica. Its files lie in a temporary folder, which is removed with it."""
    folder = tempfile.TemporaryDirectory(prefix="syncflow-replica-")
    engine = Engine.from_pretrained(
        settings.model,
        runtime=settings.runtime,
        precision=settings.precision,
        deterministic=settings.deterministic,
        limits=Limits(batch=settings.batch, queue=max(64, 2 * settings.batch)),
    )
    app = create_app(
        engine,
        ServerSettings(
            data=Path(folder.name),
            keys=None if settings.keys is None else Path(settings.keys),
            in_flight=2 * settings.batch,
            retention=KEPT_SECONDS,
            disk=2 * GIB,
        ),
        tracing=configured(),
    )
    app.state.folder = folder
    app.add_middleware(OnlyPaths)
    return app


class OnlyPaths:
    """404 for every path but those of one request and one response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["path"] not in PATHS:
            refusal = ApiError(404, f"replicas serve {', '.join(PATHS)}; videos are not stored", "not_found")
            await respond(refusal)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
