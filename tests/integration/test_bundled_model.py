"""What the bundled model promises: one seed, one clip, alone or in a batch, at any size; and what it was taught."""

from __future__ import annotations

import numpy as np
import pytest

from syncflow import Engine, Request
from syncflow.training.data.impacts import sample_clip
from syncflow.training.evaluation import evaluate_a2v, evaluate_v2a
from syncflow.training.evaluation.color import object_color
from syncflow.training.evaluation.onsets import audio_onsets

pytestmark = pytest.mark.slow

PROMPTS = ("a large red rubber ball bounces on a wooden floor", "a small green metal ball falls on a stone floor")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained()


def psnr(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    error = float(np.square(a.astype(float) - b.astype(float)).mean())
    return float("inf") if error == 0 else 10 * np.log10(peak**2 / error)


def test_the_same_seed_gives_the_same_clip(engine):
    first, second = (engine.generate(PROMPTS[0], seed=11, steps=4) for _ in range(2))
    assert np.array_equal(first.frames, second.frames)
    assert np.array_equal(first.waveform, second.waveform)
    other = engine.generate(PROMPTS[0], seed=12, steps=4)
    assert not np.array_equal(first.frames, other.frames)


def test_a_clip_does_not_depend_on_its_batch(engine):
    alone = engine.generate(PROMPTS[1], seed=5, steps=6)
    requests = [
        Request(PROMPTS[0], seed=4, steps=3),
        Request(PROMPTS[1], seed=5, steps=6),
        Request(PROMPTS[0], guidance=1.0),
    ]
    together = engine.generate(requests)[1]
    assert psnr(alone.frames, together.frames, 255) > 50
    assert psnr(alone.waveform, together.waveform, 1) > 60


@pytest.mark.parametrize(("width", "height", "seconds"), [(128, 128, 1.0), (96, 48, 0.5), (64, 64, 3.0)])
def test_other_sizes_and_durations(engine, width, height, seconds):
    clip = engine.generate(PROMPTS[0], steps=2, width=width, height=height, seconds=seconds)
    assert clip.frames.shape == (round(16 * seconds), height, width, 3)
    assert clip.waveform.shape == (round(48_000 * seconds),)
    assert np.isfinite(clip.waveform).all() and np.abs(clip.waveform).max() <= 1


def test_the_sound_follows_a_given_video(engine):
    """Onsets drawn for unseen rendered videos fall on their impacts far more often than chance."""
    rendered = [sample_clip(99, index, "unseen") for index in range(4)]
    sampled = engine.generate([Request("", seed=i, steps=25, video=clip) for i, (clip, _, _) in enumerate(rendered)])
    hits = sum(
        bool(
            len(onsets := audio_onsets(clip.waveform, clip.sample_rate)) and np.abs(onsets - event.time).min() < 1 / 16
        )
        for clip, (_, _, events) in zip(sampled, rendered, strict=True)
        for event in events
    )
    assert hits >= 0.6 * sum(len(events) for _, _, events in rendered)
    for clip, (known, _, _) in zip(sampled, rendered, strict=True):
        assert np.array_equal(clip.frames, known.frames)


def test_the_video_follows_a_given_sound():
    """Syncphony's model shows impacts where the sounds of unseen rendered clips have them, and keeps the sounds."""
    rendered = [sample_clip(99, index, "unseen") for index in range(4)]
    requests = [Request(text, seed=i, steps=25, audio=clip) for i, (clip, text, _) in enumerate(rendered)]
    sampled = Engine.from_pretrained("syncphony-tiny").generate(requests)
    times = [[event.time for event in events] for _, _, events in rendered]
    scores = evaluate_a2v(sampled, times)
    assert scores.a2v_impact_f1 >= 0.75 and scores.a2v_impact_f1_shuffled <= 0.45
    for clip, (known, _, _) in zip(sampled, rendered, strict=True):
        assert np.array_equal(clip.waveform, known.waveform)


def test_sound_and_video_follow_each_other():
    """Harmony's model shows impacts where a given sound has them, and sounds where a given video shows them."""
    rendered = [sample_clip(99, index, "unseen") for index in range(4)]
    times = [[event.time for event in events] for _, _, events in rendered]
    harmony = Engine.from_pretrained("harmony-tiny")
    seen = harmony.generate([Request(text, seed=i, steps=12, audio=clip) for i, (clip, text, _) in enumerate(rendered)])
    heard = harmony.generate([Request("", seed=i, steps=12, video=clip) for i, (clip, _, _) in enumerate(rendered)])
    assert evaluate_a2v(seen, times).a2v_impact_f1 >= 0.6
    assert evaluate_v2a(heard, times).v2a_onset_f1 >= 0.8


def test_the_student_samples_in_its_own_steps():
    """Without guidance by the prompt, for prompts and for given videos."""
    student = Engine.from_pretrained("syncflow-tiny-4step")
    rendered = [sample_clip(99, index, "unseen") for index in range(4)]
    videos = [Request("", seed=i, video=clip) for i, (clip, _, _) in enumerate(rendered)]
    sampled = student.generate(videos)
    assert (sampled[0].provenance["steps"], sampled[0].provenance["guidance"]) == (4, 1.0)
    assert evaluate_v2a(sampled, [[event.time for event in events] for _, _, events in rendered]).v2a_onset_f1 >= 0.85
    clips = student.generate([text for _, text, _ in rendered], seed=1)
    assert sum(object_color(clip.frames) in text for clip, (_, text, _) in zip(clips, rendered, strict=True)) >= 3


def test_the_colour_is_the_prompts(engine):
    colors = ("red", "green", "blue", "yellow")
    prompts = [f"a large {color} rubber ball bounces on a stone floor" for color in colors]
    clips = engine.generate(prompts, seed=1, steps=15)
    assert sum(object_color(clip.frames) == color for clip, color in zip(clips, colors, strict=True)) >= 3


def test_steps_are_reported(engine):
    seen = []
    engine.generate(
        PROMPTS[0], steps=3, video_lead=0.0, on_step=lambda step, steps, latents: seen.append((step, steps))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_requests_of_different_shapes_come_back_in_their_order(engine):
    requests = [Request(PROMPTS[0], steps=1, seconds=seconds, width=side) for seconds, side in ((1.0, 64), (0.5, 96))]
    clips = engine.generate([*requests, requests[0]])
    assert [clip.frames.shape for clip in clips] == [(16, 64, 64, 3), (8, 64, 96, 3), (16, 64, 64, 3)]


def test_nothing_to_generate_is_refused(engine):
    with pytest.raises(ValueError, match="empty"):
        engine.generate([])
