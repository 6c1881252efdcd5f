"""Around every HTTP request: its id, its log line and metrics, the limit of its size, headers of security."""

from __future__ import annotations

import logging
import re
import time
import uuid
from contextlib import nullcontext
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, respond
from .logs import request_id
from .metrics import Metrics
from .tracing import Tracing

log = logging.getLogger("syncflow.serving.http")
REQUEST_ID = re.compile(r"[\w.-]{1,64}")
QUIET = ("/health", "/ready", "/metrics")
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
}


class RequestMiddleware:
    """A request of more than ``limit`` bytes is refused (413), before it is read if it says its length."""

    def __init__(self, app: ASGIApp, metrics: Metrics, limit: int, tracing: Tracing | None = None) -> None:
        self.app, self.metrics, self.limit, self.tracing = app, metrics, limit, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        found = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        token, began, status = request_id.set(found), time.perf_counter(), [0, 0.0]

        async def respond_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[:] = message["status"], time.perf_counter() - began
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = found
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        traced = None if scope["path"] in QUIET else self.tracing
        with nullcontext() if traced is None else traced.request(scope, found) as span:
            try:
                await self._limited(scope, receive, respond_with_headers)
            finally:
                method, route = _named(scope, int(status[0]))
                self._record(scope, method, route, int(status[0]), status[1], time.perf_counter() - began)
                if span is not None:
                    Tracing.answered(span, method, route, int(status[0]))
                request_id.reset(token)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = ApiError(413, f"the request is too large; at most {self.limit:,} bytes are read", "too_large")
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > self.limit:
            await respond(refusal)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise refusal
            return message

        await self.app(scope, counted, send)

    def _record(self, scope: Scope, method: str, path: str, status: int, first: float, seconds: float) -> None:
        self.metrics.http.labels(method, path, str(status)).inc()
        self.metrics.http_time.labels(method, path).observe(first)
        values = {"method": method, "route": path, "status": status, "ms": round(1000 * seconds, 1)}
        tenant = scope.get("state", {}).get("tenant")
        level = logging.DEBUG if path in QUIET else logging.INFO
        log.log(level, "request", extra=values | ({} if tenant is None else {"tenant": tenant}))


def _named(scope: Scope, status: int) -> tuple[str, str]:
    """Method and route of a request, of a few values each."""
    route: Any = scope.get("route")
    path = getattr(route, "path", None) or ("static" if status in (200, 206, 304) else "unknown")
    return scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other", path
