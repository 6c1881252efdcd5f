"""Clips that a model samples while it is trained: of the same prompts and seeds every time, to see it learn."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..engine.pipeline import Pipeline
from ..engine.sampling.job import known_audio
from ..engine.sampling.loop import run_batch
from ..engine.sampling.sequential import batch_of
from ..engine.types import Clip, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..engine.components import Components
    from .data.latents import LatentSet

CLIPS = 4
STEPS = 8  # at most: a look at the model, not its best


class Sampler:
    """Samples ``CLIPS`` captions of the ``latents``, spread evenly, as clips of ``seconds``; the i-th has seed i.

    In a model whose audio only serves the video (Syncphony), the videos are those for the sounds of these clips.
    """

    def __init__(self, components: Components, latents: LatentSet, seconds: float) -> None:
        self.components, self.latents, self.seconds = components, latents, seconds
        captions = sorted(set(latents.captions))
        chosen = [captions[i * len(captions) // CLIPS] for i in range(CLIPS)]
        self.rows = {caption: latents.captions.index(caption) for caption in chosen}

    @torch.inference_mode()
    def __call__(self) -> Mapping[str, Clip]:
        """The clips of the model as it is now, by their prompts. Raises ``ValueError`` where they are not finite."""
        parts = self.components
        device = parts.ddit.device
        with ExitStack() as stack:
            for codec in (parts.video, parts.audio):
                stack.enter_context(_on(codec, device))
            pipeline = Pipeline(parts, device)
            steps = min(STEPS, parts.config.sampling.steps)
            requests = [
                pipeline.prepare(Request(caption, seed=i, steps=steps, seconds=self.seconds))
                for i, caption in enumerate(self.rows)
            ]
            jobs = [pipeline.encode(request) for request in requests]
            if parts.config.ddit.bridge == "audio_rope":
                sounds = (torch.from_numpy(self.latents.audio[row].astype(np.float32)) for row in self.rows.values())
                jobs = [
                    replace(job, schedule=job.schedule.known_audio(), audio=known_audio(sound))
                    for job, sound in zip(jobs, sounds, strict=True)
                ]
            found = run_batch(batch_of(parts.ddit), jobs)
            clips = [pipeline.decode(*pair)[0] for pair in zip(requests, found, strict=True)]
            return dict(zip(self.rows, clips, strict=True))


@contextmanager
def _on(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Within, the module is on ``device``."""
    before = next(module.parameters()).device
    module.to(device)
    try:
        yield
    finally:
        module.to(before)
