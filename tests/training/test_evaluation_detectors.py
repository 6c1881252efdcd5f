"""Onsets heard, impacts and motion seen, colours: detectors against clips whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.training.data.impacts import KINDS, PALETTE, sample_clip
from syncflow.training.evaluation import (
    audio_onsets,
    match_times,
    motion_energy,
    motion_peaks,
    object_color,
    pool,
    prompt_color,
    video_events,
)
from syncflow.training.evaluation.events import impacts
from syncflow.training.evaluation.tracking import track_object

RATE = 16_000
FPS = 16.0
GRAVITY = 3.75


def clicks(times: list[float], seconds: float = 2.0, rate: int = RATE, decay: float = 0.03) -> np.ndarray:
    """Damped tones that begin at ``times``."""
    t = np.arange(int(seconds * rate)) / rate
    tones = (
        np.where(t >= at, np.exp(-np.maximum(t - at, 0) / decay), 0) * np.sin(2 * np.pi * 900 * (t - at))
        for at in times
    )
    return (0.4 * sum(tones, np.zeros_like(t))).astype(np.float32)


def bounce(times: np.ndarray, height: float, restitution: float, rest: float = 0.6) -> tuple[np.ndarray, list[float]]:
    """Height above the floor (in picture heights) of something dropped from ``height``, and when it strikes."""
    start, speed = 0.0, 0.0
    above, strikes = height, []
    path = np.zeros_like(times)
    while start < times[-1]:
        landing = start + (speed + np.sqrt(speed**2 + 2 * GRAVITY * above)) / GRAVITY
        now = (times >= start) & (times < landing)
        path[now] = above + speed * (times[now] - start) - GRAVITY / 2 * (times[now] - start) ** 2
        strikes.append(float(landing))
        speed = restitution * (GRAVITY * (landing - start) - speed)
        start, above = landing, 0.0
        if speed < rest:
            break
    return path, [strike for strike in strikes if strike < times[-1]]


def disc(
    path: np.ndarray, size: int = 64, color: tuple[int, int, int] = (225, 40, 40), radius: float = 0.13
) -> np.ndarray:
    """Frames of a disc whose underside is ``path`` above a floor at 0.85 of the picture."""
    axis = (np.arange(size) + 0.5) / size
    middle = (0.85 - radius - path)[:, None, None]
    distance = np.hypot(axis[None, None, :] - 0.4, axis[None, :, None] - middle)
    inside = np.clip((radius - distance) * size + 0.5, 0, 1)[..., None]
    ground = np.where(axis[:, None, None] > 0.8, (84, 84, 82), (34, 35, 38)) * np.ones((size, size, 1))
    return np.rint(ground * (1 - inside) + np.array(color) * inside).astype(np.uint8)


@pytest.fixture(scope="module", params=KINDS)
def rendered(request: pytest.FixtureRequest) -> list[tuple[np.ndarray, np.ndarray, str, list[float]]]:
    clips = (sample_clip(5, index, "unseen", kinds=[request.param]) for index in range(24))
    return [(clip.frames, clip.waveform, text, [event.time for event in events]) for clip, text, events in clips]


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_onsets_are_found_where_sounds_begin(rate: int) -> None:
    times = [0.2, 0.55, 1.3]
    assert audio_onsets(clicks(times, rate=rate), rate) == pytest.approx(times, abs=0.01)


@pytest.mark.parametrize("level", [0.0, 1e-4, 1e-2, 0.3])
def test_neither_silence_nor_steady_noise_has_onsets(level: float) -> None:
    noise = level * np.random.default_rng(0).standard_normal(2 * RATE)
    assert len(audio_onsets(noise.astype(np.float32), RATE)) == 0


@pytest.mark.parametrize("samples", [0, 1, 100, 700])
def test_a_sound_too_short_to_hear_has_no_onsets(samples: int) -> None:
    assert len(audio_onsets(np.full(samples, 0.1, dtype=np.float32), RATE)) == 0


def test_a_soft_sound_is_heard_over_the_tail_of_a_loud_one_and_in_noise() -> None:
    sound = clicks([0.3], decay=0.15) + 0.25 * clicks([0.7])
    noise = 0.003 * np.random.default_rng(1).standard_normal(len(sound)).astype(np.float32)
    assert audio_onsets(sound + noise, RATE) == pytest.approx([0.3, 0.7], abs=0.01)


@pytest.mark.slow
def test_onsets_of_rendered_clips(rendered) -> None:
    matches = pool(match_times(times, audio_onsets(sound, 48_000), 1 / FPS) for _, sound, _, times in rendered)
    errors = [
        abs(heard[j] - times[i])
        for _, sound, _, times in rendered
        for heard in [audio_onsets(sound, 48_000)]
        for i, j in match_times(times, heard, 1 / FPS).pairs
    ]
    assert matches.f1 >= 0.97
    assert np.mean(errors) < 0.015


@pytest.mark.slow
def test_impacts_of_rendered_clips(rendered) -> None:
    matches = pool(match_times(times, video_events(frames, FPS), 1 / FPS) for frames, _, _, times in rendered)
    assert matches.f1 >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("size", [48, 64, 128])
@pytest.mark.parametrize("fps", [12.0, 16.0, 30.0])
def test_impacts_at_other_sizes_and_rates(size: int, fps: float) -> None:
    path, strikes = bounce(np.arange(int(2 * fps)) / fps, height=0.5, restitution=0.7)
    assert len(strikes) >= 3
    assert video_events(disc(path, size), fps) == pytest.approx(strikes, abs=0.5 / fps)


@settings(max_examples=40)
@given(st.floats(0.15, 0.6), st.floats(0.3, 0.85), st.floats(-0.3, 0.3), st.integers(0, 2**31))
def test_impacts_along_a_noisy_path(height: float, restitution: float, floor: float, seed: int) -> None:
    times = np.arange(32) / FPS
    path, strikes = bounce(times, height, restitution)
    shaky = floor - path + np.random.default_rng(seed).normal(0, 0.3 / 64, len(times))
    found = impacts(shaky, FPS)
    early = [strike for strike in strikes if strike < times[-2]]
    assert match_times(early, found, 1 / FPS).recall == 1
    assert match_times(strikes, found, 1 / FPS).precision == 1


def test_impacts_survive_frames_in_which_the_object_is_missing_or_has_a_double() -> None:
    path, strikes = bounce(np.arange(32) / FPS, height=0.5, restitution=0.7)
    frames = disc(path)
    frames[[4, 13]] = disc(np.full(2, 9.0))
    frames[20, 5:13, 52:62] = (240, 240, 240)
    assert video_events(frames, FPS) == pytest.approx(strikes, abs=0.5 / FPS)


@pytest.mark.parametrize("name", ["still", "empty", "rising", "one frame", "noise"])
def test_nothing_strikes(name: str) -> None:
    frames = {
        "still": disc(np.zeros(32)),
        "empty": np.full((32, 64, 64, 3), 40, dtype=np.uint8),
        "rising": disc(np.linspace(0, 0.6, 32)),
        "one frame": disc(np.zeros(1)),
        "noise": np.random.default_rng(0).integers(0, 255, (32, 64, 64, 3)).astype(np.uint8),
    }[name]
    assert len(video_events(frames, FPS)) == 0


def test_the_object_is_followed_to_a_fraction_of_a_pixel() -> None:
    path, _ = bounce(np.arange(32) / FPS, height=0.5, restitution=0.7)
    track = track_object(disc(path))
    assert track.y == pytest.approx((0.85 - 0.13 - path) * 64 - 0.5, abs=0.3)
    assert track.x == pytest.approx(0.4 * 64 - 0.5, abs=0.3)


@pytest.mark.parametrize(
    "frames", [np.zeros((4, 8, 8)), np.zeros((4, 8, 8, 3)), np.zeros((0, 8, 8, 3), dtype=np.uint8)]
)
def test_frames_of_another_kind_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        video_events(frames, FPS)


@pytest.mark.parametrize("name", list(PALETTE))
@pytest.mark.parametrize("light", [0.6, 1.0])
def test_every_colour_of_the_palette_in_light_and_shade(name: str, light: float) -> None:
    color = tuple(int(light * channel) for channel in PALETTE[name])
    assert object_color(disc(np.linspace(0, 0.4, 8), color=color)) == name


def test_colours_of_rendered_clips(rendered) -> None:
    assert np.mean([object_color(frames) == prompt_color(text) for frames, _, text, _ in rendered]) >= 0.95


def test_no_object_has_no_colour() -> None:
    assert object_color(np.full((8, 64, 64, 3), 40, dtype=np.uint8)) is None


@pytest.mark.parametrize(
    ("prompt", "color"),
    [
        ("a small RED ball", "red"),
        ("a white ball, then a blue one", "white"),
        ("a bored and greenish ball", None),
        ("", None),
    ],
)
def test_colour_of_a_prompt(prompt: str, color: str | None) -> None:
    assert prompt_color(prompt) == color


def test_motion_energy_is_the_mean_difference_between_frames() -> None:
    frames = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    frames[2:] = 10
    frames[3, :4] = 0
    times, energy = motion_energy(frames, 10.0)
    assert times == pytest.approx([0.05, 0.15, 0.25])
    assert energy == pytest.approx([0, 10, 5])


def test_motion_peaks() -> None:
    frames = np.zeros((20, 8, 8, 3), dtype=np.uint8)
    frames[6:] += 40
    frames[13:] += 60
    assert motion_peaks(frames, 10.0) == pytest.approx([0.55, 1.25])
    assert len(motion_peaks(frames[:1], 10.0)) == len(motion_peaks(frames[:5], 10.0)) == 0
