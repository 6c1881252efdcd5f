"""What does not change from step to step, computed once and kept up to a number of bytes.

Keys and values of a text for every block, once a prompt (the null text once for all its lengths); what the towers need
of a time grid, once a schedule. Requests that come later find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..model.denoiser import Denoiser
from ..types import Conditioning
from .job import NULL_KEY, AdapterWeights, Job, Text, text_of
from .tensor_cache import CAPACITY, TensorCache
from .transfer import upload


class AdapterSource(Protocol):
    """The adapters of an engine."""

    def weights(self, of_texts: Sequence[AdapterWeights]) -> Tensor:
        """The weights (P, K) of all adapters for P texts."""

    def rows(self, weights: Tensor | None) -> AbstractContextManager[None]:
        """A context in which rows have these weights (R, K)."""


class ConditioningCache(TensorCache[tuple[Tensor, ...]]):
    """What ``model`` computes of texts and schedules, up to ``capacity`` bytes.

    ``adapters``: where the weights of the adapters that texts name come from.
    """

    def __init__(self, model: Denoiser, capacity: int = CAPACITY) -> None:
        super().__init__(lambda found: found, capacity)
        self.model = model
        self.adapters: AdapterSource | None = None

    def texts(self, texts: list[Text]) -> Conditioning:
        """Keys and values of P texts."""
        parts = [self._text(text) for text in texts]
        keys, values = (torch.stack(part, 1) for part in list(zip(*parts, strict=True))[:2])
        lengths = upload(torch.tensor([text.length for text in texts]), self.model.device)
        tokens = [part[2] for part in parts if len(part) > 2]
        weights = self._adapter_weights(texts)
        return Conditioning(keys, values, lengths, torch.stack(tokens) if tokens else None, weights)

    def _adapter_weights(self, texts: list[Text]) -> Tensor | None:
        """The weights (P, K) of the adapters of P texts; None where none has any."""
        if self.adapters is None or not any(text.adapters for text in texts):
            return None
        return upload(self.adapters.weights([text.adapters for text in texts]), self.model.device)

    def priors(self, jobs: Sequence[Job]) -> Conditioning:
        """Keys and values of the priors of requests, in a ``bidirectional`` model."""
        parts = [self._prior(job.prior) for job in jobs]
        keys, values = (torch.stack(part, 1) for part in zip(*parts, strict=True))
        return Conditioning(keys, values, torch.full((len(jobs),), keys.shape[2], device=keys.device))

    def text_of(self, job: Job, prompted: bool) -> Text:
        """The prompt of a request, or what stands for its absence."""
        return text_of(job, prompted, self.model.null_text)

    def video_times(self, grid: np.ndarray, fps: float) -> tuple[Tensor, ...]:
        """Modulation rows (K, 6, D) and embedding (K, D) at the times of ``grid`` (K,), each time once."""
        times, places = np.unique(grid, return_inverse=True)

        def compute() -> tuple[Tensor, ...]:
            found = self.model.modulation(self._times(times)[:, None], self._times(np.full(len(times), fps)))
            index = upload(torch.from_numpy(places), self.model.device)
            return tuple(part[index, 0] for part in found)

        return self.get(("video", grid.tobytes(), fps), compute)

    def audio_times(self, grid: np.ndarray, fps: float) -> tuple[Tensor, ...]:
        """Time tokens (K, D) at the times of ``grid`` (K,), each time once; in a ``bidirectional`` model, whose towers
        take their times alike, as :meth:`video_times`."""
        if self.model.config.bridge == "bidirectional":
            return self.video_times(grid, fps)
        times, places = np.unique(grid, return_inverse=True)

        def compute() -> tuple[Tensor, ...]:
            index = upload(torch.from_numpy(places), self.model.device)
            return (self.model.audio_time(self._times(times))[index],)

        return self.get(("audio", grid.tobytes()), compute)

    def _times(self, values: np.ndarray) -> Tensor:
        times = torch.from_numpy(values)
        return upload(times if self.model.config.is_stdit else times.float(), self.model.device)

    def _prior(self, prior: Text | None) -> tuple[Tensor, ...]:
        """Keys and values (blocks, 2 N, n, d) of a prior, or of the null prior."""
        text = Text(self.model.null_prior, len(self.model.null_prior), NULL_KEY) if prior is None else prior

        def compute() -> tuple[Tensor, ...]:
            states = upload(text.states, self.model.device).to(self.model.null_prior.dtype)
            found = self.model.condition_prior(states[None])
            return found.keys[:, 0], found.values[:, 0]

        return self.get(("prior", text.cache_key), compute)

    def _text(self, text: Text) -> tuple[Tensor, ...]:
        """Keys and values (blocks, L, n, d), and the projected tokens (L, D) where the audio reads them."""

        def compute() -> tuple[Tensor, ...]:
            states = upload(text.states, self.model.device).to(self.model.null_text.dtype)
            length, weights = upload(torch.tensor([text.length]), self.model.device), self._adapter_weights([text])
            with nullcontext() if self.adapters is None else self.adapters.rows(weights):
                found = self.model.condition(states[None], length)
            tokens = () if found.text_tokens is None else (found.text_tokens[0],)
            return found.keys[:, 0], found.values[:, 0], *tokens

        return self.get(("text", text.cache_key, text.adapters), compute)
