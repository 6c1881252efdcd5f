"""Mel spectrograms and peak picking in numpy, with the numbers of librosa, which brings a compiler to install.

The mel scale is Slaney's, linear to 1 kHz and logarithmic above (Slaney, "Auditory Toolbox", 1998); a band is a
triangle of height 1. Peaks are picked as in Böck, Krebs and Schedl, "Evaluating the Online Capabilities of Onset
Detection Methods", ISMIR 2012.
"""

from __future__ import annotations

import numpy as np

LINEAR_HZ, LOG_FROM_HZ, LOG_STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def hz_to_mel(frequency: np.ndarray | float) -> np.ndarray:
    """Mels of frequencies (Hz)."""
    hertz = np.asarray(frequency, dtype=float)
    above = LOG_FROM_HZ / LINEAR_HZ + np.log(np.maximum(hertz, LOG_FROM_HZ) / LOG_FROM_HZ) / LOG_STEP
    return np.where(hertz < LOG_FROM_HZ, hertz / LINEAR_HZ, above)


def mel_to_hz(mels: np.ndarray) -> np.ndarray:
    """Frequencies (Hz) of mels."""
    bend = LOG_FROM_HZ / LINEAR_HZ
    return np.where(mels < bend, LINEAR_HZ * mels, LOG_FROM_HZ * np.exp(LOG_STEP * np.maximum(mels - bend, 0)))


def mel_filters(sample_rate: int, size: int, bands: int, lowest: float, highest: float) -> np.ndarray:
    """Weights (bands, size / 2 + 1) of the bins of an FFT of ``size`` samples; ``lowest`` and ``highest`` in Hz."""
    edges = mel_to_hz(np.linspace(hz_to_mel(lowest), hz_to_mel(highest), bands + 2))[:, None]
    bins = np.fft.rfftfreq(size, 1 / sample_rate)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0).astype(np.float32)


def mel_spectrogram(
    waveform: np.ndarray,
    sample_rate: int,
    *,
    size: int,
    hop: int,
    bands: int,
    window: int | None = None,
    lowest: float = 0.0,
    highest: float | None = None,
) -> np.ndarray:
    """Energy (bands, 1 + M // hop) of ``waveform`` float32 (M,) in mel bands, silence before and after it.

    Hann windows of ``window`` samples (``size`` by default) around every ``hop``-th sample, FFTs of ``size`` samples;
    bands from ``lowest`` to ``highest`` Hz (half the sample rate by default).
    """
    length = size if window is None else window
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    before = (size - length) // 2
    hann = np.pad(hann, (before, size - length - before)).astype(np.float32)
    padded = np.pad(np.asarray(waveform, dtype=np.float32), size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    energy = np.abs(np.fft.rfft(frames * hann)) ** 2
    return mel_filters(sample_rate, size, bands, lowest, highest or sample_rate / 2) @ energy.T


def pick_peaks(curve: np.ndarray, *, top: int, mean: int, rise: float, min_distance: int) -> np.ndarray:
    """Indices of peaks of ``curve`` (N,), in order, each more than ``min_distance`` after the one before.

    A peak is the largest value from ``top`` before it to ``top`` - 1 after it, and at least ``rise`` above the mean of
    the values from ``mean`` before it to ``mean`` - 1 after it.
    """
    peaks: list[int] = []
    for i, value in enumerate(curve):
        if peaks and i <= peaks[-1] + min_distance:
            continue
        if (
            value == curve[max(0, i - top) : i + top].max()
            and value >= curve[max(0, i - mean) : i + mean].mean() + rise
        ):
            peaks.append(i)
    return np.array(peaks, dtype=int)
