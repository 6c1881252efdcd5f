"""A clip in another rate, size or length, by the rules that files are read by."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ..types import Clip
from .checking import check_clip, check_shape, check_waveform, float_waveform
from .limits import check_memory
from .pictures import fit
from .timing import exact


def conform(
    clip: Clip,
    *,
    fps: float | None = None,
    size: int | tuple[int, int] | None = None,
    sample_rate: int | None = None,
    seconds: float | None = None,
) -> Clip:
    """The clip as :func:`load_clip` would have read it from a file: each frame shown until the next, cut around the
    centre and resized; what lies beyond the end is the last frame and silence. ``None`` keeps what the clip has.
    Latents stay those of the same frames. Raises ``ValueError`` for a clip or a setting that no file could have.
    """
    check_shape(fps, size, sample_rate, seconds)
    check_clip(clip)
    if not len(clip.frames):
        raise ValueError("the clip has no frames; it is a sound alone")
    rate, samples_a_second = fps or clip.fps, sample_rate or clip.sample_rate
    count = max(1, round((clip.seconds if seconds is None else seconds) * rate))
    check_memory("the clip would have too many frames", count, clip.frames[0].size)
    shown = _shown(count, exact(clip.fps) / exact(rate)).clip(0, len(clip.frames) - 1)
    frames = clip.frames[shown]
    if size is not None:
        frames = np.stack([fit(frame, (size, size) if isinstance(size, int) else size) for frame in frames])
    waveform = np.zeros(round(count / rate * samples_a_second), np.float32)
    resampled = resample(clip.waveform, clip.sample_rate, samples_a_second)[: len(waveform)]
    waveform[: len(resampled)] = resampled
    same = frames.shape == clip.frames.shape and bool((shown == np.arange(len(clip.frames))).all())
    return Clip(frames, waveform, rate, samples_a_second, clip.provenance, clip.latents if same else None)


def _shown(count: int, ratio: Fraction) -> np.ndarray:
    """Which frame stands at k times ``ratio`` frames."""
    return np.arange(count, dtype=np.int64) * ratio.numerator // ratio.denominator


def resample(waveform: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """A sound (M,), floating point or integer PCM, at ``rate`` samples a second as float32 at ``new_rate``."""
    check_waveform(waveform)
    waveform = float_waveform(waveform)
    if rate == new_rate or not len(waveform):
        return waveform
    import av

    frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", rate=new_rate)
    parts = [part.to_ndarray()[0] for source in (frame, None) for part in resampler.resample(source)]
    return np.clip(np.concatenate(parts), -1, 1)
