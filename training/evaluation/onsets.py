"""Onsets of a soundtrack: the times at which sounds begin."""

from __future__ import annotations

import numpy as np

from .mel import mel_spectrogram, pick_peaks

HOP_SECONDS = 0.005
WINDOW_SECONDS = 0.02
LAG = 2
BANDS = 40
LOWEST, HIGHEST = 50.0, 16_000.0
SILENCE_DB = -50.0
RANGE_DB = 45.0
RISE_DB = 5.0
NEIGHBOURHOOD_SECONDS = 0.05
MIN_DISTANCE_SECONDS = 0.08


def audio_onsets(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Times (s) at which sounds begin in ``waveform`` (M,), in order; empty for silence.

    Peaks of :func:`onset_strength` that stand ``RISE_DB`` above their neighbourhood, by an absolute threshold: nothing
    is scaled to the loudest, so faint noise alone has no onsets. The time is the top of the parabola through a peak,
    which is finer than the hop.
    """
    strength = onset_strength(waveform, sample_rate)
    if not strength.any():
        return np.empty(0)
    around = round(NEIGHBOURHOOD_SECONDS / HOP_SECONDS)
    peaks = pick_peaks(
        strength, top=around // 2, mean=2 * around, rise=RISE_DB, min_distance=round(MIN_DISTANCE_SECONDS / HOP_SECONDS)
    )
    return (peaks + _summit(strength, peaks)) * HOP_SECONDS


def onset_strength(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """How much louder the sound gets within 10 ms, in dB, one value each 5 ms: the mean rise of all mel bands, which a
    knock of any loudness gives, and half the rise of the whole, which a tone gives.

    Levels below ``SILENCE_DB`` of full scale, and below ``RANGE_DB`` under the loudest, count as silence: what a codec
    murmurs between two sounds is not heard as a third.
    """
    sound = np.asarray(waveform, dtype=np.float32)
    hop, window = round(HOP_SECONDS * sample_rate), round(WINDOW_SECONDS * sample_rate)
    if len(sound) < window:
        return np.zeros(1 + len(sound) // hop)
    size = 1 << (window - 1).bit_length()
    energy = mel_spectrogram(
        sound,
        sample_rate,
        size=size,
        window=window,
        hop=hop,
        bands=BANDS,
        lowest=LOWEST,
        highest=min(HIGHEST, sample_rate / 2),
    )
    return np.concatenate([np.zeros(LAG), _rise(energy, window).mean(axis=0) + _rise(energy.sum(axis=0), window) / 2])


def _rise(energy: np.ndarray, window: int) -> np.ndarray:
    """Increase (dB, at least 0) of ``energy`` (..., n) of Hann windows over ``LAG`` hops, (..., n - LAG)."""
    level = 10 * np.log10(np.maximum(energy / (window / 4) ** 2, 1e-12))
    level = np.maximum(level, max(SILENCE_DB, level.max() - RANGE_DB))
    return np.maximum(level[..., LAG:] - level[..., :-LAG], 0)


def _summit(curve: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """Offset (-0.5 to 0.5) of the top of the parabola through each peak and its neighbours."""
    padded = np.pad(curve, 1, mode="edge")
    before, at, after = padded[peaks], padded[peaks + 1], padded[peaks + 2]
    bend = before - 2 * at + after
    return np.where(bend < 0, np.clip(0.5 * (before - after) / np.minimum(bend, -1e-9), -0.5, 0.5), 0.0)
