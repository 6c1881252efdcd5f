"""A request made ready for sampling: what the loop needs to know of it, and nothing of text or media."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import SequenceConfig
from .guidance import GuidancePlan
from .noise import Stream, normal
from .schedule import Schedule


@dataclass(frozen=True)
class Job:
    """One clip to sample.

    ``states`` (L, W) and ``length`` of the prompt's text; ``known_video`` (C_v, T, H, W) clean latents of a given
    video.
    """

    sequence: SequenceConfig
    seed: int
    schedule: Schedule
    plan: GuidancePlan
    states: Tensor
    length: int
    known_video: Tensor | None = None


def video_noise(job: Job, channels: int) -> Tensor:
    """(C_v, T, H, W) of the request's own stream; independent of who shares its batch."""
    s = job.sequence
    shape = (channels, s.latent_frames, s.latent_height, s.latent_width)
    return torch.from_numpy(normal(job.seed, Stream.VIDEO, shape))


def audio_noise(job: Job, channels: int) -> Tensor:
    """(A, C_a) of the request's own stream."""
    return torch.from_numpy(normal(job.seed, Stream.AUDIO, (job.sequence.audio_tokens, channels)))
