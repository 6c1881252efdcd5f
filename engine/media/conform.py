"""A clip in another rate, size or length, by the rules that files are read by."""

from __future__ import annotations

import numpy as np

from ..types import Clip


def conform(
    clip: Clip,
    *,
    fps: float | None = None,
    size: int | tuple[int, int] | None = None,
    sample_rate: int | None = None,
    seconds: float | None = None,
) -> Clip:
    """The clip as :func:`load_clip` would have read it from a file: frames nearest in time, cut around the centre and
    resized; what lies beyond the end is the last frame and silence. ``None`` keeps what the clip has. Latents stay
    those of the same frames.
    """
    check_shape(fps, size, sample_rate, seconds)
    if not len(clip.frames):
        raise ValueError("the clip has no frames; it is a sound alone")
    rate, samples_a_second = fps or clip.fps, sample_rate or clip.sample_rate
    count = max(1, round((clip.seconds if seconds is None else seconds) * rate))
    nearest = np.rint(np.arange(count) / rate * clip.fps).astype(int).clip(0, len(clip.frames) - 1)
    frames = clip.frames[nearest]
    if size is not None:
        frames = np.stack([fit(frame, (size, size) if isinstance(size, int) else size) for frame in frames])
    waveform = np.zeros(round(count / rate * samples_a_second), np.float32)
    heard = resample(clip.waveform, clip.sample_rate, samples_a_second)[: len(waveform)]
    waveform[: len(heard)] = heard
    same = frames.shape == clip.frames.shape and bool((nearest == np.arange(len(clip.frames))).all())
    return Clip(frames, waveform, rate, samples_a_second, clip.provenance, clip.latents if same else None)


def check_shape(
    fps: float | None, size: int | tuple[int, int] | None, sample_rate: int | None, seconds: float | None
) -> None:
    """Raise ``ValueError`` for a rate, size or length that no clip has."""
    if fps is not None and not 0 < fps <= 1000:
        raise ValueError(f"fps is {fps}; it must be above 0 and at most 1000")
    if size is not None and min((size, size) if isinstance(size, int) else size) < 1:
        raise ValueError(f"size is {size}; it must be positive")
    if sample_rate is not None and not 1000 <= sample_rate <= 384_000:
        raise ValueError(f"sample rate is {sample_rate}; it must be from 1000 to 384000")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ValueError(f"seconds is {seconds}; it must be above 0")


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture uint8 (H, W, 3) cut around its centre to the shape of ``size`` (width, height) and resized to it."""
    import av

    height, width, _ = image.shape
    if (width, height) == size:
        return np.ascontiguousarray(image)
    scale = min(width / size[0], height / size[1])
    cut_width, cut_height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    cut = np.ascontiguousarray(image[top : top + cut_height, left : left + cut_width])
    interpolation = "AREA" if scale > 1 else "LANCZOS"
    resized = av.VideoFrame.from_ndarray(cut, format="rgb24").reformat(*size, interpolation=interpolation)
    return resized.to_ndarray(format="rgb24")


def resample(waveform: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """A sound (M,) at ``rate`` samples a second at ``new_rate``."""
    if rate == new_rate or not len(waveform):
        return waveform
    import av

    frame = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", rate=new_rate)
    parts = [part.to_ndarray()[0] for source in (frame, None) for part in resampler.resample(source)]
    return np.clip(np.concatenate(parts), -1, 1)
