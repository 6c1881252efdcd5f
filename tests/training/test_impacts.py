"""Rendered impacts: physics, picture, sound, captions and the folder they are written to."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from syncflow.engine.media import load_clip
from syncflow.training.data.impacts import (
    COLORS,
    PALETTE,
    Look,
    Scene,
    caption,
    looks,
    render_clip,
    render_impacts,
    sample_caption,
    sample_clip,
    sample_scene,
)
from syncflow.training.data.impacts.captions import TEMPLATES
from syncflow.training.data.impacts.scene import GRAVITY, MATERIALS, REST_SPEED, SIZES, WORLD

seeds = st.integers(0, 2**32)


def scene_of(seed: int) -> Scene:
    return sample_scene(np.random.default_rng(seed))


def integrate(scene: Scene, step: float = 2e-5) -> list[tuple[float, float]]:
    """Impacts (time, speed) by stepping the equation of motion, no closed form."""
    height, velocity, time = scene.height, scene.velocity, 0.0
    impacts = []
    while time < scene.seconds:
        velocity -= GRAVITY * step
        height += velocity * step
        time += step
        if height <= 0 and velocity < 0:
            impacts.append((time, -velocity))
            velocity = -scene.restitution * velocity
            height = 0.0
            if velocity < REST_SPEED:
                break
    return impacts


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_events_agree_with_a_fine_integration(seed: int) -> None:
    scene = scene_of(seed)
    exact = [(event.time, event.speed) for event in scene.events()]
    assert np.allclose(exact, integrate(scene), rtol=0, atol=(2e-3, 0.1))


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_energy_is_kept_in_flight_and_lost_at_impacts(seed: int) -> None:
    scene = scene_of(seed)
    events = scene.events()
    edges = [0.0, *(event.time for event in events)]
    energies = []
    for start, end in pairwise(edges):
        times = np.linspace(start, end, 400)[1:-1]
        lift = scene.floor_y - scene.radius - scene.positions(times)[:, 1]
        speed = np.gradient(lift, times)
        energy = (GRAVITY * lift + 0.5 * speed**2)[2:-2]
        assert np.ptp(energy) <= 1e-3 * energy.max()
        energies.append(energy.mean())
    assert energies[0] == pytest.approx(0.5 * events[0].speed ** 2, rel=1e-3)
    ratios = np.divide(energies[1:], energies[:-1])
    assert np.allclose(ratios, scene.restitution**2, rtol=1e-3)


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_ball_stays_in_the_picture_and_flights_can_be_seen(seed: int) -> None:
    scene = scene_of(seed)
    x, y = scene.positions(np.linspace(0, scene.seconds, 500)).T
    assert (x >= scene.radius).all() and (x <= WORLD - scene.radius).all()
    assert (y >= scene.radius).all() and (y <= scene.floor_y - scene.radius + 1e-9).all()
    times = [event.time for event in scene.events()]
    assert 1 <= len(times) <= 5
    assert times[0] >= 0.1 and times[-1] < scene.seconds - 1 / scene.fps
    assert min(np.diff(times), default=1.0) >= 0.3


def test_sizes_and_materials_bounce_as_they_are_called() -> None:
    assert SIZES["small"] < SIZES["medium"] < SIZES["large"]
    assert MATERIALS["rubber"] > MATERIALS["metal"] > MATERIALS["wood"]


def test_timing_cannot_be_guessed_from_the_caption() -> None:
    """Events of one clip against those of another with the same look, one-to-one within a frame."""
    times: dict[Look, list[np.ndarray]] = {}
    for seed in range(1500):
        scene = scene_of(seed)
        times.setdefault(scene.look, []).append(np.array([event.time for event in scene.events()]))
    matched = total = 0
    for clips in times.values():
        for a, b in pairwise(clips):
            near = np.abs(a[:, None] - b[None]) <= 1 / 16
            rows, columns = linear_sum_assignment(near, maximize=True)
            matched += 2 * int(near[rows, columns].sum())
            total += len(a) + len(b)
    assert matched / total <= 0.25


def test_splits_share_no_combination_and_every_pair_is_seen() -> None:
    train, unseen = set(looks("train")), set(looks("unseen"))
    assert not train & unseen and len(train | unseen) == 7 * 3 * 4 * 3
    assert 30 <= len(unseen) <= 55
    for a, b in (
        ("color", "size"),
        ("color", "material"),
        ("color", "floor"),
        ("material", "floor"),
        ("size", "material"),
    ):
        pairs = {(getattr(look, a), getattr(look, b)) for look in train | unseen}
        assert pairs == {(getattr(look, a), getattr(look, b)) for look in train}
    drawn = {sample_scene(np.random.default_rng(seed), "unseen").look for seed in range(40)}
    assert drawn <= unseen
    with pytest.raises(ValueError, match="'both'"):
        looks("both")  # type: ignore[arg-type]


def test_captions_name_every_attribute_in_64_bytes() -> None:
    for look in (*looks("train"), *looks("unseen")):
        for template in range(len(TEMPLATES)):
            text = caption(look, template)
            assert len(text.encode()) <= 64
            words = text.replace(",", "").replace("wooden", "wood").split()
            assert {look.color, look.size, look.material, look.floor} <= set(words)
    look = looks("train")[0]
    assert len({sample_caption(np.random.default_rng(seed), look) for seed in range(60)}) == len(TEMPLATES)


@settings(max_examples=6, deadline=None)
@given(seeds, st.sampled_from([48, 64, 128]))
def test_picture_shows_the_ball_where_physics_has_it(seed: int, size: int) -> None:
    scene = dataclasses.replace(scene_of(seed), size=size)
    frames = render_clip(scene)[0].frames.astype(float)
    scale = size / WORLD
    axis = (np.arange(size) + 0.5) / scale
    centres = scene.positions(np.arange(len(frames)) / scene.fps)
    inside = np.hypot(axis[None, None] - centres[:, :1, None], axis[None, :, None] - centres[:, 1:, None])
    ball = frames[inside < 0.8 * scene.radius]
    nearest = min(COLORS, key=lambda name: np.linalg.norm(hue(ball.mean(axis=0)) - hue(np.array(PALETTE[name]))))
    assert nearest == scene.look.color
    beyond = frames[(inside > scene.radius + 1.5 / scale)]
    assert ball.max(axis=-1).mean() > 1.4 * beyond.max(axis=-1).mean()


def hue(color: np.ndarray) -> np.ndarray:
    return color / np.linalg.norm(color)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_every_impact_is_heard_when_it_happens(seed: int) -> None:
    clip, events = render_clip(scene_of(seed))
    assert clip.waveform.dtype == np.float32 and len(clip.waveform) == 96_000
    assert np.abs(clip.waveform).max() < 0.95
    window = 240
    for event in events:
        onset = round(event.time * clip.sample_rate)
        before = clip.waveform[onset - 2 * window : onset]
        after = clip.waveform[onset : onset + 2 * window]
        assert np.abs(before).max(initial=0) < 0.1 * np.abs(after).max()
        assert np.abs(after[:window]).max() > 0.02
    first = round(events[0].time * clip.sample_rate)
    assert not clip.waveform[:first].any()


def test_harder_impacts_are_louder_and_larger_balls_are_deeper() -> None:
    scene = scene_of(3)
    loud, _ = render_clip(dataclasses.replace(scene, height=30.0, velocity=-60.0))
    soft, _ = render_clip(dataclasses.replace(scene, height=10.0, velocity=0.0))
    assert np.abs(loud.waveform).max() > 1.3 * np.abs(soft.waveform).max()

    def pitch(radius: float) -> float:
        look = dataclasses.replace(scene.look, material="glass", floor="stone")
        waveform = render_clip(dataclasses.replace(scene, look=look, radius=radius))[0].waveform
        return float(np.abs(np.fft.rfft(waveform)).argmax())

    assert pitch(12.0) < pitch(9.0) < pitch(6.5)


def test_a_clip_depends_on_seed_and_index_alone() -> None:
    one, text, events = sample_clip(5, 17)
    two, text_again, events_again = sample_clip(5, 17)
    assert (one.frames == two.frames).all() and (one.waveform == two.waveform).all()
    assert (text, events) == (text_again, events_again)
    assert (sample_clip(6, 17)[0].frames != one.frames).any()
    assert (sample_clip(5, 18)[0].frames != one.frames).any()


@pytest.mark.slow
def test_folder_is_complete_resumable_and_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    alone = render_impacts(tmp_path / "alone", 3, seed=4, workers=1, progress=False)
    rows = [json.loads(line) for line in (alone / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [f"clip_{index:06d}.mp4" for index in range(3)]
    for index, row in enumerate(rows):
        clip, text, events = sample_clip(4, index)
        found = load_clip(alone / row["file_name"])
        mse = np.mean((found.frames.astype(float) - clip.frames) ** 2)
        assert 10 * math.log10(255**2 / mse) > 30
        assert row["text"] == text == found.provenance["prompt"]
        assert [event["time"] for event in row["events"]] == pytest.approx([e.time for e in events], abs=1e-6)
        assert set(row["object"]) >= {"color", "size", "material", "floor"}

    kept = (alone / "clip_000000.mp4").stat().st_mtime_ns
    (alone / "clip_000001.mp4").unlink()
    render_impacts(alone, 4, seed=4, workers=1, progress=False)
    assert (alone / "clip_000000.mp4").stat().st_mtime_ns == kept
    together = render_impacts(tmp_path / "together", 4, seed=4, workers=2, progress=False)
    names = sorted(path.name for path in alone.iterdir())
    assert names == sorted(path.name for path in together.iterdir()) and len(names) == 6
    for name in names:
        assert (alone / name).read_bytes() == (together / name).read_bytes()
    with pytest.raises(ValueError, match=r"seed 4 not 5"):
        render_impacts(alone, 4, seed=5, workers=1, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clips": 0}, "clips is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "test"}, "split is 'test'"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": 1e9}, "seconds is 1000000000"),
        ({"fps": 1}, "fps is 1"),
        ({"size": 63}, "size is 63"),
        ({"sample_rate": 1}, "sample rate is 1"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_bad_settings_leave_nothing_behind(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        render_impacts(tmp_path / "out", **{"clips": 1, "progress": False} | arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_unwritable_output_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write clips to"):
        render_impacts(tmp_path / "file" / "out", 1, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "fps", "size"), [(1.0, 8, 32), (4.0, 24, 128)])
def test_other_formats(seconds: float, fps: int, size: int) -> None:
    for index in range(3):
        clip, _, events = sample_clip(0, index, seconds=seconds, fps=fps, size=size, sample_rate=24_000)
        assert clip.frames.shape == (seconds * fps, size, size, 3) and len(clip.waveform) == seconds * 24_000
        assert events
