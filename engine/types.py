"""The values that travel: ``Request`` -> ``Conditioning`` -> ``Latents`` -> ``Velocities`` -> ``Latents`` -> ``Clip``.

Frozen dataclasses; a value is validated once, where it enters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

MAX_STEPS = 1000
MAX_SEED = 2**64 - 1
MAX_TAKES = 64
# What says something of a video, and nothing of a sound alone.
OF_VIDEO = (
    "video", "image", "extend", "audio", "width", "height", "video_lead",
    "sync_guidance", "sync_cfg_audio", "sync_cfg_video", "reference",
)  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """A video with its sound.

    ``frames`` uint8 (F, H, W, 3), none of them in a sound alone; ``waveform`` float32 (M,) in [-1, 1]; ``provenance``
    says how the clip came to be (prompt, seed, settings, model hash). ``latents`` float32 (C_v, T, H, W) are those that
    the frames were decoded from or encoded to, where they are known: a further take of the sound then needs no encoding
    of the frames. They belong to these frames and to the model of the provenance.
    """

    frames: np.ndarray
    waveform: np.ndarray
    fps: float
    sample_rate: int
    provenance: Mapping[str, Any] = field(default_factory=dict)
    latents: np.ndarray | None = None

    @property
    def seconds(self) -> float:
        """Duration of the video, or of a sound alone."""
        return len(self.frames) / self.fps if len(self.frames) else len(self.waveform) / self.sample_rate

    def save(self, path: str | Path, *, latents: bool = False) -> Path:
        """Write ``.mp4`` (H.264 + AAC), or the sound alone as ``.wav``; see :func:`syncflow.engine.media.save_clip`.

        ``latents`` writes those of the video beside it, for :meth:`syncflow.Engine.retake`.
        """
        from .media import save_clip

        return save_clip(self, path, latents=latents)


@dataclass(frozen=True)
class Request:
    """One clip to make. ``None`` takes the model's default.

    ``width`` and ``height`` in pixels. ``guidance`` is the weight of classifier-free guidance (1 = off), away from
    ``negative_prompt`` or from no text; ``sync_guidance`` (0 = off) moves away from a sound that does not see the
    picture, ``sync_cfg_audio`` (1 = off) away from the sound of a still picture, ``sync_cfg_video`` (1 = off) away from
    the video of silence, in a model whose video reads the audio. Guidance holds within ``guidance_interval`` (flow
    times, 0 = noise), and ``guidance_rescale`` (0 = off, at most 1) draws its contrast back. With a ``branch_interval``
    of N the branches that guidance moves away from are evaluated at every N-th step alone, and their difference is kept
    between (approximate; 1 = off). Media are clips or files, one of them at most: ``video`` is a known video whose
    sound is to be drawn (video-to-audio), or with a ``strength`` above 0 and at most 1 a clip of which a variation is
    to be drawn; ``image`` a picture that the clip begins with; ``extend`` a clip to continue; ``audio`` a sound to draw
    the video of, in a model whose video reads the audio. ``reference`` is a sound whose style is wanted, in a model
    with the bridge ``global_local``. ``sound_only`` draws a sound without a video, in a model whose audio reads the
    text.

    ``takes`` sounds are drawn for one video, with the seeds ``audio_seed`` (by default ``seed``), ``audio_seed`` + 1,
    …; more than one in a model whose video does not read the audio. Raises ``ValueError`` with what is allowed.
    """

    prompt: str
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    seconds: float | None = None
    width: int | None = None
    height: int | None = None
    shift: float | None = None
    video_lead: float | None = None
    video: Clip | Path | None = None
    image: Clip | Path | None = None
    extend: Clip | Path | None = None
    audio: Clip | Path | None = None
    strength: float | None = None
    negative_prompt: str | None = None
    sync_guidance: float | None = None
    sync_cfg_audio: float | None = None
    sync_cfg_video: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float | None = None
    branch_interval: int | None = None
    reference: Clip | Path | None = None
    sound_only: bool = False
    audio_seed: int | None = None
    takes: int = 1

    def __post_init__(self) -> None:
        media = [name for name in ("video", "image", "extend", "audio") if getattr(self, name) is not None]
        if len(media) > 1:
            raise ValueError(f"{' and '.join(media)} are given; a clip is made from one of them")
        if self.strength is not None and self.video is None:
            raise ValueError("strength says how far to move away from a video; there is none")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; it must be above 0 and at most 1")
        if not isinstance(self.prompt, str) or (not self.prompt.strip() and not media):
            raise ValueError("the prompt is empty; say in a sentence what the clip shows")
        for name in ("seed", "audio_seed"):
            seed = getattr(self, name)
            if not (isinstance(seed, int) and 0 <= seed <= MAX_SEED) and not (name == "audio_seed" and seed is None):
                raise ValueError(f"{name} is {seed}; it must be a whole number from 0 to {MAX_SEED}")
        if not isinstance(self.takes, int) or not 1 <= self.takes <= MAX_TAKES:
            raise ValueError(f"takes is {self.takes}; it must be a whole number from 1 to {MAX_TAKES}")
        if self.sound_only and (given := [name for name in OF_VIDEO if getattr(self, name) is not None]):
            raise ValueError(f"sound_only draws a sound without a video; it goes without {', '.join(given)}")
        if self.steps is not None and not (isinstance(self.steps, int) and 1 <= self.steps <= MAX_STEPS):
            raise ValueError(f"steps is {self.steps}; it must be a whole number from 1 to {MAX_STEPS}")
        for name in ("guidance", "sync_guidance", "sync_cfg_audio", "sync_cfg_video"):
            weight = getattr(self, name)
            if weight is not None and not (math.isfinite(weight) and abs(weight) <= 100):
                raise ValueError(f"{name} is {weight}; it must be a finite number from -100 to 100")
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low < high <= 1:
                raise ValueError(f"guidance_interval is {low} to {high}; it must be two rising times from 0 to 1")
        if self.guidance_rescale is not None and not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale is {self.guidance_rescale}; it must be from 0 to 1")
        every = self.branch_interval
        if every is not None and not (isinstance(every, int) and 1 <= every <= MAX_STEPS):
            raise ValueError(f"branch_interval is {every}; it must be a whole number from 1 to {MAX_STEPS}")
        if self.negative_prompt is not None and not self.negative_prompt.strip():
            raise ValueError("the negative prompt is empty; leave it out to move away from no text")
        if self.negative_prompt is not None and not self.prompt.strip():
            raise ValueError("a negative prompt needs a prompt; there is none")
        if self.shift is not None and not (math.isfinite(self.shift) and 0 < self.shift <= 100):
            raise ValueError(f"shift is {self.shift}; it must be above 0 and at most 100")
        if self.video_lead is not None and not 0 <= self.video_lead <= 1:
            raise ValueError(f"video_lead is {self.video_lead}; it must be from 0 to 1")


@dataclass(frozen=True)
class Conditioning:
    """Text of P prompts as every block of the d-DiT reads it.

    ``keys`` and ``values`` (blocks, P, L, n, d), ``lengths`` (P,) tokens that count; ``text_tokens`` the projected
    tokens (P, L, D) that the audio tower reads when it reads text at all.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    text_tokens: Tensor | None = None


@dataclass(frozen=True)
class Latents:
    """``video`` (R, C_v, T, H, W) and ``audio`` (R, A, C_a) at their flow times."""

    video: Tensor
    audio: Tensor


@dataclass(frozen=True)
class Velocities:
    """Velocities of both modalities, shaped like :class:`Latents`; ``None`` where a modality was not asked for."""

    video: Tensor | None
    audio: Tensor | None
