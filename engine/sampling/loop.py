"""The Euler loop over requests of one latent shape, from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..model.denoiser import Denoiser
from ..types import Latents
from .batch import Batch
from .conditioning_cache import ConditioningCache
from .job import Job
from .sequential import SequentialBatch, batch_of

StepCallback = Callable[[int, int, Latents], None]


@torch.inference_mode()
def sample(
    model: Denoiser,
    jobs: Sequence[Job],
    on_step: StepCallback | None = None,
    cache: ConditioningCache | None = None,
    *,
    overlap: bool = False,
) -> Latents:
    """Latents at t = 1 of B requests of one latent shape: video (B, C_v, T, H, W), audio (takes of all, A, C_a).

    Requests may differ in steps, guidance, shift, lead, task and takes. ``on_step(step, steps, latents)`` is called
    after each. ``overlap`` as in :func:`~syncflow.engine.sampling.sequential.batch_of`; a callback, which wants the
    latents of every step, leaves little of it.
    """
    each = run_batch(batch_of(model, cache, overlap=overlap), jobs, on_step)
    return Latents(torch.cat([one.video for one in each]), torch.cat([one.audio for one in each]))


@torch.inference_mode()
def run_batch(
    batch: Batch | SequentialBatch, jobs: Sequence[Job], on_step: StepCallback | None = None
) -> list[Latents]:
    """Step requests in an empty batch until all are done. -> of each, video (1, C_v, T, H, W), audio (takes, A, C_a).

    ``on_step(step, steps, latents)`` is called after each step with the latents of all.
    """
    batch.join(jobs)
    steps = max(len(job.schedule) for job in jobs)
    for k in range(steps):
        batch.step()
        if on_step is not None:
            on_step(k + 1, steps, batch.latents)
    return batch.leave(range(len(jobs)))
