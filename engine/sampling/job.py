"""A request made ready for sampling: what the loop needs to know of it, and nothing of text or media."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..config import DDiTConfig, SequenceConfig
from .guidance import GuidancePlan
from .noise import Stream, normal
from .schedule import Schedule

AdapterWeights = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Text:
    """Text encoder states (L, W) and how many of the tokens count.

    ``key`` says what the states were computed from, as the prompt: texts of equal keys have equal states. It is
    optional where the states have values (not on the meta device). ``adapters`` are those of the rows that read the
    text.
    """

    states: Tensor
    length: int
    key: Hashable = None
    adapters: AdapterWeights = ()

    @cached_property
    def cache_key(self) -> Hashable:
        """The key, or a hash of the states: what is computed from the states is cached under it."""
        if self.key is not None:
            return self.key
        states = self.states.detach().cpu().contiguous()
        digest = hashlib.sha256(states.view(torch.uint8).numpy().tobytes()).hexdigest()
        return digest, states.dtype, states.shape


NULL_KEY = ("null text",)  # no prompt is a tuple


@dataclass(frozen=True)
class Known:
    """Latents of one modality that are given, clean.

    ``latents`` (C_v, T, H, W) or (A, C_a); ``mask`` (T,) or (A,) bool, where they hold throughout (None: everywhere).
    They stand at the modality's own flow time, noised with the request's noise, or at ``clean`` time 1. With ``start``
    they hold nowhere: sampling begins with them at that flow time (a variation).
    """

    latents: Tensor
    mask: Tensor | None = None
    clean: bool = False
    start: float | None = None


def known_video(latents: Tensor, model: DDiTConfig) -> Known:
    """A video that is given whole: clean where the towers read each other, since these models were trained with either
    modality clean (Harmony's cross-task synergy), and hardly read a noised one.
    """
    return Known(latents, clean=model.is_joint)


def known_audio(latents: Tensor) -> Known:
    """A sound that is given whole: clean."""
    return Known(latents, clean=True)


@dataclass(frozen=True)
class Job:
    """One clip to sample. ``text`` is its prompt, ``negative`` stands for the absence of the prompt; None is the
    model's null text (:func:`text_of`).

    ``takes`` are the seeds of the sounds that are sampled for one video, by default the clip's own ``seed``.
    ``silence`` (A, C_a) clean latents of no sound, where a branch is muted; ``reference`` (A_r, C_a) those of a sound
    whose style is wanted. ``adapters``: their names and weights. ``noise`` (C_v, T, H, W) takes the place of the
    seed's for the video. ``prior``: that of the prompt in a ``bidirectional`` model, states (2 N, C); None is the
    model's null prior.
    """

    sequence: SequenceConfig
    seed: int
    schedule: Schedule
    plan: GuidancePlan
    text: Text | None
    negative: Text | None = None
    video: Known | None = None
    audio: Known | None = None
    silence: Tensor | None = None
    takes: tuple[int, ...] = ()
    reference: Tensor | None = None
    adapters: AdapterWeights = ()
    noise: Tensor | None = None
    prior: Text | None = None

    @property
    def sounds(self) -> tuple[int, ...]:
        """The seed of every take."""
        return self.takes or (self.seed,)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds."""
        texts = (text.states for text in (self.text, self.negative, self.prior) if text is not None)
        known = (tensor for one in (self.video, self.audio) if one is not None for tensor in (one.latents, one.mask))
        return tuple(one for one in (*texts, *known, self.silence, self.reference, self.noise) if one is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        """What the jobs of a batch share: latent frames, padding, height, width, tokens of audio and reference."""
        return batch_shape(self.sequence, 0 if self.reference is None else len(self.reference))


def batch_shape(sequence: SequenceConfig, reference_tokens: int) -> tuple[int, ...]:
    """What requests must have in common to share a batch."""
    s = sequence
    return s.latent_frames, s.padding, s.height, s.width, s.audio_tokens, reference_tokens


def text_of(job: Job, prompted: bool, null_text: Tensor) -> Text:
    """The text that a branch of a job reads: its prompt, or what stands for the absence of a prompt.

    That is the negative prompt, or the model's ``null_text`` (L, W) cut to the length of the prompt.
    """
    chosen = job.text if prompted else job.negative
    if chosen is None:
        chosen = Text(null_text, len(null_text) if job.text is None else job.text.length, NULL_KEY)
    return replace(chosen, adapters=job.adapters) if job.adapters else chosen


def video_noise(job: Job, channels: int) -> Tensor:
    """(C_v, T, H, W) of the request's own stream, unless it was given; independent of who shares its batch."""
    if job.noise is not None:
        return job.noise
    s = job.sequence
    shape = (channels, s.latent_frames, s.latent_height, s.latent_width)
    return torch.from_numpy(normal(job.seed, Stream.VIDEO, shape))


def audio_noise(job: Job, channels: int, seed: int | None = None) -> Tensor:
    """(A, C_a) of the stream of a take's seed, by default the request's own."""
    shape = (job.sequence.audio_tokens, channels)
    return torch.from_numpy(normal(job.seed if seed is None else seed, Stream.AUDIO, shape))
