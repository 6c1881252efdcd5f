"""Repeated steps of a clip of the model's own size, for timing denoisers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import SequenceConfig
from ..model.denoiser import Denoiser
from .guidance import cfg
from .job import Job, Text
from .schedule import schedule
from .sequential import batch_of

STEPS = 50  # of the clip, which then begins anew


def make_step(sequence: SequenceConfig, model: Denoiser) -> Callable[[], Tensor]:
    """A function that does the next step of one clip of this size and returns the latents of its video.

    With text guidance: two rows through both towers. The text is noise of full length.
    """
    config = model.config
    states = torch.randn(config.text_tokens, config.text_width, generator=torch.Generator().manual_seed(0))
    job = Job(sequence, 0, schedule(STEPS), cfg(2.0), Text(states, config.text_tokens))
    batch = batch_of(model)
    batch.join([job])

    def step() -> Tensor:
        if batch.step():
            batch.leave([0])
            batch.join([job])
        return batch.latents.video

    return step
