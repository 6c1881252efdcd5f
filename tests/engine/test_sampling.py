"""The Euler loop against a plain one: every branch of every request in a forward of its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.model import DDiT
from syncflow.engine.sampling.guidance import Branch, GuidancePlan
from syncflow.engine.sampling.job import Known
from syncflow.engine.sampling.loop import sample
from syncflow.engine.sampling.noise import Stream, normal
from syncflow.engine.types import Latents

from .plain import (
    AUDIO_SHAPE,
    CONFIG,
    HEARING_JOBS,
    JOBS,
    TOLERANCE,
    VIDEO_SHAPE,
    Passes,
    assert_plain,
    job,
    randomised,
)


@pytest.fixture(scope="module")
def model() -> DDiT:
    return randomised()


def assert_naive(model, jobs):
    latents = sample(model, jobs)
    sounds = latents.audio.split([len(one.sounds) for one in jobs])
    for b, one in enumerate(jobs):
        assert_plain(model, one, Latents(latents.video[b : b + 1], sounds[b]))


@pytest.mark.slow
@pytest.mark.parametrize("lead", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("known", [False, True], ids=["drawn video", "known video"])
@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_one_request_equals_the_plain_loop(model, lead, known, guidance):
    assert_naive(model, [job(3, lead=lead, known=known, guidance=guidance, shift=3.0)])


@pytest.mark.slow
@given(st.lists(JOBS, min_size=1, max_size=4))
@settings(max_examples=30)
def test_any_batch_equals_the_plain_loop(model, jobs):
    """Requests of one batch may differ in everything but shape."""
    assert_naive(model, jobs)


def test_weights_are_per_modality(model):
    plan = GuidancePlan((Branch(), Branch(text=False)), (3.0, -2.0), (0.5, 0.5))
    assert_naive(model, [job(1, guidance=plan), job(2, guidance=1.0)])


def test_a_request_alone_equals_the_request_in_a_batch(model):
    jobs = [job(1, steps=4), job(2, steps=2, lead=1.0), job(3, guidance=1.0, known=True), job(4, lead=0.5, shift=3.0)]
    together = sample(model, jobs)
    for b, one in enumerate(jobs):
        alone = sample(model, [one])
        torch.testing.assert_close(together.video[b], alone.video[0], **TOLERANCE)
        torch.testing.assert_close(together.audio[b], alone.audio[0], **TOLERANCE)


def test_the_same_request_gives_the_same_latents(model):
    first, second = sample(model, [job(5)]), sample(model, [job(5)])
    assert torch.equal(first.video, second.video)
    assert torch.equal(first.audio, second.audio)


def test_another_seed_gives_other_latents(model):
    first, second = (sample(model, [dataclasses.replace(job(5), seed=seed)]) for seed in (5, 6))
    assert not torch.allclose(first.video, second.video)
    assert not torch.allclose(first.audio, second.audio)


@pytest.mark.parametrize("lead", [0.0, 0.5, 1.0])
def test_a_known_video_comes_back_exactly(model, lead):
    known = job(7, lead=lead, known=True)
    latents = sample(model, [known, job(8)])
    assert torch.equal(latents.video[0], known.video.latents)
    assert not torch.allclose(latents.video[1], known.video.latents)


def test_the_known_video_decides_the_sound(model):
    first = job(7, lead=1.0, known=True)
    second = dataclasses.replace(first, video=Known(first.video.latents + 1))
    assert not torch.allclose(sample(model, [first]).audio, sample(model, [second]).audio)


@pytest.mark.parametrize(
    ("settings", "video", "audio"),
    [
        ({"lead": 0.0}, 4, 4),
        ({"lead": 0.5}, 5, 4),
        ({"lead": 1.0}, 5, 4),
        ({"lead": 0.0, "known": True}, 4, 4),
        ({"lead": 1.0, "known": True}, 1, 4),
    ],
    ids=str,
)
def test_a_modality_that_stands_still_costs_nothing(model, settings, video, audio):
    """All branches of a step are one pass; a finished video needs one more, whose features are kept."""
    with Passes(model) as passes:
        sample(model, [job(steps=4, **settings)])
    assert (len(passes.video), len(passes.audio)) == (video, audio)


def test_one_pass_serves_all_requests(model):
    with Passes(model) as passes:
        sample(model, [job(seed, steps=3) for seed in range(3)])
    assert (len(passes.video), len(passes.audio)) == (3, 3)


def test_the_callback_sees_every_step(model):
    calls = []
    final = sample(model, [job(1, steps=2, lead=1.0), job(2, steps=3)], lambda *call: calls.append(call))
    assert [(step, steps) for step, steps, _ in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(calls[-1][2].video, final.video)
    assert torch.equal(calls[-1][2].audio, final.audio)
    first = calls[0][2]
    assert torch.equal(first.audio[0], torch.from_numpy(normal(1, Stream.AUDIO, AUDIO_SHAPE)))
    assert first.video.shape == (2, *VIDEO_SHAPE)


def test_an_error_in_the_callback_stops_the_loop(model):
    def stop(step, *_):
        if step == 2:
            raise KeyboardInterrupt

    with Passes(model) as passes, pytest.raises(KeyboardInterrupt):
        sample(model, [job(steps=4)], stop)
    assert len(passes.video) == 2


def test_a_model_in_half_precision_keeps_its_latents_in_single(model):
    half = DDiT(CONFIG).eval()
    half.load_state_dict(model.state_dict())
    latents, exact = sample(half.bfloat16(), [job(1, guidance=1.0)]), sample(model, [job(1, guidance=1.0)])
    assert latents.video.dtype == latents.audio.dtype == torch.float32
    torch.testing.assert_close(latents.video, exact.video, rtol=0.1, atol=0.1)


@pytest.fixture(scope="module", params=["audio_rope", "global_local"])
def hearing(request) -> DDiT:
    """A model whose video reads the audio."""
    return randomised(CONFIG.replace(bridge=request.param, first_block=int(request.param == "audio_rope")))


@pytest.mark.slow
@given(st.lists(HEARING_JOBS, min_size=1, max_size=3))
@settings(max_examples=25)
def test_any_batch_of_a_hearing_model_equals_the_plain_loop(hearing, jobs):
    """Syncphony and Harmony: sound that is given, muted and still branches, any sum of guidances."""
    assert_naive(hearing, jobs)


def test_a_given_sound_decides_the_video(hearing):
    plain = job(3)
    low, high = (
        dataclasses.replace(plain, audio=Known(torch.full(AUDIO_SHAPE, value), clean=True)) for value in (-1.0, 1.0)
    )
    first, second = sample(hearing, [low]), sample(hearing, [high])
    assert torch.equal(first.audio[0], low.audio.latents)
    assert not torch.allclose(first.video, second.video)
