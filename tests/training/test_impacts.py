"""Rendered impacts: physics, picture, sound, captions and the folder they are written to."""

from __future__ import annotations

import dataclasses
import json
import math
import re
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
    KINDS,
    PALETTE,
    Format,
    Kind,
    Look,
    caption,
    looks,
    render_clip,
    render_impacts,
    sample_caption,
    sample_clip,
    sample_scene,
)
from syncflow.training.data.impacts.bounce import Bounce
from syncflow.training.data.impacts.collision import Collision
from syncflow.training.data.impacts.hammer import STEEPEST, Hammer
from syncflow.training.data.impacts.looks import MATERIALS, SIZES
from syncflow.training.data.impacts.scene import GRAVITY, LAST_FRAMES, REST_SPEED, WORLD
from syncflow.training.data.impacts.swing import Swing

seeds = st.integers(0, 2**32)
kinds = pytest.mark.parametrize("kind", KINDS)


def scene_of(seed: int) -> Bounce:
    scene = sample_scene(np.random.default_rng(seed))
    assert isinstance(scene, Bounce)
    return scene


def integrate(scene: Bounce, step: float = 2e-5) -> list[tuple[float, float]]:
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


@kinds
def test_captions_name_every_attribute_in_64_bytes(kind: Kind) -> None:
    templates = KINDS[kind].templates
    for look in (*looks("train"), *looks("unseen")):
        for template in range(len(templates)):
            text = caption(look, kind, template)
            assert len(text.encode()) <= 64
            words = text.replace(",", "").replace("wooden", "wood").split()
            assert {look.color, look.size, look.material, look.floor} <= set(words)
    look = looks("train")[0]
    assert len({sample_caption(np.random.default_rng(seed), look, kind) for seed in range(60)}) == len(templates)


def test_every_sentence_belongs_to_one_kind() -> None:
    look = looks("train")[0]
    sentences = [caption(look, kind, i) for kind in KINDS for i in range(len(KINDS[kind].templates))]
    assert len(set(sentences)) == len(sentences)


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


@kinds
@settings(max_examples=10, deadline=None)
@given(seeds)
def test_every_impact_is_heard_when_it_happens(kind: Kind, seed: int) -> None:
    clip, events = render_clip(sample_scene(np.random.default_rng(seed), kind=kind))
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


def test_a_hammer_is_lifted_no_higher_than_its_handle_is_long() -> None:
    """A small one, whose headroom is longer than the shortest handle."""
    rng, small = np.random.default_rng(0), next(look for look in looks("train") if look.size == "small")
    scenes = [Hammer.sample(rng, small, Format()) for _ in range(300)]
    assert all(np.isfinite(scene.positions(np.linspace(0, 2, 64))).all() for scene in scenes)


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(1.0, 12.0))
def test_a_hammer_falls_freely_rests_and_stays_in_the_picture(seed: int, seconds: float) -> None:
    scene = Hammer.sample(np.random.default_rng(seed), looks("train")[seed % 200], Format(seconds=seconds))
    times = np.linspace(0, seconds, 4000)
    centre = scene.positions(times)
    assert (centre[:, 0] > scene.radius / 2).all() and (centre[:, 0] < WORLD - scene.radius / 2).all()
    lift = scene.floor_y - scene.radius - centre[:, 1]
    assert lift.min() >= -1e-9 and (centre[:, 1] >= scene.radius).all()
    bar, head = scene.shapes(times)
    assert np.allclose(np.hypot(*(bar.end - bar.start).T), abs(bar.start[0, 0] - scene.x))  # the handle is stiff
    assert (head.angle * scene.side >= 0).all() and (np.sin(np.abs(head.angle)) <= STEEPEST + 1e-9).all()
    events = scene.events()
    assert events and events[-1].time < seconds - LAST_FRAMES / scene.fps
    for event in events:
        before = np.array([event.time - 2e-4, event.time - 1e-4])
        height = scene.floor_y - scene.radius - scene.positions(before)[:, 1]
        assert -np.diff(height)[0] / 1e-4 == pytest.approx(event.speed, rel=1e-2)
        resting = scene.positions(np.array([event.time + 1e-6, event.time + 0.25]))[:, 1]
        assert np.allclose(resting, scene.floor_y - scene.radius)
    assert min(np.diff([event.time for event in events]), default=1.0) >= 0.8


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(1.0, 12.0))
def test_a_swinging_ball_touches_the_wall_at_its_impacts_alone(seed: int, seconds: float) -> None:
    scene = Swing.sample(np.random.default_rng(seed), looks("train")[seed % 200], Format(seconds=seconds))
    wall, string, ball = scene.shapes(np.linspace(0, seconds, 4000))
    x, y = ball.centre.T
    assert (x >= scene.radius).all() and (x <= WORLD - scene.radius).all() and (y <= scene.floor_y - scene.radius).all()
    assert np.ptp(np.hypot(*(string.end - string.start).T)) < 1e-9  # the string is stiff
    face = wall.left if scene.side == 1 else wall.right
    times = np.array([event.time for event in scene.events()])
    touching = scene.positions(times)[:, 0] + scene.side * scene.radius
    assert np.allclose(touching, face)
    for event in scene.events():
        before, after = scene.positions(event.time + np.array([-1e-4, 1e-4]))[:, 0] - (face - scene.side * scene.radius)
        assert -scene.side * before / 1e-4 == pytest.approx(event.speed, rel=1e-2)
        left = event.speed * scene.swings.restitution
        expected = left if left >= REST_SPEED else 0.0
        assert -scene.side * after / 1e-4 == pytest.approx(expected, rel=1e-2, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(1.0, 12.0))
def test_colliding_balls_keep_their_momentum_and_never_overlap(seed: int, seconds: float) -> None:
    scene = Collision.sample(np.random.default_rng(seed), looks("train")[seed % 200], Format(seconds=seconds))
    left, right = scene.positions(np.linspace(0, seconds, 4000))
    assert (right[:, 0] - left[:, 0] >= 2 * scene.radius - 1e-9).all()
    assert left[:, 0].min() >= scene.radius and right[:, 0].max() <= WORLD - scene.radius
    for event in scene.events():
        moments = event.time + np.array([-2e-4, -1e-4, 1e-4, 2e-4])
        (a, b), (c, d) = (np.diff(side[:, 0])[[0, 2]] / 1e-4 for side in scene.positions(moments))
        assert a + c == pytest.approx(b + d, abs=0.1)  # equal masses
        assert a - c == pytest.approx(event.speed, rel=1e-2)
        left_over = scene.swings.restitution * event.speed
        assert d - b == pytest.approx(left_over if left_over >= REST_SPEED else 0.0, rel=1e-2, abs=1e-6)


def test_kinds_are_taken_in_turn() -> None:
    texts = [sample_clip(1, index, kinds=tuple(KINDS))[1] for index in range(8)]
    words = ["bounc|fall|hit|drop", "hammer", "swing|string", "balls"] * 2
    for text, word in zip(texts, words, strict=True):
        assert re.search(word, text), text


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
        ({"kinds": ()}, "kinds names no kind of event; there are bounce"),
        ({"kinds": ("bounce", "thunder")}, "there is no kind of event 'thunder'; there are bounce"),
        ({"kinds": ("swing", "swing")}, "each may be named once"),
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
