"""The Euler loop over requests of one latent shape, from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..model.denoiser import Denoiser
from ..types import Latents
from .conditioning_cache import ConditioningCache
from .job import Job
from .sequential import batch_of

StepCallback = Callable[[int, int, Latents], None]


@torch.inference_mode()
def sample(
    model: Denoiser,
    jobs: Sequence[Job],
    on_step: StepCallback | None = None,
    cache: ConditioningCache | None = None,
    progress: Callable[[int, int], object] = lambda step, steps: None,
    *,
    overlap: bool = False,
) -> Latents:
    """Latents at t = 1 of B requests of one latent shape: video (B, C_v, T, H, W), audio (takes of all, A, C_a).

    Requests may differ in steps, guidance, shift, lead, task and takes. After each step,
    ``progress(step, steps)`` and ``on_step(step, steps, latents)`` are called. ``overlap`` as in
    :func:`~syncflow.engine.sampling.sequential.batch_of`; ``on_step`` reads the latents, which ends the overlap of that
    step.
    """
    batch = batch_of(model, cache, overlap=overlap)
    batch.join(jobs)
    steps = max(len(job.schedule) for job in jobs)
    for k in range(steps):
        batch.step()
        progress(k + 1, steps)
        if on_step is not None:
            on_step(k + 1, steps, batch.latents)
    return batch.latents
