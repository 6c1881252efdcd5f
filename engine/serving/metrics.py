"""Prometheus metrics. Names follow those of SGLang's servers, under ``syncflow_``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..batching import Stats
from ..types import Clip

SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
HTTP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.jobs = Counter("syncflow_num_requests", "Videos by how they ended.", ["status"], registry=registry)
        self.latency = Histogram(
            "syncflow_e2e_request_latency_seconds", "From queue to file.", buckets=SECONDS, registry=registry
        )
        self.queue_time = Histogram(
            "syncflow_queue_time_seconds", "From queue to engine.", buckets=SECONDS, registry=registry
        )
        self.inference_time = Histogram(
            "syncflow_inference_time_seconds", "From the first step to the file.", buckets=SECONDS, registry=registry
        )
        self.video_seconds = Counter("syncflow_generated_seconds", "Seconds of generated clips.", registry=registry)
        self.refused = Counter("syncflow_refused_requests", "Refused requests by code.", ["code"], registry=registry)
        self.http = Counter(
            "syncflow_http_requests", "HTTP requests.", ["method", "route", "status"], registry=registry
        )
        self.http_time = Histogram(
            "syncflow_http_request_duration_seconds",
            "Until the response began.",
            ["method", "route"],
            buckets=HTTP_SECONDS,
            registry=registry,
        )
        self.data = Gauge("syncflow_data_bytes", "Uploads and results on disk.", registry=registry)
        for status in ("completed", "failed", "cancelled"):
            self.jobs.labels(status)

    def completed(self, latency: float, inference: float, clips: Sequence[Clip]) -> None:
        """A video is completed."""
        self.jobs.labels("completed").inc()
        self.latency.observe(latency)
        self.inference_time.observe(inference)
        self.video_seconds.inc(sum(clip.seconds for clip in clips))

    def observe(
        self, described: dict[str, Any], counts: Callable[[], tuple[int, int]], stats: Callable[[], Stats]
    ) -> None:
        """Add what the queue and the engine say when they are asked."""
        labels = {name: str(described.get(name)) for name in ("model", "device", "runtime", "precision")}
        Info("syncflow_model", "The served model.", registry=self.registry).info(labels)
        self.registry.register(_EngineCollector(counts, stats))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineCollector:
    def __init__(self, counts: Callable[[], tuple[int, int]], stats: Callable[[], Stats]) -> None:
        self.counts, self.stats = counts, stats

    def collect(self) -> Iterator[Metric]:
        (queued, in_flight), stats = self.counts(), self.stats()
        gauges = {
            "syncflow_num_queue_reqs": ("Jobs that wait.", queued),
            "syncflow_num_in_flight_reqs": ("Jobs with the engine, or being written.", in_flight),
            "syncflow_num_running_reqs": ("Requests that are being stepped.", stats.running),
            "syncflow_num_batches": ("Batches that are being stepped.", stats.batches),
            "syncflow_steps_per_second": ("Steps of batches over the last 10 s.", stats.steps_per_second),
            "syncflow_reserved_memory_bytes": (
                "Predicted memory of the requests in the engine, where it has a limit.",
                stats.memory,
            ),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        yield CounterMetricFamily("syncflow_denoising_steps", "Steps of batches.", value=stats.steps)
        yield CounterMetricFamily("syncflow_request_steps", "Steps of requests.", value=stats.request_steps)
