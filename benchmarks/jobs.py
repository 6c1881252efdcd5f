"""Jobs to count and to time: shapes of a preset, without a text encoder or media."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from syncflow.engine.config import ModelConfig
from syncflow.engine.sampling.guidance import GuidancePlan, cfg
from syncflow.engine.sampling.job import Job, Known, Text
from syncflow.engine.sampling.schedule import schedule


def job(
    config: ModelConfig,
    steps: int,
    *,
    lead: float = 0.0,
    known: bool = False,
    plan: GuidancePlan | None = None,
    takes: Sequence[int] = (),
) -> Job:
    """One clip of the preset's own sequence, with classifier-free guidance alone by default; ``known``: its video.

    The text, and the video where it is known, are on the meta device.
    """
    s, d = config.sequence, config.ddit
    times = schedule(steps, shift=config.sampling.shift, lead=lead)
    with torch.device("meta"):
        text = Text(torch.zeros(d.text_tokens, d.text_width), d.text_tokens, key="a prompt")
        video = torch.zeros(d.video_channels, s.latent_frames, s.latent_height, s.latent_width)
    one = Job(s, 0, times, plan or cfg(6.0), text, takes=tuple(takes))
    return replace(one, schedule=times.known_video(), video=Known(video)) if known else one
