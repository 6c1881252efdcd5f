"""What a clip and the settings of reading one may be."""

from __future__ import annotations

import numpy as np

from ..types import Clip
from .limits import MAX_FPS, MIN_FPS

# Full scale and zero of integer PCM, as soundfile and torchaudio have them.
PCM = {"uint8": (2**7, 2**7), "int16": (2**15, 0), "int32": (2**31, 0)}


def check_clip(clip: Clip) -> None:
    """Raise ``ValueError`` for a clip whose values are none: no uint8 pictures, an odd rate, samples that are NaN."""
    frames = clip.frames
    if len(frames) and (frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size):
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; they must be uint8 (F, H, W, 3) and not empty")
    if not MIN_FPS <= clip.fps <= MAX_FPS:
        raise ValueError(f"fps is {clip.fps}; it must be from {MIN_FPS:g} to {MAX_FPS:g}")
    check_waveform(clip.waveform)
    if len(clip.waveform) and not 1000 <= clip.sample_rate <= 384_000:
        raise ValueError(f"sample rate is {clip.sample_rate}; it must be from 1000 to 384000")


def check_waveform(waveform: np.ndarray) -> None:
    """Raise ``ValueError`` for what is no sound (M,) of finite numbers."""
    if waveform.ndim != 1:
        raise ValueError(f"the waveform is {waveform.shape}; it must be (M,) of finite numbers")
    if waveform.dtype.kind != "f" and waveform.dtype.name not in PCM:
        raise ValueError(f"the waveform is {waveform.dtype}; it must be floating point, or PCM in {', '.join(PCM)}")
    if not np.isfinite(waveform).all():
        raise ValueError(f"the waveform is {waveform.shape} with NaN or infinity; it must be (M,) of finite numbers")


def float_waveform(waveform: np.ndarray) -> np.ndarray:
    """Samples as float32 in [-1, 1]; integer PCM is scaled by its full scale."""
    if waveform.dtype.kind == "f":
        return np.clip(waveform, -1, 1).astype(np.float32)
    full, zero = PCM[waveform.dtype.name]
    return ((waveform.astype(np.float64) - zero) / full).astype(np.float32)


def check_shape(
    fps: float | None, size: int | tuple[int, int] | None, sample_rate: int | None, seconds: float | None
) -> None:
    """Raise ``ValueError`` for a rate, size or length that no clip has."""
    if fps is not None and not MIN_FPS <= fps <= MAX_FPS:
        raise ValueError(f"fps is {fps}; it must be from {MIN_FPS:g} to {MAX_FPS:g}")
    if size is not None and min((size, size) if isinstance(size, int) else size) < 1:
        raise ValueError(f"size is {size}; it must be positive")
    if sample_rate is not None and not 1000 <= sample_rate <= 384_000:
        raise ValueError(f"sample rate is {sample_rate}; it must be from 1000 to 384000")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ValueError(f"seconds is {seconds}; it must be above 0")
