"""Synthetic jobs: the shapes of a model's own clip, without a text encoder or media."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..config import ModelConfig
from ..sampling.guidance import GuidancePlan, cfg
from ..sampling.job import Job, Text, known_video
from ..sampling.schedule import schedule


def synthetic_job(
    config: ModelConfig,
    steps: int,
    *,
    lead: float = 0.0,
    known: bool = False,
    plan: GuidancePlan | None = None,
    takes: Sequence[int] = (),
) -> Job:
    """A job for one clip of the model's own sequence, by default with classifier-free guidance alone.

    ``known``: the video is known. The text, and a known video, are on the meta device.
    """
    s, d = config.sequence, config.ddit
    times = schedule(steps, shift=config.sampling.shift, lead=lead)
    with torch.device("meta"):
        text = Text(torch.zeros(d.text_tokens, d.text_width), d.text_tokens, key="a prompt")
        video = torch.zeros(d.video_channels, s.latent_frames, s.latent_height, s.latent_width)
    one = Job(s, 0, times, plan or cfg(6.0), text, takes=tuple(takes))
    return replace(one, schedule=times.known_video(), video=known_video(video, d)) if known else one
