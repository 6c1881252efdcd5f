"""The Euler loop over requests of one latent shape, from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch

from ..model.denoiser import Denoiser
from ..types import Latents
from .batch import Batch
from .conditioning_cache import ConditioningCache
from .job import Job
from .sequential import SequentialBatch, batch_of

StepCallback = Callable[[int, int, Latents], None]
ProgressCallback = Callable[[int, int], None]
StepEndCallback = Callable[[Any, int, float, dict[str, Any]], dict[str, Any] | None]


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

    Requests may differ in steps, guidance, shift, lead, task and takes. ``on_step`` as in :func:`run_batch`;
    ``overlap`` as in :func:`~syncflow.engine.sampling.sequential.batch_of`.
    """
    each = run_batch(batch_of(model, cache, overlap=overlap), jobs, on_step)
    return Latents(torch.cat([one.video for one in each]), torch.cat([one.audio for one in each]))


@torch.inference_mode()
def run_batch(
    batch: Batch | SequentialBatch,
    jobs: Sequence[Job],
    on_step: StepCallback | None = None,
    progress: ProgressCallback | None = None,
) -> list[Latents]:
    """Step requests in an empty batch until all are done. -> of each, video (1, C_v, T, H, W), audio (takes, A, C_a).

    After each step ``progress(step, steps)`` is called, and ``on_step(step, steps, latents)`` with the latents of all,
    which waits for the step and so ends its overlap with the next one.
    """
    batch.join(jobs)
    steps = max(len(job.schedule) for job in jobs)
    for k in range(steps):
        batch.step()
        if progress is not None:
            progress(k + 1, steps)
        if on_step is not None:
            on_step(k + 1, steps, batch.latents)
    return batch.leave(range(len(jobs)))


def on_step_end(pipeline: Any, callback: StepEndCallback, job: Job) -> StepCallback:
    """A callback of diffusers (``callback_on_step_end``) for a batch whose first request is ``job``.

    It is called with the pipeline, the step from 0, its timestep from 1000 (noise) to 0, and the latents, which it may
    read. Raises ``ValueError`` where it returns others.
    """

    def on_step(step: int, _: int, latents: Latents) -> None:
        timestep = 1000 * (1 - float(job.schedule.video[min(step, len(job.schedule)) - 1]))
        given = {"latents": latents.video, "audio_latents": latents.audio}
        returned = callback(pipeline, step - 1, timestep, dict(given)) or {}
        if any(returned[name] is not given[name] for name in given.keys() & returned.keys()):
            raise ValueError("callback_on_step_end returned other latents; it may read them, and changes nothing")

    return on_step


class ProgressBar:
    """The progress of sampling steps."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __call__(self, step: int, steps: int) -> None:
        if self.bar is None and self.shown:
            from ..progress import progress_bar

            self.bar = progress_bar(total=0, desc="sampling", unit="step")
        if self.bar is not None:
            if step == 1:
                self.bar.total += steps
            self.bar.update(1)

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()
