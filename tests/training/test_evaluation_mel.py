"""Mel spectrograms and picked peaks against librosa's."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.training.evaluation.mel import hz_to_mel, mel_filters, mel_spectrogram, mel_to_hz, pick_peaks

pytestmark = pytest.mark.slow


def test_mels() -> None:
    hertz = np.array([0.0, 50.0, 999.0, 1000.0, 1001.0, 16_000.0, 24_000.0])
    np.testing.assert_allclose(hz_to_mel(hertz), librosa.hz_to_mel(hertz), rtol=1e-12)
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hertz)), hertz, rtol=1e-12)


@pytest.mark.parametrize(("rate", "size", "bands", "lowest"), [(48_000, 1024, 40, 50.0), (22_050, 512, 20, 0.0)])
def test_filters(rate: int, size: int, bands: int, lowest: float) -> None:
    known = librosa.filters.mel(sr=rate, n_fft=size, n_mels=bands, fmin=lowest, fmax=rate / 3, norm=None)
    np.testing.assert_allclose(mel_filters(rate, size, bands, lowest, rate / 3), known, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("window", [None, 441, 510])
@pytest.mark.parametrize("samples", [300, 2205, 2300])
def test_spectrogram(window: int | None, samples: int) -> None:
    sound = np.random.default_rng(samples).normal(size=samples).astype(np.float32)
    made = mel_spectrogram(sound, 22_050, size=512, hop=110, bands=20, window=window, lowest=50.0, highest=8000.0)
    known = librosa.feature.melspectrogram(
        y=sound, sr=22_050, n_fft=512, win_length=window, hop_length=110, n_mels=20, fmin=50.0, fmax=8000.0, norm=None
    )
    assert made.shape == known.shape
    np.testing.assert_allclose(made, known, rtol=1e-4, atol=1e-4 * known.max())


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=60),
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(0, 6),
    st.integers(0, 8),
)
def test_peaks(levels: list[int], top: int, mean: int, rise: int, apart: int) -> None:
    curve = np.array(levels, dtype=float)
    known = librosa.util.peak_pick(
        curve, pre_max=top, post_max=top, pre_avg=mean, post_avg=mean, delta=rise + 0.013, wait=apart
    )
    assert pick_peaks(curve, top=top, mean=mean, rise=rise + 0.013, min_distance=apart).tolist() == known.tolist()
