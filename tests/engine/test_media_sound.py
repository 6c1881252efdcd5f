"""Sound of any layout, mixed to mono, every sample at its time."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from syncflow.engine.media import load_audio

RATE = 48_000


def write_sound(path: Path, layout: str, blocks: list[tuple[float, np.ndarray]], rate: int = RATE) -> Path:
    """Blocks of samples (M, channels) at their times in seconds, as float PCM in Matroska or MOV."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout=layout)
        for at, samples in blocks:
            packed = np.ascontiguousarray(samples.reshape(1, -1), np.float32)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, round(at * rate), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def gains(path: Path, layout: str, channels: int) -> list[float]:
    """How loud each channel alone is in the mono sound."""
    found = []
    for channel in range(channels):
        samples = np.zeros((4800, channels))
        samples[:, channel] = 0.25
        found.append(float(load_audio(write_sound(path, layout, [(0, samples)]), RATE).max()) * 4)
    return found


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("stereo", [0.5, 0.5]),
        ("5.1", [0.7071, 0.7071, 1, 0, 0.5, 0.5]),
        ("7.1", [0.7071, 0.7071, 1, 0, 0.5, 0.5, 0.5, 0.5]),
        ("quad", [0.7071, 0.7071, 0.5, 0.5]),
    ],
)
def test_layouts_are_mixed_by_bs_775(layout: str, expected: list[float], tmp_path: Path) -> None:
    assert gains(tmp_path / "sound.mov", layout, len(expected)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 8, 16, 24, 64])
def test_many_channels_without_a_layout_are_mixed(channels: int, tmp_path: Path) -> None:
    """More than eight planes of a frame lie where PyAV does not look."""
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((channels, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.full((RATE, channels), 1000, np.int16).tobytes())
    heard = load_audio(tmp_path / "sound.wav", RATE)
    assert len(heard) == RATE and 1000 / 32768 * 0.99 <= heard[RATE // 2] <= 1000 / 32768 * 4.5


def test_more_channels_than_ffmpeg_mixes_are_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((70, 2, RATE, 0, "NONE", ""))
        file.writeframes(bytes(14_000))
    with pytest.raises(ValueError, match=r"sound\.wav has 70 channels; at most 64"):
        load_audio(tmp_path / "sound.wav")


def test_compressed_surround_is_read(tmp_path: Path) -> None:
    """AAC decodes to planes, eight of them for 7.1."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    samples = np.zeros((RATE, 8), np.float32)
    samples[:, 2] = tone
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="7.1")
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="7.1")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    heard = load_audio(tmp_path / "sound.mp4", RATE)[:RATE]
    assert np.sqrt(np.mean((heard - tone) ** 2)) < 0.03


def test_a_surround_sound_above_full_scale_is_scaled_to_it(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)[:, None] * np.ones(6)
    heard = load_audio(write_sound(tmp_path / "loud.mov", "5.1", [(0, tone)]), RATE)
    assert np.abs(heard - tone[:, 0]).max() < 1e-3


def test_gaps_are_silent(tmp_path: Path) -> None:
    block = np.full((4800, 1), 0.5)
    path = write_sound(tmp_path / "gap.mkv", "mono", [(0, block), (0.3, block), (0.5, block)])
    heard = load_audio(path, RATE)
    expected = np.zeros(28_800)
    for at in (0, 0.3, 0.5):
        expected[round(at * RATE) : round(at * RATE) + 4800] = 0.5
    assert len(heard) == len(expected)
    assert np.mean(np.abs(heard - expected) > 0.01) < 0.01


def test_a_rate_that_changes_within_a_file_is_followed(tmp_path: Path) -> None:
    """Two ADTS files one after the other, as a recorder that was restarted writes them."""
    parts = []
    for rate in (48_000, 24_000):
        with av.open(str(tmp_path / "part.aac"), "w", format="adts") as container:
            stream = container.add_stream("aac", rate=rate, layout="mono")
            tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        parts.append((tmp_path / "part.aac").read_bytes())
    (tmp_path / "both.aac").write_bytes(b"".join(parts))
    heard = load_audio(tmp_path / "both.aac", RATE)
    assert abs(len(heard) - 2 * RATE) < 8000
    for start in (RATE // 4, RATE * 5 // 4):
        spectrum = np.abs(np.fft.rfft(heard[start : start + RATE // 2] * np.hanning(RATE // 2)))
        assert abs(spectrum.argmax() * 2 - 440) <= 4
