"""Tasks: what a request gives of its clip, and the known latents that this makes (``docs/method.md`` section 5).

| task | given | known latents |
|---|---|---|
| text-to-audio-video | nothing | none |
| video-to-audio | a video | all frames |
| image-to-audio-video | a picture | the first latent frame |
| continuation | a clip, shorter than the one to make | the latent frames and the sound that it fills |
| audio-to-video | a sound, in a model whose video reads it | all of the audio, clean |
| variation | a clip, and a strength | all, at the flow time 1 - strength where sampling begins |
| text-to-audio | that no video is wanted, in a model whose audio reads the text | none |
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from .components import Components
from .config import MAX_SECONDS, SequenceConfig
from .media import conform, load_audio, load_clip, load_picture, probe, resample
from .sampling.job import Known
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
class Given:
    """The media of a request at the clip's rate, size and duration; ``seconds`` of them count, the rest is filler."""

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


def take(request: Request, base: SequenceConfig) -> tuple[Request, Given | None]:
    """Read the media of a request; the request then names its duration.

    Without one it is that of the given clip (at most a minute), or half a model's own clip more than the clip that is
    continued. Raises ``ValueError`` where there is nothing to continue.
    """
    task = task_of(request)
    if task in ("text-to-audio-video", "text-to-audio"):
        return request, None
    every = (request.image, request.extend, request.audio, request.video)
    media = next(given for given in every if given is not None)
    if task == "image-to-audio-video" and not isinstance(media, Clip):
        media = load_picture(media)
    if task == "audio-to-video":
        media = _dark(_waveform(media, base.sample_rate), base)
    long = _seconds(media)
    natural = {"image-to-audio-video": base.seconds, "continuation": long + base.seconds / 2}.get(task, long)
    seconds = min(max(natural, 1 / base.fps), MAX_SECONDS) if request.seconds is None else request.seconds
    if task == "continuation" and long >= seconds:
        raise ValueError(f"the clip to continue has {long:g} s and the result {seconds:g} s; ask for more seconds")
    sequence = base.replace(
        seconds=seconds, width=default(request.width, base.width), height=default(request.height, base.height)
    )
    shape: dict[str, Any] = {
        "fps": sequence.fps,
        "size": (sequence.width, sequence.height),
        "sample_rate": sequence.sample_rate,
        "seconds": sequence.seconds,
    }
    clip = conform(media, **shape) if isinstance(media, Clip) else load_clip(media, **shape)
    known = long if task == "continuation" else seconds
    return dataclasses.replace(request, seconds=seconds), Given(task, clip, known)


def known_latents(
    given: Given, sequence: SequenceConfig, components: Components, strength: float | None, device: torch.device
) -> tuple[Known | None, Known | None]:
    """Known latents of the video and of the audio. Raises ``ValueError`` where the media are shorter than a latent."""
    if given.task == "audio-to-video":
        return None, Known(heard(given.clip.waveform, components, device), clean=True)
    video = _seen(given, sequence, components, device)
    if given.task == "video-to-audio":
        return Known(video), None
    if given.task == "image-to-audio-video":
        return Known(video, torch.arange(sequence.latent_frames) < 1), None
    audio = heard(given.clip.waveform, components, device)
    if given.task == "variation":
        start = 1 - default(strength, 1.0)
        return Known(video, start=start), Known(audio, start=start)
    count, sounds = filled(given, sequence)
    if count < 1:
        least = sequence.time_factor / sequence.fps
        raise ValueError(f"the clip to continue has {given.seconds:g} s; it must have at least {least:g} s")
    return (
        Known(video, torch.arange(sequence.latent_frames) < count),
        Known(audio, torch.arange(sequence.audio_tokens) < sounds),
    )


def filled(given: Given, sequence: SequenceConfig) -> tuple[int, int]:
    """Latent frames and audio tokens that the known seconds fill wholly."""
    frames = int(given.seconds * sequence.fps + 1e-6) // sequence.time_factor
    return frames, int(given.seconds * sequence.sample_rate + 1e-6) // sequence.audio_hop


def restore(given: Given, sequence: SequenceConfig, frames: np.ndarray, waveform: np.ndarray) -> tuple[Any, Any]:
    """The drawn frames and samples with what is known put back as it was given, its sound faded into the drawn one."""
    if given.task == "audio-to-video":
        return frames, given.clip.waveform
    if given.task != "continuation":
        return frames, waveform
    count, sounds = filled(given, sequence)
    pictures, end = count * sequence.time_factor, sounds * sequence.audio_hop
    fade = np.clip((end - np.arange(len(waveform))) / (CROSSFADE * sequence.sample_rate), 0, 1).astype(np.float32)
    frames = np.concatenate((given.clip.frames[:pictures], frames[pictures:]))
    return frames, fade * given.clip.waveform + (1 - fade) * waveform


def _seen(given: Given, sequence: SequenceConfig, components: Components, device: torch.device) -> Tensor:
    """Latents of the frames: those that this model decoded them from, if the clip has them."""
    clip, kept = given.clip, given.clip.latents
    shape = (sequence.latent_frames, sequence.latent_height, sequence.latent_width)
    ours = components.digest and clip.provenance.get("model_hash") == components.digest
    if ours and kept is not None and kept.shape[1:] == shape:
        return torch.from_numpy(kept).to(device)
    return components.video.encode(torch.from_numpy(clip.frames)[None].to(device))[0]


def reference(request: Request, sequence: SequenceConfig) -> np.ndarray | None:
    """The sound (M,) whose style is wanted. Raises ``ValueError`` for one that is too short or too long."""
    if request.reference is None:
        return None
    waveform = _waveform(request.reference, sequence.sample_rate)
    if not sequence.audio_hop <= len(waveform) <= MAX_SECONDS * sequence.sample_rate:
        least, seconds = sequence.audio_hop / sequence.sample_rate, len(waveform) / sequence.sample_rate
        raise ValueError(f"the reference sound has {seconds:g} s; it must have from {least:g} s to {MAX_SECONDS:g} s")
    return waveform


def heard(waveform: np.ndarray, components: Components, device: torch.device) -> Tensor:
    """Latents (A, C_a) of a sound (M,)."""
    return components.audio.encode(torch.from_numpy(waveform)[None].to(device))[0]


def _waveform(media: Clip | Path, sample_rate: int) -> np.ndarray:
    """The sound of a clip or a file (M,). Raises ``ValueError`` where there is none."""
    if not isinstance(media, Clip):
        return load_audio(media, sample_rate)
    if not len(media.waveform):
        raise ValueError("the clip whose sound is asked for has none")
    return resample(media.waveform, media.sample_rate, sample_rate)


def _dark(waveform: np.ndarray, base: SequenceConfig) -> Clip:
    """A clip of darkness with this sound."""
    count = max(1, round(len(waveform) / base.sample_rate * base.fps))
    return Clip(np.zeros((count, base.height, base.width, 3), np.uint8), waveform, base.fps, base.sample_rate)


def _seconds(media: Clip | Path) -> float:
    return media.seconds if isinstance(media, Clip) else probe(media).seconds


def default(value: T | None, otherwise: T) -> T:
    """What a request says, or what counts where it says nothing."""
    return otherwise if value is None else value
