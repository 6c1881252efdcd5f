"""Tasks: the media that a request gives, and the known latents that they make (``docs/method.md`` section 5).

| task | given | known latents |
|---|---|---|
| text-to-audio-video | nothing | none |
| video-to-audio | a video | all frames |
| image-to-audio-video | a picture | the first latent frame |
| continuation | a clip, shorter than the one to make | the latent frames and the sound that it fills |
| audio-to-video | a sound, in a model whose video reads it | all of the audio, clean |
| variation | a clip, and a strength | all, at the flow time 1 - strength where sampling begins |
| text-to-audio | nothing, and no video is made, in a model whose audio reads the text | none |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from .components import Components
from .config import MAX_SECONDS, SequenceConfig
from .media import conform, load_audio, load_clip, load_picture, probe, resample
from .sampling.job import Known, known_audio, known_video
from .types import Clip, Request

Task = Literal[
    "text-to-audio-video",
    "video-to-audio",
    "image-to-audio-video",
    "continuation",
    "audio-to-video",
    "variation",
    "text-to-audio",
]
T = TypeVar("T")
CROSSFADE = 0.01  # seconds between the sound of a clip and its continuation


@dataclass(frozen=True)
class KnownMedia:
    """The media of a request at the clip's rate, size and duration. The first ``seconds`` are known, the rest is
    padding."""

    task: Task
    clip: Clip
    seconds: float


def task_of(request: Request) -> Task:
    """The task that a request's media ask for."""
    if request.image is not None:
        return "image-to-audio-video"
    if request.extend is not None:
        return "continuation"
    if request.audio is not None:
        return "audio-to-video"
    if request.video is not None:
        return "video-to-audio" if request.strength is None else "variation"
    return "text-to-audio" if request.sound_only else "text-to-audio-video"


def read_media(request: Request, base: SequenceConfig) -> tuple[KnownMedia | None, SequenceConfig]:
    """Read the media of a request, once, and derive the lengths of its clip.

    The duration is the one that is asked for. Otherwise it is that of the model's own clip (``base``), of the given
    clip (at most a minute), or half the model's own clip more than the clip to continue. Raises ``ValueError`` for
    media that cannot be read and where there is nothing to continue.
    """
    task = task_of(request)
    if task in ("text-to-audio-video", "text-to-audio"):
        return None, _sequence(request, base, default(request.seconds, base.seconds))
    given = (request.image, request.extend, request.audio, request.video)
    media = next(one for one in given if one is not None)
    if task == "image-to-audio-video" and not isinstance(media, Clip):
        media = load_picture(media)
    if task == "audio-to-video":
        media = _black_clip(_load_waveform(media, base.sample_rate), base)
    length = _seconds(media)
    natural = {"image-to-audio-video": base.seconds, "continuation": length + base.seconds / 2}.get(task, length)
    seconds = min(max(natural, 1 / base.fps), MAX_SECONDS) if request.seconds is None else request.seconds
    if task == "continuation" and length >= seconds:
        raise ValueError(f"the clip to continue has {length:g} s and the result {seconds:g} s; ask for more seconds")
    sequence = _sequence(request, base, seconds)
    target: dict[str, Any] = {
        "fps": sequence.fps,
        "size": (sequence.width, sequence.height),
        "sample_rate": sequence.sample_rate,
        "seconds": sequence.seconds,
    }
    clip = conform(media, **target) if isinstance(media, Clip) else load_clip(media, **target)
    return KnownMedia(task, clip, length if task == "continuation" else seconds), sequence


def known_latents(
    media: KnownMedia, sequence: SequenceConfig, components: Components, strength: float | None, device: torch.device
) -> tuple[Known | None, Known | None]:
    """Known latents of the video and of the audio. Raises ``ValueError`` where the media are shorter than a latent."""
    if media.task == "audio-to-video":
        return None, known_audio(encode_waveform(media.clip.waveform, components, device))
    video = _encode_frames(media, sequence, components, device)
    if media.task == "video-to-audio":
        return known_video(video, components.config.ddit), None
    clean = components.config.ddit.is_stdit  # Open-Sora and JavisDiT are trained with known frames at time 1
    if media.task == "image-to-audio-video":
        return Known(video, torch.arange(sequence.latent_frames) < 1, clean), None
    audio = encode_waveform(media.clip.waveform, components, device)
    if media.task == "variation":
        start = 1 - default(strength, 1.0)
        return Known(video, start=start), Known(audio, start=start)
    frames, tokens = known_lengths(media, sequence)
    if frames < 1:
        least = sequence.latent_ends[0] / sequence.fps
        raise ValueError(f"the clip to continue has {media.seconds:g} s; it must have at least {least:g} s")
    return (
        Known(video, torch.arange(sequence.latent_frames) < frames, clean),
        Known(audio, torch.arange(sequence.audio_tokens) < tokens),
    )


def known_lengths(media: KnownMedia, sequence: SequenceConfig) -> tuple[int, int]:
    """Latent frames, whose padding counts as known, and audio tokens that the known seconds fill completely."""
    known = int(media.seconds * sequence.fps + 1e-6)
    frames = sum(end <= known for end in sequence.latent_ends)
    return frames, int(media.seconds * sequence.sample_rate + 1e-6) // sequence.audio_hop


def restore_known(
    media: KnownMedia, sequence: SequenceConfig, frames: np.ndarray, waveform: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decoded frames and samples of a continuation, the known ones replaced by those of the clip that it continues.

    The known sound is cross-faded into the sampled one.
    """
    latent_frames, tokens = known_lengths(media, sequence)
    known, end = sequence.latent_ends[latent_frames - 1], tokens * sequence.audio_hop
    height, width = frames.shape[1:3]
    frames = np.concatenate((media.clip.frames[:known, :height, :width], frames[known:]))
    if not len(waveform):
        return frames, waveform
    fade = np.clip((end - np.arange(len(waveform))) / (CROSSFADE * sequence.sample_rate), 0, 1).astype(np.float32)
    return frames, fade * media.clip.waveform + (1 - fade) * waveform


def _encode_frames(media: KnownMedia, sequence: SequenceConfig, components: Components, device: torch.device) -> Tensor:
    """Latents of the frames: those of the clip if this model decoded the frames from them, else encoded anew."""
    clip, stored = media.clip, media.clip.latents
    shape = (sequence.latent_frames, sequence.latent_height, sequence.latent_width)
    same_model = components.digest and clip.provenance.get("model_hash") == components.digest
    if same_model and stored is not None and stored.shape[1:] == shape:
        return torch.from_numpy(stored).to(device)
    frames = torch.from_numpy(clip.frames)[None].to(device)
    if media.task == "image-to-audio-video" and sequence.chunk_frames:  # a picture is a chunk of its own
        with components.using("video"):
            first = components.video.encode(frames[:, :1])[0]
        return torch.nn.functional.pad(first, (0, 0, 0, 0, 0, shape[0] - first.shape[1]))
    with components.using("video"):
        return components.video.encode(frames)[0]


def read_reference(request: Request, sequence: SequenceConfig) -> np.ndarray | None:
    """The waveform (M,) of the reference sound. Raises ``ValueError`` for one that is too short or too long."""
    if request.reference is None:
        return None
    waveform = _load_waveform(request.reference, sequence.sample_rate)
    if not sequence.audio_hop <= len(waveform) <= MAX_SECONDS * sequence.sample_rate:
        least, seconds = sequence.audio_hop / sequence.sample_rate, len(waveform) / sequence.sample_rate
        raise ValueError(f"the reference sound has {seconds:g} s; it must have from {least:g} s to {MAX_SECONDS:g} s")
    return waveform


def encode_waveform(waveform: np.ndarray, components: Components, device: torch.device) -> Tensor:
    """Latents (A, C_a) of a waveform (M,)."""
    with components.using("audio"):
        return components.audio.encode(torch.from_numpy(waveform)[None].to(device))[0]


def _load_waveform(media: Clip | Path, sample_rate: int) -> np.ndarray:
    """The waveform (M,) of a clip or a file. Raises ``ValueError`` where there is none."""
    if not isinstance(media, Clip):
        return load_audio(media, sample_rate)
    if not len(media.waveform):
        raise ValueError("the clip whose sound is asked for has none")
    return resample(media.waveform, media.sample_rate, sample_rate)


def _black_clip(waveform: np.ndarray, base: SequenceConfig) -> Clip:
    """A clip of black frames with this waveform."""
    count = max(1, round(len(waveform) / base.sample_rate * base.fps))
    return Clip(np.zeros((count, base.height, base.width, 3), np.uint8), waveform, base.fps, base.sample_rate)


def _sequence(request: Request, base: SequenceConfig, seconds: float) -> SequenceConfig:
    return base.replace(
        seconds=seconds, width=default(request.width, base.width), height=default(request.height, base.height)
    )


def _seconds(media: Clip | Path) -> float:
    return media.seconds if isinstance(media, Clip) else probe(media).seconds


def default(value: T | None, otherwise: T) -> T:
    """The value of an optional field, or its default."""
    return otherwise if value is None else value
