"""The values that travel: ``Request`` -> ``Conditioning`` -> ``Latents`` -> ``Velocities`` -> ``Latents`` -> ``Clip``.

Frozen dataclasses; a value is validated once, where it enters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .validation import file_path, number, number_between, refuse, text, truth, whole, whole_between

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_STEPS = 1000
MAX_SEED = 2**64 - 1
MAX_TAKES = 64
MAX_WEIGHT, MAX_SHIFT = 100, 100
# Fields of a request that concern the video; a sound alone has none of them.
VIDEO_FIELDS = (
    "video", "image", "extend", "audio", "width", "height", "video_lead",
    "sync_guidance", "sync_cfg_audio", "sync_cfg_video", "reference",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Clip:
    """A video with its sound.

    ``frames`` uint8 (F, H, W, 3), none of them in a sound alone; ``waveform`` float32 (M,) in [-1, 1]; ``provenance``
    says how the clip came to be (prompt, seed, settings, model hash). ``latents`` float32 (C_v, T, H, W) are those that
    the frames were decoded from or encoded to, where they are known: a further take of the sound then needs no encoding
    of the frames. They belong to these frames and to the model of the provenance. Clips are equal when all of this is.
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

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Clip):
            return self is other or NotImplemented
        same = (self.fps, self.sample_rate) == (other.fps, other.sample_rate) and self.provenance == other.provenance
        arrays = ((self.frames, other.frames), (self.waveform, other.waveform), (self.latents, other.latents))
        return same and all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in arrays)

    def __hash__(self) -> int:
        return hash((self.frames.shape, self.waveform.shape, self.fps, self.sample_rate))

    def save(self, path: str | Path, *, latents: bool = False) -> Path:
        """Write ``.mp4`` (H.264 + AAC), or the sound alone as ``.wav``; see :func:`syncflow.engine.media.save_clip`.

        ``latents`` writes those of the video beside it, for :meth:`syncflow.Engine.retake`.
        """
        from .media import save_clip

        return save_clip(self, path, latents=latents)


@dataclass(frozen=True)
class Request:
    """One clip to make. ``None`` takes the model's default.

    *Size*: ``seconds``; ``width`` and ``height`` in pixels.

    *Sampling*: ``steps``, ``shift`` of the time grid towards noise, ``video_lead``. ``takes`` sounds are sampled for
    one video, with the seeds ``audio_seed`` (by default ``seed``), ``audio_seed`` + 1, …; more than one in a model
    whose video does not read the audio.

    *Media*, clips or files, at most one of the first four:

    - ``video``: a known video whose sound is wanted (video-to-audio), or with a ``strength`` above 0 and at most 1 a
      clip of which a variation is wanted;
    - ``image``: a picture that the clip begins with;
    - ``extend``: a clip to continue;
    - ``audio``: a sound whose video is wanted, in a model whose video reads the audio;
    - ``reference``: a sound whose style is wanted, in a model with the bridge ``global_local``.

    ``adapters``: those of the engine that the clip is made with (:meth:`syncflow.Engine.load_adapter`): a name, several
    names, or a weight for each name.

    ``sound_only`` asks for a sound without a video, in a model whose audio reads the text.

    *Guidance*:

    - ``guidance``: weight of classifier-free guidance (1 = off), away from ``negative_prompt`` or from no text;
    - ``sync_guidance`` (0 = off): away from a sound that does not read the video;
    - ``sync_cfg_audio`` (1 = off): away from the sound of a still picture;
    - ``sync_cfg_video`` (1 = off): away from the video of silence, in a model whose video reads the audio;
    - ``guidance_interval``: the flow times (0 = noise) between which guidance holds;
    - ``guidance_rescale`` (0 = off, at most 1): how far the contrast that guidance adds is taken back;
    - ``branch_interval``: the branches that guidance moves away from are evaluated at every N-th step only, and their
      difference is kept between (approximate; 1 = off).

    Raises ``ValueError`` with what is allowed.
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
    adapters: Mapping[str, float] | None = field(default=None, hash=False)  # a dictionary has no hash

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            value = getattr(self, name)
            if value is not None or name in REQUIRED:
                object.__setattr__(self, name, check(name, value))
        media = [name for name in ("video", "image", "extend", "audio") if getattr(self, name) is not None]
        if len(media) > 1:
            raise ValueError(f"{' and '.join(media)} are given; a clip is made from one of them")
        if self.strength is not None and self.video is None:
            raise ValueError("strength says how far to move away from a video; there is none")
        if not self.prompt.strip() and not media:
            raise ValueError("the prompt is empty; say in a sentence what the clip shows")
        if self.sound_only and (given := [name for name in VIDEO_FIELDS if getattr(self, name) is not None]):
            raise ValueError(f"sound_only draws a sound without a video; it goes without {', '.join(given)}")
        if self.negative_prompt is not None and not self.negative_prompt.strip():
            raise ValueError("the negative prompt is empty; leave it out to move away from no text")
        if self.negative_prompt is not None and not self.prompt.strip():
            raise ValueError("a negative prompt needs a prompt; there is none")


def _media(name: str, value: Any) -> Clip | Path:
    return value if isinstance(value, Clip) else file_path(name, value, "a clip or the path of a file")


def _interval(name: str, value: Any) -> tuple[float, float]:
    allowed = "two rising times from 0 to 1"
    try:
        low, high = value
    except (TypeError, ValueError):
        refuse(name, value, allowed)
    low, high = (number(name, time, allowed) for time in (low, high))
    if not 0 <= low < high <= 1:
        raise ValueError(f"{name} is {low} to {high}; it must be {allowed}")
    return low, high


def _adapters(name: str, value: Any) -> dict[str, float]:
    allowed = "a name, names, or a number for each name"
    given = {value: 1.0} if isinstance(value, str) else value
    if isinstance(given, (list, tuple)) and all(isinstance(one, str) for one in given):
        given = dict.fromkeys(given, 1.0)
    if not isinstance(given, Mapping) or not all(isinstance(one, str) for one in given):
        refuse(name, value, allowed)
    return {key: number_between(name, weight, -MAX_WEIGHT, MAX_WEIGHT) for key, weight in given.items()}


def _up_to(high: int, low: int = 1) -> Check:
    return lambda name, value: whole_between(name, value, low, high)


def _weight(name: str, value: Any) -> float:
    return number_between(name, value, -MAX_WEIGHT, MAX_WEIGHT, f"a finite number from -{MAX_WEIGHT} to {MAX_WEIGHT}")


def _share(name: str, value: Any) -> float:
    return number_between(name, value, 0, 1)


Check = Callable[[str, Any], Any]
REQUIRED = ("prompt", "seed", "sound_only", "takes")
# Sizes and seconds are checked with the rates and factors of a model, in its SequenceConfig; here only their kind.
CHECKS: dict[str, Check] = {
    "prompt": text,
    "seed": _up_to(MAX_SEED, 0),
    "steps": _up_to(MAX_STEPS),
    "guidance": _weight,
    "seconds": number,
    "width": whole,
    "height": whole,
    "shift": lambda name, value: number_between(name, value, 0, MAX_SHIFT, above=True),
    "video_lead": _share,
    **dict.fromkeys(("video", "image", "extend", "audio", "reference"), _media),
    "strength": lambda name, value: number_between(name, value, 0, 1, above=True),
    "negative_prompt": text,
    **dict.fromkeys(("sync_guidance", "sync_cfg_audio", "sync_cfg_video"), _weight),
    "guidance_interval": _interval,
    "guidance_rescale": _share,
    "branch_interval": _up_to(MAX_STEPS),
    "sound_only": truth,
    "audio_seed": _up_to(MAX_SEED, 0),
    "takes": _up_to(MAX_TAKES),
    "adapters": _adapters,
}


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Text of P prompts as every block of the d-DiT reads it.

    ``keys`` and ``values`` (blocks, P, L, n, d), ``lengths`` (P,) tokens that count; ``text_tokens`` the projected
    tokens (P, L, D) that the audio tower reads when it reads text at all. ``adapter_weights`` (P, K) are those of the K
    adapters in the rows that read a text; ``None`` where no adapter is used.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    text_tokens: Tensor | None = None
    adapter_weights: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Latents:
    """``video`` (R, C_v, T, H, W) and ``audio`` (R, A, C_a) at their flow times.

    ``ready``: on a GPU, the event after which another stream may read them.
    """

    video: Tensor
    audio: Tensor
    ready: torch.cuda.Event | None = None


@dataclass(frozen=True, eq=False)
class Velocities:
    """Velocities of both modalities, shaped like :class:`Latents`; ``None`` where a modality was not asked for."""

    video: Tensor | None
    audio: Tensor | None


@dataclass(frozen=True)
class DecodeTiles:
    """What a video codec decodes at once: ``images`` in an autoencoder of single frames, and tiles of ``side`` x
    ``side`` pixels of each frame, or None for whole frames.
    """

    images: int = 4
    side: int | None = None

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images is {self.images}; it must be at least 1")
        if self.side is not None and not 32 <= self.side <= 4096:
            raise ValueError(f"tile is {self.side}; it must be from 32 to 4096 pixels")

    def __str__(self) -> str:
        at_once = "" if self.images == WHOLE.images else ", one frame at a time" if self.images == 1 else ""
        return (f"tiles of {self.side} pixels" if self.side else "whole frames") + at_once


WHOLE = DecodeTiles()
