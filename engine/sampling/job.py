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
class Text:
    """Text encoder states (L, W) and how many of the tokens count.

    What is computed of the states is kept for their identity: the same prompt should come with the same tensor.
    """

    states: Tensor
    length: int


@dataclass(frozen=True)
class Known:
    """Latents of one modality that are given, clean.

    ``latents`` (C_v, T, H, W) or (A, C_a); ``mask`` (T,) or (A,) bool, where they hold throughout (None: everywhere).
    They stand at the modality's own flow time, noised with the request's noise, or at ``clean`` time 1. With ``start``
    above 0 they hold nowhere: sampling begins with them at that flow time (a variation).
    """

    latents: Tensor
    mask: Tensor | None = None
    clean: bool = False
    start: float = 0.0


@dataclass(frozen=True)
class Job:
    """One clip to sample. ``negative`` stands for the absence of the prompt; None is the model's null text.

    ``takes`` are the seeds of the sounds that are sampled for one video, by default the clip's own ``seed``.
    ``silence`` (A, C_a) clean latents of no sound, where a branch is muted; ``reference`` (A_r, C_a) those of a sound
    whose style is wanted.
    """

    sequence: SequenceConfig
    seed: int
    schedule: Schedule
    plan: GuidancePlan
    text: Text
    negative: Text | None = None
    video: Known | None = None
    audio: Known | None = None
    silence: Tensor | None = None
    takes: tuple[int, ...] = ()
    reference: Tensor | None = None

    @property
    def sounds(self) -> tuple[int, ...]:
        """The seed of every take."""
        return self.takes or (self.seed,)

    @property
    def shape(self) -> tuple[int, ...]:
        """What the jobs of a batch share: latent frames, height, width, audio tokens and tokens of the reference."""
        s = self.sequence
        reference = 0 if self.reference is None else len(self.reference)
        return s.latent_frames, s.latent_height, s.latent_width, s.audio_tokens, reference


def video_noise(job: Job, channels: int) -> Tensor:
    """(C_v, T, H, W) of the request's own stream; independent of who shares its batch."""
    s = job.sequence
    shape = (channels, s.latent_frames, s.latent_height, s.latent_width)
    return torch.from_numpy(normal(job.seed, Stream.VIDEO, shape))


def audio_noise(job: Job, channels: int, seed: int | None = None) -> Tensor:
    """(A, C_a) of the stream of a take's seed, by default the request's own."""
    shape = (job.sequence.audio_tokens, channels)
    return torch.from_numpy(normal(job.seed if seed is None else seed, Stream.AUDIO, shape))
