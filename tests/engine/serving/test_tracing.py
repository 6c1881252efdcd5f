"""Spans of requests and jobs, in OpenTelemetry's exporter in memory."""

from __future__ import annotations

import builtins
import json
from itertools import pairwise

import pytest

from syncflow.engine.serving.tracing import Tracing, configured

from .helpers import FAST, finished, service_of

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

PHASES = ["queue", "prepare", "engine_queue", "encode", "sample", "decode", "write"]
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans:
    """What a tracer has exported."""

    def __init__(self) -> None:
        self.exporter, self.provider = InMemorySpanExporter(), TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(self.provider)

    def all(self) -> list[ReadableSpan]:
        return [*self.exporter.get_finished_spans()]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]


def test_a_job_is_a_child_of_its_request_and_has_its_phases(start):
    spans, secret = Spans(), "a very secret ball"
    client = start(tracing=spans.tracing)
    created = client.post("/v1/videos", json=FAST | {"prompt": secret}, headers={"traceparent": CALLER})
    job_id = created.json()["id"]
    finished(client, job_id)
    assert client.get("/health").status_code == 200 and client.get("/v1/videos/video_1").status_code == 404
    client.__exit__(None, None, None)
    (request,), (job,) = spans.named("POST /v1/videos"), spans.named("generate_video")
    assert f"{request.context.trace_id:032x}-{request.parent.span_id:016x}" in CALLER
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["syncflow.request.id"] == created.headers["X-Request-Id"]
    assert (job.parent.span_id, job.context.trace_id) == (request.context.span_id, request.context.trace_id)
    assert (job.attributes["syncflow.outcome"], job.attributes["syncflow.job.id"]) == ("completed", job_id)
    assert job.attributes["syncflow.steps"] >= FAST["num_inference_steps"] and job.status.is_ok
    phases = [span for span in spans.all() if span.parent and span.parent.span_id == job.context.span_id]
    assert [span.name for span in phases] == PHASES
    for one, following in pairwise(phases):
        assert abs(one.end_time - following.start_time) < 1e6  # 1 ms: two readings of the clock
    assert abs(phases[0].start_time - job.start_time) < 1e9 and abs(phases[-1].end_time - job.end_time) < 1e6
    statuses = {span.attributes["http.response.status_code"] for span in spans.named("GET /v1/videos/{video_id}")}
    assert statuses == {200, 404} and not spans.named("GET /health")
    assert secret not in json.dumps([span.to_json() for span in spans.all()])


def test_a_job_that_fails_and_one_that_the_end_of_the_server_interrupts(start, monkeypatch):
    spans = Spans()
    client = start(tracing=spans.tracing, drain=0.0)
    with monkeypatch.context() as patched:
        patched.setattr(service_of(client).engine.backend, "encode", lambda *_: 1 / 0)
        finished(client, client.post("/v1/videos", json=FAST).json()["id"])
    (failed,) = spans.named("generate_video")
    assert (failed.attributes["error.type"], failed.status.is_ok) == ("ZeroDivisionError", False)
    job_id = client.post("/v1/videos", json=FAST | {"num_inference_steps": 200}).json()["id"]
    while not client.get(f"/v1/videos/{job_id}").json()["progress"]:
        pass
    later = Spans()
    client = start(tracing=later.tracing, drain=0.0)
    assert client.delete(f"/v1/videos/{job_id}").status_code == 200
    client.__exit__(None, None, None)
    before, after = spans.named("generate_video")[-1], later.named("generate_video")[-1]
    assert (before.attributes["syncflow.outcome"], after.attributes["syncflow.outcome"]) == ("requeued", "cancelled")
    assert after.parent is None and before.attributes["syncflow.job.id"] == after.attributes["syncflow.job.id"]


@pytest.mark.parametrize(
    ("endpoint", "environment", "on"),
    [
        (None, {}, False),
        (None, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, False),
        (None, {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, True),
        (None, {"OTEL_TRACES_EXPORTER": "otlp,console"}, True),
        ("http://127.0.0.1:9/v1/traces", {"OTEL_TRACES_EXPORTER": "none"}, True),
    ],
)
def test_it_is_off_unless_it_is_asked_for(endpoint, environment, on):
    found = configured(endpoint, environment)
    assert (found is not None) == on
    if found is not None:
        found.close()


def test_what_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match="OTEL_TRACES_EXPORTER is 'zipkin'; it must be otlp, console or none"):
        configured(None, {"OTEL_TRACES_EXPORTER": "zipkin"})
    with pytest.raises(ValueError, match="'grpc'; spans are sent as http/protobuf"):
        configured("http://127.0.0.1:9", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    real = builtins.__import__

    def without(name, *arguments, **more):
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs OpenTelemetry: pip install 'syncflow\[tracing\]'"):
        configured("http://127.0.0.1:9", {})
    assert configured(None, {}) is None
