"""The execution of requests with one model, the same for ``Engine.generate`` and ``Engine.submit``.

A prepared request is encoded, joins a batch, is stepped until its last step is done, leaves the batch and is decoded.
``generate`` does this synchronously, for all requests of a group at once (:meth:`ModelBackend.run`); for ``submit`` the
threads of the batcher call the same methods, and requests join and leave between steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property, partial
from typing import cast

from .components import Components
from .cost.memory import MemoryEstimator
from .model.denoiser import Denoiser
from .pipeline import Pipeline, PreparedRequest
from .residency import ResidentBatch
from .runtime.device_streams import streams_of
from .sampling.batch import Batch
from .sampling.conditioning_cache import ConditioningCache
from .sampling.job import Job
from .sampling.loop import ProgressCallback, StepCallback, run_batch
from .sampling.sequential import SequentialBatch, batch_of
from .sampling.tensor_cache import CAPACITY
from .types import Clip, Latents, Request


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
        self.streams = streams_of(pipeline.device)

    @cached_property
    def memory_model(self) -> MemoryEstimator:
        """Predicts the device memory of requests."""
        return MemoryEstimator(self.components, self.denoiser.dtype, self.pipeline.device)

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
        max_rows = 0 if self.deterministic else getattr(self.denoiser, "max_rows", None)
        batch: Batch | SequentialBatch
        if max_rows is None:
            batch = batch_of(self.denoiser, self.conditioning_cache, overlap=self.overlap)
        else:
            batch = SequentialBatch(self.denoiser, self.conditioning_cache, overlap=self.overlap, max_rows=max_rows)
        residency = self.components.residency
        return batch if residency is None else cast("Batch", ResidentBatch(batch, partial(residency.using, "ddit")))

    def capture(self, batch: int, seconds: float, memory: int) -> tuple[int, ...]:
        """Capture the CUDA graphs of the model's own clip with its own guidance, for batches of 1, 2, 4, … requests.

        The largest, of at most ``batch`` requests and the rows of one graph, comes first: the others then find memory
        in its pools. One that needs more than ``memory`` bytes by the estimate is left out, and none begins after
        ``seconds``. -> the numbers of requests, for a denoiser without CUDA graphs none.
        """
        if seconds <= 0 or (most_rows := getattr(self.denoiser, "max_rows", None)) is None:
            return ()
        began, captured = time.monotonic(), []
        prepared = self.pipeline.prepare(Request("a warm-up", steps=2))  # a step for each buffer of contexts
        job, rows = self.encode(prepared), max(1, len(prepared.plan.branches))
        most = 1 if self.deterministic else max(1, min(batch, most_rows // rows))
        for requests in sorted({1 << i for i in range(most.bit_length())} | {most}, reverse=True):
            if time.monotonic() - began > seconds:
                break
            needed = self.memory_model.graphs(prepared.sequence, prepared.plan, [requests], overlap=self.overlap)
            if needed.total > memory:
                continue
            with self.stepping():
                together = self.make_batch()
                together.join([replace(job, seed=seed) for seed in range(requests)])
                while not together.step():
                    pass
            captured.append(requests)
        return tuple(captured)

    def decode(self, request: PreparedRequest, latents: Latents) -> list[Clip]:
        """A clip for each take of a request."""
        with self.streams.decoding(latents):
            return self.pipeline.decode(request, latents)

    def run(
        self,
        requests: Sequence[PreparedRequest],
        on_step: StepCallback | None = None,
        progress: ProgressCallback | None = None,
        step_end: Callable[[Job], StepCallback] | None = None,
    ) -> list[list[Clip]]:
        """The clips of requests of one shape, stepped together from their first step to their last.

        ``step_end`` makes ``on_step`` when the first job is known.
        """
        jobs = [self.encode(request) for request in requests]
        on_step = on_step if step_end is None else step_end(jobs[0])
        with self.stepping():
            latents = run_batch(self.make_batch(), jobs, on_step, progress)
        return [self.decode(*pair) for pair in zip(requests, latents, strict=True)]


def groups_of_one_shape(shapes: Sequence[tuple[int, ...]], most: int) -> list[list[int]]:
    """Indices of equal shapes in groups of at most ``most``, in the order in which the shapes first appear."""
    indices: dict[tuple[int, ...], list[int]] = {}
    for i, shape in enumerate(shapes):
        indices.setdefault(shape, []).append(i)
    return [same[first : first + most] for same in indices.values() for first in range(0, len(same), most)]
