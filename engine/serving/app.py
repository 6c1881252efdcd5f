"""The application of an engine: routes, errors, the web page and the OpenAPI document."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles

from ... import __version__
from ..engine import Engine
from . import errors, routes_server, routes_videos
from .derived import Inspect
from .middleware import RequestMiddleware
from .service import SWEEP, Service
from .settings import MIB, ServerSettings
from .tracing import Tracing

STATIC = Path(__file__).parent / "static"
log = logging.getLogger("syncflow.serving")


def create_app(
    engine: Engine, settings: ServerSettings, *, inspect: Inspect | None = None, tracing: Tracing | None = None
) -> FastAPI:
    """The application; its lifespan runs the stored jobs.

    ``inspect`` measures motion, impacts and onsets of a clip for the web page; ``tracing`` makes spans. Raises
    ``ValueError`` for a data folder, a database or a file of keys that cannot be used.
    """
    service = Service(engine, settings, inspect, tracing)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_sync(service.runner.start)
        sweeping = asyncio.create_task(_sweep(service))
        yield
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
        await run_sync(service.stop)

    app = FastAPI(
        title="syncflow",
        version=__version__,
        description="Videos with sound, from text, videos, sounds and pictures.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts of a third party
        redoc_url=None,
    )
    app.state.service = service
    errors.install(app)
    app.include_router(routes_videos.router)
    app.include_router(routes_server.router)
    app.mount("/", StaticFiles(directory=STATIC, html=True), name="page")
    # A data: URL is a third longer than its file; the rest is for the other fields.
    app.add_middleware(RequestMiddleware, service.metrics, settings.uploads.bytes * 4 // 3 + MIB, tracing)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


async def _sweep(service: Service) -> None:
    while True:
        try:
            await run_sync(service.sweep)
        except Exception:
            log.exception("the search for expired videos failed")
        await asyncio.sleep(SWEEP)


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schemas of bodies that are read by hand."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for name, model in routes_videos.SCHEMAS.items():
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {})
            schemas[name] = schema
        app.openapi_schema = document
    return app.openapi_schema
