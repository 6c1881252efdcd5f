"""How much moves when, in footage of any kind: the picture's side of AV-Align without a flow network."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .tracking import check_frames

PROMINENCE = 0.15
STILL = 0.2


def motion_energy(frames: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Times (s) and motion energy of ``frames`` uint8 (F, H, W, 3): mean absolute difference of neighbouring frames
    in grey levels (0 to 255), F - 1 values, each halfway between its frames.
    """
    check_frames(frames)
    energy = [np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames)]
    return (np.arange(len(energy)) + 0.5) / fps, np.array(energy, dtype=float)


def motion_peaks(frames: np.ndarray, fps: float) -> np.ndarray:
    """Times (s) of the peaks of motion energy that stand out by ``PROMINENCE`` of its maximum; empty when nothing
    moves.
    """
    from scipy.signal import find_peaks

    times, energy = motion_energy(frames, fps)
    if energy.max(initial=0.0) < STILL:
        return np.empty(0)
    peaks, _ = find_peaks(energy, prominence=PROMINENCE * energy.max())
    return times[peaks]
