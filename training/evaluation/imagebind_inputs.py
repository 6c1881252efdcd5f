"""What ImageBind's towers read of a clip and a prompt, as its published code makes it.

A sound is three windows of 2 s, each a log mel spectrogram of Kaldi's (Hann windows of 25 ms every 10 ms). A video is
five windows of 2 s, of each of which the first and the last frame are read, and of these three squares side by side,
224 pixels wide. Windows and squares that would be the same are made once: their embeddings are averaged.
"""

from __future__ import annotations

import html
import math
import warnings
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...engine.media import resample

if TYPE_CHECKING:
    from ...engine.types import Clip

WINDOW_SECONDS = 2
SOUND_WINDOWS, VIDEO_WINDOWS = 3, 5
SAMPLE_RATE = 16_000
FRAME_SAMPLES, HOP_SAMPLES, FFT_SAMPLES = 400, 160, 512
MEL_BANDS, SPECTRA = 128, 204
LOG_FLOOR = float(np.finfo(np.float32).eps)
SOUND_MEAN, SOUND_DEVIATION = -4.268, 9.138
SIDE, FRAMES = 224, 2
PIXEL_MEAN, PIXEL_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def cleaned_prompt(prompt: str) -> str:
    """A prompt with wrongly decoded characters and HTML entities as they were meant, before it is tokenized."""
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(prompt)))


def sound_inputs(clip: Clip) -> Tensor:
    """The spectrograms of windows of a clip's sound: (N, 1, bands, spectra).

    Raises ``ValueError`` for a clip without sound, or with less than 25 ms of it.
    """
    waveform = resample(clip.waveform, clip.sample_rate, SAMPLE_RATE).copy()
    if len(waveform) < FRAME_SAMPLES:
        least = f"{FRAME_SAMPLES} ({1000 * FRAME_SAMPLES // SAMPLE_RATE} ms)"
        raise ValueError(f"a sound has {len(waveform)} samples at {SAMPLE_RATE} Hz; ImageBind needs at least {least}")
    found: list[Tensor] = []
    for start in window_starts(len(waveform) / SAMPLE_RATE, SOUND_WINDOWS):
        window = waveform[int(start * SAMPLE_RATE) : int((start + WINDOW_SECONDS) * SAMPLE_RATE)]
        window -= window.mean()  # in the waveform itself, as published: the next window may overlap this one
        bands = torch.from_numpy(log_mel_spectrogram(window))[:, :SPECTRA]
        found.append(torch.nn.functional.pad(bands, (0, SPECTRA - bands.shape[1])))
    return (torch.stack(found)[:, None] - SOUND_MEAN) / SOUND_DEVIATION


def video_inputs(clip: Clip) -> Tensor:
    """Squares of the frames of windows of a clip's video: (N, 3, frames, side, side).

    Raises ``ValueError`` for a clip without frames.
    """
    if not len(clip.frames):
        raise ValueError("a clip has no frames; ImageBind's score of videos needs some")
    mean, deviation = (torch.tensor(values).view(3, 1, 1, 1) for values in (PIXEL_MEAN, PIXEL_DEVIATION))
    found: list[Tensor] = []
    for start in window_starts(len(clip.frames) / clip.fps, VIDEO_WINDOWS):
        first = min(math.ceil(clip.fps * start), len(clip.frames) - 1)
        end = min(math.ceil(clip.fps * (start + WINDOW_SECONDS)), len(clip.frames))
        chosen = torch.from_numpy(clip.frames[[first, max(first, end - 1)]]) / 255
        sized = torch.nn.functional.interpolate(
            chosen.permute(3, 0, 1, 2), short_side(*chosen.shape[1:3]), mode="bilinear", align_corners=False
        )
        found += squares((sized - mean) / deviation)
    return torch.stack(found)


def window_starts(seconds: float, count: int) -> list[Fraction]:
    """Starts (s) of ``count`` windows evenly over ``seconds``, the last at its end; one for what fits into one."""
    if seconds <= WINDOW_SECONDS:
        return [Fraction(0)]
    step = Fraction(seconds - WINDOW_SECONDS) / (count - 1)
    return [step * index for index in range(count)]


def log_mel_spectrogram(window: np.ndarray) -> np.ndarray:
    """Log energies (bands, spectra) of the whole frames of samples (M,) at 16 kHz, as Kaldi's."""
    from transformers.audio_utils import spectrogram, window_function

    return spectrogram(
        window,
        window_function(FRAME_SAMPLES, "hann", periodic=False),
        FRAME_SAMPLES,
        HOP_SAMPLES,
        FFT_SAMPLES,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=_mel_filters(),
        mel_floor=LOG_FLOOR,
        log_mel="log",
        remove_dc_offset=True,
    )


@cache
def _mel_filters() -> Any:
    from transformers.audio_utils import mel_filter_bank

    bins, highest = FFT_SAMPLES // 2 + 1, SAMPLE_RATE / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a band between two bins, which the published code has too
        return mel_filter_bank(
            bins, MEL_BANDS, 20.0, highest, SAMPLE_RATE, mel_scale="kaldi", triangularize_in_mel_space=True
        )


def short_side(height: int, width: int) -> tuple[int, int]:
    """Height and width whose shorter one is 224."""
    if width < height:
        return math.floor(height / width * SIDE), SIDE
    return SIDE, math.floor(width / height * SIDE)


def squares(frames: Tensor) -> list[Tensor]:
    """The first, the middle and the last square of frames (C, F, H, W) along their longer side; one of square ones."""
    height, width = frames.shape[2:]
    spare = max(height, width) - SIDE
    starts = (0, math.ceil(spare / 2), spare) if spare else (0,)
    along = 2 if height > width else 3
    return [frames.narrow(along, start, SIDE) for start in starts]
