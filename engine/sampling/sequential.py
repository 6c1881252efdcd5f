"""Requests that are stepped one after the other, each as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.denoiser import Denoiser
from ..types import Latents
from .batch import Batch
from .conditioning_cache import ConditioningCache
from .job import Job
from .joint import JointBatch
from .oneway import OneWayBatch
from .streams import TwoStreams


def batch_of(model: Denoiser, cache: ConditioningCache | None = None, *, overlap: bool = False) -> Batch:
    """An empty batch for a model, as its bridge asks; ``cache`` keeps what requests share beyond it.

    ``overlap``: on a GPU the following tower of a one-way model runs beside the leading tower of the next step.
    """
    kind = JointBatch if model.config.bridge == "global_local" else OneWayBatch
    overlap = overlap and kind is OneWayBatch and model.device.type == "cuda"
    return kind(model, cache or ConditioningCache(model), TwoStreams.of(model.device) if overlap else None)


class SequentialBatch:
    """Steps requests one after the other, with the methods of a :class:`~syncflow.engine.sampling.batch.Batch`.

    How a matrix product rounds may depend on its number of rows, and so the last bits of a clip on the requests in its
    batch. Here they do not; it costs what batching saves.
    """

    def __init__(self, model: Denoiser, cache: ConditioningCache | None = None, *, overlap: bool = False) -> None:
        self.model, self.cache, self.overlap = model, cache or ConditioningCache(model), overlap
        self.batches: list[Batch] = []

    @property
    def jobs(self) -> list[Job]:
        """The requests in order of their places."""
        return [job for batch in self.batches for job in batch.jobs]

    def join(self, jobs: Sequence[Job]) -> None:
        """Requests start at their first step."""
        for job in jobs:
            self.batches.append(batch_of(self.model, self.cache, overlap=self.overlap))
            self.batches[-1].join([job])

    def leave(self, places: Sequence[int]) -> list[Latents]:
        """Remove requests at any step; their latents."""
        gone = [self.batches[place].leave([0])[0] for place in places]
        self.batches = [batch for place, batch in enumerate(self.batches) if place not in set(places)]
        return gone

    def step(self) -> list[int]:
        """One Euler step of every request; the places of those that have now done their last."""
        return [place for place, batch in enumerate(self.batches) if batch.step()]

    def progress(self, place: int) -> tuple[int, int]:
        """Steps that a request has done, and how many there are."""
        return self.batches[place].progress(0)

    def preview(self, place: int) -> Tensor:
        """The video that a request is expected to reach: latents (C_v, T, H, W)."""
        return self.batches[place].preview(0)

    @property
    def latents(self) -> Latents:
        """The present latents of all requests: video (B, C_v, T, H, W), audio (takes of all, A, C_a)."""
        each = [batch.latents for batch in self.batches]
        return Latents(torch.cat([one.video for one in each]), torch.cat([one.audio for one in each]))
