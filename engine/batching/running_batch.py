"""A batch that is being stepped, and the model behind it as the batcher uses it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from .handle import Progress, State
from .request_state import OnStep, RequestState

Q = TypeVar("Q")  # request
J = TypeVar("J")  # job: an encoded request
L = TypeVar("L")  # latents
R = TypeVar("R")  # result
Q_contra = TypeVar("Q_contra", contravariant=True)
J_contra = TypeVar("J_contra", contravariant=True)
L_co = TypeVar("L_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)
log = logging.getLogger(__name__)


class BackendBatch(Protocol[J_contra, L_co]):
    """A batch of one latent shape; :class:`syncflow.engine.sampling.batch.Batch` is one.

    Its requests have indices 0, 1, …: those that join are appended, and when some leave, the rest move up. One thread
    uses it. It is created empty, and dropped when it is empty again.
    """

    def join(self, jobs: Sequence[J_contra]) -> None:
        """Append requests, at their first step."""

    def leave(self, places: Sequence[int]) -> Sequence[L_co]:
        """Remove the requests at these rising indices, finished or not; their latents, in this order."""

    def step(self) -> Sequence[int]:
        """One step of every request; the indices of those that are finished."""

    def progress(self, place: int) -> tuple[int, int]:
        """Steps done, and steps in all."""

    def preview(self, place: int) -> Any:
        """What can be shown of a request whose steps are not done; for callbacks of requests alone."""


class Backend(Protocol[Q_contra, J, L, R_co]):
    """What a batcher needs of a model. An error that a method raises is the error of its request.

    ``shape`` and, where memory is limited, ``memory`` run in the thread that submits; ``encode`` and ``decode`` in
    thread pools, beside the steps; ``make_batch`` and the batches that it returns in the step thread, within
    ``stepping``.
    """

    def start_thread(self) -> None:
        """Called first in each thread of the batcher."""

    def stepping(self) -> AbstractContextManager[object]:
        """Entered by the step thread, for as long as it runs."""

    def shape(self, request: Q_contra) -> Hashable:
        """The latent shape: requests of equal shapes can share a batch."""

    def memory(self, request: Q_contra) -> int:
        """A bound of the device memory, in bytes, that the request takes from encoding to the end of decoding."""

    def encode(self, request: Q_contra) -> J:
        """Compute what the steps need of the request."""

    def make_batch(self, shape: Hashable) -> BackendBatch[J, L]:
        """An empty batch for requests of this shape."""

    def decode(self, request: Q_contra, latents: L) -> R_co:
        """The result of a request whose last step is done."""


class RunningBatch(Generic[Q, J, L, R]):
    """A batch of the backend and its requests, in the order of their indices."""

    def __init__(self, batch: BackendBatch[J, L]) -> None:
        self._batch = batch
        self.requests: list[RequestState[Q, J, R]] = []

    def join(self, requests: Sequence[RequestState[Q, J, R]]) -> None:
        """Append encoded requests."""
        if requests:
            self._batch.join([_job_of(request) for request in requests])
            self.requests += requests

    def step(self) -> list[tuple[RequestState[Q, J, R], L]]:
        """One step; those that have done their last one leave and are returned with their latents."""
        finished = sorted(self._batch.step())
        for index, request in enumerate(self.requests):
            progress = Progress(*self._batch.progress(index))
            request.handle.advance(State.RUNNING, progress)
            if request.on_step is not None:
                self._call_back(request.on_step, index, progress)
        return self._leave(finished)

    def remove(self, requests: Collection[RequestState[Q, J, R]]) -> None:
        """Remove those of the requests that are in the batch; their latents are dropped."""
        self._leave([index for index, request in enumerate(self.requests) if request in requests])

    def _call_back(self, on_step: OnStep, index: int, progress: Progress) -> None:
        try:
            on_step(*progress, partial(self._batch.preview, index))
        except Exception:
            log.exception("a callback of a step failed")

    def _leave(self, indices: list[int]) -> list[tuple[RequestState[Q, J, R], L]]:
        if not indices:
            return []
        latents = self._batch.leave(indices)
        left = [self.requests[index] for index in indices]
        self.requests = [request for index, request in enumerate(self.requests) if index not in indices]
        return list(zip(left, latents, strict=True))


def _job_of(request: RequestState[Q, J, R]) -> J:
    assert request.job is not None, "a request joins a batch after it has been encoded"
    return request.job
