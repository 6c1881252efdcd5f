"""One modality of a batch: its latents, its flow times, and what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .job import Job, Known

Modality = Literal["video", "audio"]
Held = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Track:
    """B requests' latents (B, …) of one modality as they move from noise to data.

    ``latents`` float32, ``reads`` the same in the model's type. ``times`` (K + 1, B) flow times before every step and
    after the last; a request with fewer steps stands still at its end. ``holds`` (B, 1, T, 1, 1) or (B, A, 1) says
    where known latents hold, ``clean`` (B,) whether those of a request do at time 1; both None without any.
    """

    def __init__(self, jobs: Sequence[Job], modality: Modality, noise: Tensor, dtype: torch.dtype) -> None:
        known = [getattr(job, modality) for job in jobs]
        grids = [getattr(job.schedule, modality) for job in jobs]
        grids = [np.ones_like(grid) if _is_whole(one) else grid for grid, one in zip(grids, known, strict=True)]
        longest = max(map(len, grids))
        padded = np.stack([np.pad(grid, (0, longest - len(grid)), mode="edge") for grid in grids], axis=1)
        self.modality, self.noise = modality, noise
        self.grid = padded
        self.times = torch.from_numpy(padded).float().to(noise.device)
        self.moves = np.any(np.diff(padded, axis=0) > 0, axis=1)
        self.known: Tensor | None = None
        self.holds: Tensor | None = None
        self.clean: Tensor | None = None
        self.any_clean = False
        self.latents = self._begin(known)
        self.reads = self.latents.to(dtype)

    def held(self, k: int) -> Held:
        """What the Euler step needs to put known latents back at the end of step k."""
        if self.holds is None or self.clean is None:
            return None, None, None, None
        return self.known, self.noise, self.holds, torch.where(self.clean, 1.0, self.times[k + 1])

    def _begin(self, known: Sequence[Known | None]) -> Tensor:
        if not any(known):
            return self.noise
        latents = [n if one is None else one.latents.to(n) for one, n in zip(known, self.noise, strict=True)]
        self.known = torch.stack(latents)
        start = torch.tensor([0.0 if one is None else one.start for one in known]).to(self.noise)
        begun = torch.where(self._each(start) > 0, torch.lerp(self.noise, self.known, self._each(start)), self.noise)
        if all(one is None or one.start > 0 for one in known):
            return begun
        axis = 1 if self.modality == "video" else 0
        length = self.noise.shape[axis + 1]
        masks = torch.zeros(len(known), length, dtype=torch.bool)
        for mask, one in zip(masks, known, strict=True):
            if one is not None and one.start == 0:
                mask[:] = True if one.mask is None else one.mask
        shape = [len(known), *[1] * (self.noise.ndim - 1)]
        shape[axis + 1] = length
        self.holds = masks.reshape(shape).to(self.noise.device)
        self.clean = torch.tensor([one is not None and one.clean for one in known], device=self.noise.device)
        self.any_clean = any(one is not None and one.clean for one in known)
        first = self._each(torch.where(self.clean, 1.0, self.times[0]))
        return torch.where(self.holds, torch.lerp(self.noise, self.known, first), begun)

    def _each(self, values: Tensor) -> Tensor:
        """(B,) values to stand against the latents."""
        return values.reshape(-1, *[1] * (self.noise.ndim - 1))


def _is_whole(known: Known | None) -> bool:
    """Whether all of the modality is given, clean: it stands at time 1 throughout."""
    return known is not None and known.clean and known.mask is None and known.start == 0
