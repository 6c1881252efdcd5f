"""What there is to see and to hear in one clip, as numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .events import video_events
from .matching import match_times
from .motion import motion_energy, motion_peaks
from .onsets import audio_onsets
from .tracking import check_frames

if TYPE_CHECKING:
    from ...engine.types import Clip

ANALYSIS_PIXELS = 128
SILENCE_DB = -120.0


@dataclass(frozen=True)
class Inspection:
    """Measurements of one clip; times in seconds, levels in dB of full scale (-120 = silence), motion in grey levels.

    ``events`` are the impacts in the video, or the peaks of motion where ``event_kind`` says that no impact was found.
    ``pairs`` are (event, onset) times that match one to one within ``tolerance``; ``mean_offset`` is the mean of
    onset - event.
    """

    seconds: float
    frames: int
    width: int
    height: int
    fps: float
    sample_rate: int
    sound_seconds: float
    peak_db: float
    loudness_db: float
    motion_times: tuple[float, ...]
    motion: tuple[float, ...]
    event_kind: Literal["impact", "motion peak"]
    events: tuple[float, ...]
    onsets: tuple[float, ...]
    tolerance: float
    pairs: tuple[tuple[float, float], ...]
    f1: float
    mean_offset: float | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)

    def __str__(self) -> str:
        def moments(times: tuple[float, ...]) -> str:
            return ", ".join(f"{time:.3f}" for time in times) + " s" if times else "nothing"

        offset = "" if self.mean_offset is None else f", onsets {1000 * self.mean_offset:+.0f} ms after events"
        return "\n".join(
            [
                f"video   {self.seconds:.2f} s, {self.frames} frames of {self.width}x{self.height} at {self.fps:g} fps",
                f"sound   {self.sound_seconds:.2f} s at {self.sample_rate} Hz, peak {self.peak_db:.1f} dB, "
                f"loudness {self.loudness_db:.1f} dB",
                f"events  {moments(self.events)} ({self.event_kind}s of the video)",
                f"onsets  {moments(self.onsets)} (of the sound)",
                f"matched {len(self.pairs)} within {1000 * self.tolerance:.0f} ms, F1 {self.f1:.2f}{offset}",
            ]
        )


def inspect_clip(clip: Clip, *, tolerance_frames: float = 1.0) -> Inspection:
    """Measure a clip of any size and length, with or without sound.

    Raises ``ValueError`` for frames of another kind than uint8 (F, H, W, 3).
    """
    check_frames(clip.frames)
    small = _shrunk(clip.frames)
    times, energy = motion_energy(small, clip.fps)
    events = video_events(small, clip.fps)
    kind: Literal["impact", "motion peak"] = "impact"
    if not len(events):
        kind, events = "motion peak", motion_peaks(small, clip.fps)
    onsets = audio_onsets(clip.waveform, clip.sample_rate)
    tolerance = tolerance_frames / clip.fps
    event_times, onset_times = _floats(events), _floats(onsets)
    matches = match_times(event_times, onset_times, tolerance)
    pairs = tuple((event_times[i], onset_times[j]) for i, j in matches.pairs)
    sound = clip.waveform.astype(float)
    _, height, width, _ = clip.frames.shape
    return Inspection(
        seconds=clip.seconds,
        frames=len(clip.frames),
        width=width,
        height=height,
        fps=float(clip.fps),
        sample_rate=clip.sample_rate,
        sound_seconds=len(sound) / clip.sample_rate,
        peak_db=_decibels(np.abs(sound).max(initial=0.0)),
        loudness_db=_decibels(np.sqrt(np.mean(sound**2)) if len(sound) else 0.0),
        motion_times=_floats(times),
        motion=_floats(energy),
        event_kind=kind,
        events=event_times,
        onsets=onset_times,
        tolerance=tolerance,
        pairs=pairs,
        f1=matches.f1,
        mean_offset=float(np.mean([onset - event for event, onset in pairs])) if pairs else None,
    )


def _shrunk(frames: np.ndarray) -> np.ndarray:
    """Averages of square blocks, so that the longer side has at most about ``ANALYSIS_PIXELS``."""
    step = -(-max(frames.shape[1:3]) // ANALYSIS_PIXELS)
    if step == 1 or min(frames.shape[1:3]) < step:
        return frames
    height, width = (side // step * step for side in frames.shape[1:3])
    blocks = (len(frames), height // step, step, width // step, step, 3)
    small = np.empty((len(frames), height // step, width // step, 3), dtype=np.uint8)
    for target, picture in zip(small, frames[:, :height, :width].reshape(blocks), strict=True):
        target[...] = np.rint(picture.mean(axis=(1, 3)))
    return small


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)


def _decibels(amplitude: float) -> float:
    return max(SILENCE_DB, float(20 * np.log10(max(amplitude, 1e-9))))
