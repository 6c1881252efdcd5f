"""Spans for OpenTelemetry (extra ``tracing``): one for each HTTP request, each job, and each phase of a job.

::

    POST /v1/videos            from the request to the response; its parent is the caller's ``traceparent``
    └─ generate_video          from the queue to the files
       ├─ queue                until it is given to the engine
       ├─ prepare              media are read, lengths derived
       ├─ engine_queue         until there is memory and a free place in a batch
       ├─ encode               text and media; until the job joins a batch
       ├─ sample               all steps, in a batch that others share
       ├─ decode               latents to frames and samples
       └─ write                clips to files

Spans hold no prompts, keys or messages of exceptions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope

from ... import __version__
from ..batching import State
from .live import LiveJob
from .store import VideoJob

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
ENGINE_PHASES = (
    ("engine_queue", State.QUEUED),
    ("encode", State.PREPARING),
    ("sample", State.RUNNING),
    ("decode", State.DECODING),
    ("write", State.DONE),
)


class Tracing:
    """Makes the spans of one server, with the tracer of a provider."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider, self._tracer = provider, provider.get_tracer("syncflow.serving", __version__)

    @contextmanager
    def request(self, scope: Scope, request_id: str) -> Iterator[Span]:
        """The span of an HTTP request, which is the current one within the block."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        method = scope["method"]
        with self._tracer.start_as_current_span(
            method,
            context=extract(Headers(scope=scope)),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "syncflow.request.id": request_id},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    @staticmethod
    def answered(span: Span, method: str, route: str, status: int) -> None:
        """What has become of an HTTP request; a ``status`` of 0: its client went away before the response."""
        from opentelemetry.trace import StatusCode

        span.update_name(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)

    def begin(self, job: VideoJob, model: str) -> Span:
        """The span of a job that is queued: a child of the current span, or the first of a trace after a restart."""
        params = job.params
        attributes = {
            "gen_ai.operation.name": "generate_content",
            "gen_ai.request.model": model,
            "syncflow.job.id": job.id,
            "syncflow.tenant": job.tenant,
            "syncflow.task": params["task"],
            "syncflow.seconds": params["seconds"],
            "syncflow.size": f"{params['width']}x{params['height']}",
            "syncflow.num_inference_steps": params["num_inference_steps"],
            "syncflow.takes": params.get("takes", 1),
        }
        return self._tracer.start_span("generate_video", attributes=attributes)

    def end(self, live: LiveJob, times: Mapping[State, float]) -> None:
        """A job has ended: its phases, by the ``times`` of its handle, and the end of its span."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        if (span := live.span) is None:
            return
        live.span, end = None, time.monotonic()
        began = [("queue", live.queued_at), ("prepare", live.started_at)]
        began += [(name, times.get(state)) for name, state in ENGINE_PHASES]
        known = [(name, at) for name, at in began if at is not None]
        context = set_span_in_context(span)
        for (name, at), until in zip(known, [at for _, at in known[1:]] + [end], strict=True):
            self._tracer.start_span(name, context=context, start_time=_nanoseconds(at)).end(_nanoseconds(until))
        span.set_attributes({"syncflow.outcome": live.outcome, "syncflow.steps": live.step})
        if live.error is not None:
            span.set_attribute("error.type", live.error)
            span.set_status(StatusCode.ERROR)
        span.end(_nanoseconds(end))

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


def configured(endpoint: str | None = None, environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Tracing to an OTLP ``endpoint`` (``http://host:4318/v1/traces``), or as the standard variables ``OTEL_*`` say.

    None where neither asks for it. Raises ``ValueError`` for an exporter that there is not, and where OpenTelemetry is
    not installed.
    """
    asked = "otlp" if endpoint or any(environment.get(name) for name in ENDPOINTS) else "none"
    names = asked if endpoint else environment.get("OTEL_TRACES_EXPORTER") or asked
    wanted = [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
    if not wanted or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporters = [_exporter(name, endpoint, environment) for name in wanted]
    except ImportError:
        raise ValueError(
            "tracing is asked for, by --otlp-traces-endpoint or a variable OTEL_*, and needs OpenTelemetry: "
            "pip install 'syncflow[tracing]'"
        ) from None
    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    attributes = {"service.version": __version__} | ({} if named else {"service.name": "syncflow"})
    provider = TracerProvider(resource=Resource.create(attributes))
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def _exporter(name: str, endpoint: str | None, environment: Mapping[str, str]) -> SpanExporter:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {name[:40]!r}; it must be otlp, console or none")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        raise ValueError(f"the OTLP protocol is {protocol[:40]!r}; spans are sent as http/protobuf")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint)


def _nanoseconds(monotonic: float) -> int:
    """A time of ``time.monotonic`` in nanoseconds since 1970."""
    return time.time_ns() - round((time.monotonic() - monotonic) * 1e9)
