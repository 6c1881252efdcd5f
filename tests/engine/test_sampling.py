"""The Euler loop against a plain one: every branch of every request in a forward of its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.config import DDiTConfig, SequenceConfig
from syncflow.engine.model import DDiT
from syncflow.engine.sampling.guidance import Branch, GuidancePlan, cfg
from syncflow.engine.sampling.job import Job
from syncflow.engine.sampling.loop import sample
from syncflow.engine.sampling.noise import Stream, normal
from syncflow.engine.sampling.schedule import schedule

CONFIG = DDiTConfig(
    width=16,
    depth=2,
    heads=2,
    audio_heads=2,
    video_channels=3,
    audio_channels=5,
    text_width=8,
    text_tokens=6,
    base_size=32,
    adaptor_tokens="frame",
)
SEQUENCE = SequenceConfig(seconds=1.0, width=32, height=48, fps=8, sample_rate=8000, audio_hop=800)
VIDEO_SHAPE, AUDIO_SHAPE = (3, 2, 6, 4), (10, 5)
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(scope="module")
def model() -> DDiT:
    model = DDiT(CONFIG).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return model.requires_grad_(False)


def job(seed=0, *, steps=3, shift=1.0, lead=0.0, guidance=6.0, length=4, known=False):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(CONFIG.text_tokens, CONFIG.text_width, generator=generator)
    video = torch.randn(VIDEO_SHAPE, generator=generator)
    times = schedule(steps, shift=shift, lead=lead)
    plan = guidance if isinstance(guidance, GuidancePlan) else cfg(guidance)
    if known:
        return Job(SEQUENCE, seed, times.known_video(), plan, states, length, video)
    return Job(SEQUENCE, seed, times, plan, states, length)


def naive(model, job):
    """One request, one branch at a time, both towers at every step."""
    z_v = noise = torch.from_numpy(normal(job.seed, Stream.VIDEO, VIDEO_SHAPE))
    z_a = torch.from_numpy(normal(job.seed, Stream.AUDIO, AUDIO_SHAPE))
    times = [torch.tensor(grid, dtype=torch.float32) for grid in (job.schedule.video, job.schedule.audio)]
    fps = torch.tensor([float(SEQUENCE.fps)])
    for k in range(len(job.schedule)):
        (t_v, next_v), (t_a, next_a) = (grid[k : k + 2] for grid in times)
        if job.known_video is not None:
            z_v = (1 - t_v) * noise + t_v * job.known_video
        step_v, step_a = torch.zeros_like(z_v), torch.zeros_like(z_a)
        for branch, w_v, w_a in zip(job.plan.branches, job.plan.video, job.plan.audio, strict=True):
            states = job.states if branch.text else model.video.y_embedder.y_embedding
            text = model.video.condition(states[None], torch.tensor([job.length]))
            velocities = model(z_v[None], z_a[None], t_v[None], t_a[None], fps, text, torch.tensor([0]))
            step_v += w_v * velocities.video[0]
            step_a += w_a * velocities.audio[0]
        z_v, z_a = z_v + (next_v - t_v) * step_v, z_a + (next_a - t_a) * step_a
    return job.known_video if job.known_video is not None else z_v, z_a


def assert_naive(model, jobs):
    latents = sample(model, jobs)
    for b, one in enumerate(jobs):
        video, audio = naive(model, one)
        torch.testing.assert_close(latents.video[b], video, **TOLERANCE)
        torch.testing.assert_close(latents.audio[b], audio, **TOLERANCE)


@pytest.mark.parametrize("lead", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("known", [False, True], ids=["drawn video", "known video"])
@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_one_request_equals_the_plain_loop(model, lead, known, guidance):
    assert_naive(model, [job(3, lead=lead, known=known, guidance=guidance, shift=3.0)])


JOBS = st.builds(
    job,
    seed=st.integers(0, 2**31),
    steps=st.integers(1, 4),
    shift=st.sampled_from([1.0, 3.0]),
    lead=st.sampled_from([0.0, 0.5, 1.0]),
    guidance=st.sampled_from([0.0, 1.0, 2.5, 6.0]),
    length=st.integers(1, CONFIG.text_tokens),
    known=st.booleans(),
)


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
    assert torch.equal(latents.video[0], known.known_video)
    assert not torch.allclose(latents.video[1], known.known_video)


def test_the_known_video_decides_the_sound(model):
    first = job(7, lead=1.0, known=True)
    second = dataclasses.replace(first, known_video=first.known_video + 1)
    assert not torch.allclose(sample(model, [first]).audio, sample(model, [second]).audio)


class Passes:
    """Counts the forward passes of both towers."""

    def __init__(self, model):
        self.video = self.audio = 0
        self.hooks = [
            model.video.register_forward_hook(lambda *_: setattr(self, "video", self.video + 1)),
            model.audio.register_forward_hook(lambda *_: setattr(self, "audio", self.audio + 1)),
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


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
    assert (passes.video, passes.audio) == (video, audio)


def test_one_pass_serves_all_requests(model):
    with Passes(model) as passes:
        sample(model, [job(seed, steps=3) for seed in range(3)])
    assert (passes.video, passes.audio) == (3, 3)


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
    assert passes.video == 2


def test_a_model_in_half_precision_keeps_its_latents_in_single(model):
    half = DDiT(CONFIG).eval()
    half.load_state_dict(model.state_dict())
    latents, exact = sample(half.bfloat16(), [job(1, guidance=1.0)]), sample(model, [job(1, guidance=1.0)])
    assert latents.video.dtype == latents.audio.dtype == torch.float32
    torch.testing.assert_close(latents.video, exact.video, rtol=0.1, atol=0.1)
