"""The execution of requests with one model, the same for ``Engine.generate`` and ``Engine.submit``.

A prepared request is encoded, joins a batch, is stepped until its last step is done, leaves the batch and is decoded.
``generate`` does this synchronously, for all requests of a group at once (:meth:`ModelBackend.run`); for ``submit`` the
threads of the batcher call the same methods, and requests join and leave between steps.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

from .components import Components
from .cost.memory import MemoryEstimator
from .model.denoiser import Denoiser
from .pipeline import Pipeline, PreparedRequest
from .runtime.device_streams import streams_of
from .sampling.batch import Batch
from .sampling.conditioning_cache import ConditioningCache
from .sampling.job import Job
from .sampling.loop import ProgressCallback, StepCallback, run_batch
from .sampling.sequential import SequentialBatch, batch_of
from .sampling.tensor_cache import CAPACITY
from .types import Clip, Latents


class ModelBackend:
    """A :class:`~syncflow.engine.batching.Backend`. ``deterministic``: the requests of a batch share no rows.

    ``overlap``: the following tower runs beside the leading tower of the next step. ``cache_bytes``: how much is kept
    of what is computed from texts and schedules.
    """

    def __init__(
        self,
        components: Components,
        pipeline: Pipeline,
        denoiser: Denoiser,
        *,
        deterministic: bool = False,
        overlap: bool = False,
        cache_bytes: int = CAPACITY,
    ) -> None:
        self.components, self.pipeline, self.denoiser = components, pipeline, denoiser
        self.deterministic, self.overlap = deterministic, overlap
        self.conditioning_cache = ConditioningCache(denoiser, cache_bytes)
        self.streams = streams_of(denoiser.device)

    @cached_property
    def memory_model(self) -> MemoryEstimator:
        """Predicts the device memory of requests."""
        return MemoryEstimator(self.components)

    def start_thread(self) -> None:
        """Make the model's device the current one of this thread."""
        self.streams.start_thread()

    def stepping(self) -> AbstractContextManager[object]:
        """Within: batches are made, joined, stepped and left."""
        return self.streams.stepping()

    def shape(self, request: PreparedRequest) -> tuple[int, ...]:
        """The latent shape of a request."""
        return request.shape

    def memory(self, request: PreparedRequest) -> int:
        """The bytes that a request adds to those of the model."""
        return self.memory_model.predict(request.sequence, request.plan, request.request.takes).request

    def encode(self, request: PreparedRequest) -> Job:
        """The job of a request."""
        with self.streams.encoding():
            job = self.pipeline.encode(request)
        self.streams.pass_to_steps(job.tensors)
        return job

    def make_batch(self, shape: Hashable = None) -> Batch | SequentialBatch:
        """An empty batch; it takes the shape of the first requests that join."""
        if self.deterministic:
            return SequentialBatch(self.denoiser, self.conditioning_cache, overlap=self.overlap)
        return batch_of(self.denoiser, self.conditioning_cache, overlap=self.overlap)

    def decode(self, request: PreparedRequest, latents: Latents) -> list[Clip]:
        """A clip for each take of a request."""
        with self.streams.decoding(latents):
            return self.pipeline.decode(request, latents)

    def run(
        self,
        requests: Sequence[PreparedRequest],
        on_step: StepCallback | None = None,
        progress: ProgressCallback | None = None,
    ) -> list[list[Clip]]:
        """The clips of requests of one shape, stepped together from their first step to their last."""
        jobs = [self.encode(request) for request in requests]
        with self.stepping():
            latents = run_batch(self.make_batch(), jobs, on_step, progress)
        return [self.decode(*pair) for pair in zip(requests, latents, strict=True)]
