"""How much later the sound is than the motion that it belongs to, by cross-correlation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .motion import motion_energy
from .onsets import HOP_SECONDS, onset_strength

if TYPE_CHECKING:
    from ...engine.types import Clip

LONGEST_S = 0.5
SMOOTHING_S = 0.03  # standard deviation of the bell that an onset becomes, about half a frame


def sound_lag(clip: Clip, longest: float = LONGEST_S) -> float | None:
    """The lag (s) by which the onset strength follows the motion energy best, at most ``longest`` either way; None
    where nothing moves or sounds, or it does so evenly throughout.

    Positive: the sound is late. Motion leads an impact that ends it, so compare with recorded or rendered clips.
    """
    from scipy.ndimage import gaussian_filter1d
    from scipy.signal import correlate, correlation_lags

    times, energy = motion_energy(clip.frames, clip.fps)
    strength = onset_strength(clip.waveform, clip.sample_rate)
    if not energy.any() or not strength.any():
        return None
    grid = np.arange(0, clip.seconds, HOP_SECONDS)
    motion = np.interp(grid, times, energy)
    sound = gaussian_filter1d(
        np.interp(grid, np.arange(len(strength)) * HOP_SECONDS, strength), SMOOTHING_S / HOP_SECONDS
    )
    if not np.ptp(motion) or not np.ptp(sound):
        return None
    correlation = correlate(sound - sound.mean(), motion - motion.mean())
    lags = correlation_lags(len(sound), len(motion)) * HOP_SECONDS
    near = np.abs(lags) <= longest
    return float(lags[near][np.argmax(correlation[near])])
