"""Requests in several batches that are stepped one after the other, and the batch that suits a model."""

from __future__ import annotations

from collections import Counter
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
    kind = JointBatch if model.config.is_joint else OneWayBatch
    overlap = overlap and kind is OneWayBatch and model.device.type == "cuda"
    return kind(model, cache or ConditioningCache(model), TwoStreams.of(model.device) if overlap else None)


class SequentialBatch:
    """Steps requests in several batches one after the other, with the methods of a
    :class:`~syncflow.engine.sampling.batch.Batch`.

    ``max_rows`` limits the rows of each of these batches, so that each step of one fits a CUDA graph; a request of more
    rows has a batch to itself. With 0 every request has: how a matrix product rounds may depend on its number of rows,
    and so the last bits of a clip on the requests in its batch. Then they do not; it costs what batching saves.
    """

    def __init__(
        self, model: Denoiser, cache: ConditioningCache | None = None, *, overlap: bool = False, max_rows: int = 0
    ) -> None:
        self.model, self.cache, self.overlap = model, cache or ConditioningCache(model), overlap
        self.max_rows = max_rows
        self.batches: list[Batch] = []
        self._batch_of: list[Batch] = []  # of every request, in order of their places

    @property
    def jobs(self) -> list[Job]:
        """The requests in order of their places."""
        return [batch.jobs[place] for batch, place in self._places()]

    def join(self, jobs: Sequence[Job]) -> None:
        """Requests start at their first step."""
        joining: dict[Batch, list[Job]] = {}
        for job in jobs:
            rows = {batch: sum(map(_rows, (*batch.jobs, *joining.get(batch, ())))) for batch in self.batches}
            free = (batch for batch in self.batches if rows[batch] + _rows(job) <= self.max_rows)
            if (batch := next(free, None)) is None:
                batch = batch_of(self.model, self.cache, overlap=self.overlap)
                self.batches.append(batch)
            joining.setdefault(batch, []).append(job)
            self._batch_of.append(batch)
        for batch, together in joining.items():
            batch.join(together)

    def leave(self, places: Sequence[int]) -> list[Latents]:
        """Remove requests at any step; their latents."""
        found = self._places()
        gone: dict[int, Latents] = {}
        for batch in self.batches:
            leaving = [place for place in places if found[place][0] is batch]
            if leaving:
                gone |= dict(zip(leaving, batch.leave([found[place][1] for place in leaving]), strict=True))
        self._batch_of = [batch for place, batch in enumerate(self._batch_of) if place not in gone]
        self.batches = [batch for batch in self.batches if batch.jobs]
        return [gone[place] for place in places]

    def step(self) -> list[int]:
        """One Euler step of every request; the places of those that have now done their last."""
        done = {batch: set(batch.step()) for batch in self.batches}
        return [place for place, (batch, within) in enumerate(self._places()) if within in done[batch]]

    def progress(self, place: int) -> tuple[int, int]:
        """Steps that a request has done, and how many there are."""
        batch, within = self._places()[place]
        return batch.progress(within)

    def preview(self, place: int) -> Tensor:
        """The video that a request is expected to reach: latents (C_v, T, H, W)."""
        batch, within = self._places()[place]
        return batch.preview(within)

    @property
    def latents(self) -> Latents:
        """The present latents of all requests: video (B, C_v, T, H, W), audio (takes of all, A, C_a)."""
        now = {batch: batch.latents for batch in self.batches}
        video = [now[batch].video[place] for batch, place in self._places()]
        audio = [
            take
            for batch, place in self._places()
            for take, owner in zip(now[batch].audio, batch.owner, strict=True)
            if owner == place
        ]
        return Latents(torch.stack(video), torch.stack(audio))

    def _places(self) -> list[tuple[Batch, int]]:
        """The batch of every request, and its place there: requests of a batch keep their order."""
        counts: Counter[Batch] = Counter()
        found = []
        for batch in self._batch_of:
            found.append((batch, counts[batch]))
            counts[batch] += 1
        return found


def _rows(job: Job) -> int:
    """The largest number of rows of a request in either tower."""
    return len(job.plan.branches) * len(job.sounds)
