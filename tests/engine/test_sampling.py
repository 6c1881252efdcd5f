"""The Euler loop against a plain one: every branch of every request in a forward of its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.engine.config import DDiTConfig, SequenceConfig
from syncflow.engine.model import DDiT
from syncflow.engine.sampling.guidance import (
    FULL,
    Branch,
    GuidancePlan,
    cfg,
    combine,
    sync_cfg_audio,
    sync_cfg_video,
    sync_guidance,
    text_guidance,
)
from syncflow.engine.sampling.job import Job, Known, Text
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


def job(
    seed=0, *, steps=3, shift=1.0, lead=0.0, guidance=6.0, length=4, known=False, negative=False, clean=False,
    prefix=0, start=0.0,
):  # fmt: skip
    """A request; ``prefix`` frames (and their share of the audio) are known, or with ``known`` the whole video."""
    generator = torch.Generator().manual_seed(seed)
    states, other = torch.randn(2, CONFIG.text_tokens, CONFIG.text_width, generator=generator)
    video, audio = torch.randn(VIDEO_SHAPE, generator=generator), torch.randn(AUDIO_SHAPE, generator=generator)
    times = schedule(steps, shift=shift, lead=lead)
    if known:
        times = times.known_video()
    plan = guidance if isinstance(guidance, GuidancePlan) else cfg(guidance)
    one = Job(SEQUENCE, seed, times, plan, Text(states, length), Text(other, 3) if negative else None)
    if known:
        return dataclasses.replace(one, video=Known(video, clean=clean))
    if start:
        return dataclasses.replace(one, video=Known(video, start=start), audio=Known(audio, start=start))
    if prefix:
        frames, sounds = (torch.arange(n) < n * prefix // VIDEO_SHAPE[1] for n in (VIDEO_SHAPE[1], AUDIO_SHAPE[0]))
        return dataclasses.replace(one, video=Known(video, frames, clean=clean), audio=Known(audio, sounds))
    return one


def held(known, z, noise, t, axis):
    """Latents with what is known of them put in at time t."""
    if known is None or known.start:
        return z
    t = 1.0 if known.clean else t
    mask = torch.ones(z.shape[axis], dtype=torch.bool) if known.mask is None else known.mask
    mask = mask.reshape([-1 if i == axis else 1 for i in range(z.ndim)])
    return torch.where(mask, (1 - t) * noise + t * known.latents, z)


def velocities(model, job, branch, z_v, z_a, t_v, t_a, still):
    """One branch alone: both towers in full."""
    texts = {True: job.text, False: job.negative or Text(model.video.y_embedder.y_embedding, job.text.length)}
    text = model.video.condition(texts[branch.text].states[None], torch.tensor([texts[branch.text].length]))
    fps, row = torch.tensor([float(SEQUENCE.fps)]), torch.tensor([0])
    if model.config.video_reads_audio and branch.muted:
        z_a, t_a = job.silence, torch.ones(())
    t = t_v.expand(1, z_v.shape[1])
    if job.video is not None and job.video.clean and not job.video.start:
        mask = torch.ones(z_v.shape[1], dtype=torch.bool) if job.video.mask is None else job.video.mask
        t = torch.where(mask, 1.0, t)
    if branch.static:
        z_v, t = still, torch.ones(1, z_v.shape[1])
    if model.config.video_reads_audio:
        bridged = torch.tensor([branch.bridge])
        found = model(z_v[None], z_a[None], t, t_a[None], fps, text, row, bridged)
        return found.video[0], found.audio[0]
    v_v, features = model.video_velocity(z_v[None], t, fps, text, row)
    context = model.audio.adapt(features) if branch.bridge else None
    return v_v[0], model.audio_velocity(z_a[None], t_a[None], context, z_v.shape[1], text, row)[0]


def naive(model, job):
    """One request, one branch at a time, both towers at every step."""
    z_v = noise_v = torch.from_numpy(normal(job.seed, Stream.VIDEO, VIDEO_SHAPE))
    z_a = noise_a = torch.from_numpy(normal(job.seed, Stream.AUDIO, AUDIO_SHAPE))
    if job.video is not None and job.video.start:
        z_v = torch.lerp(noise_v, job.video.latents, job.video.start)
        z_a = torch.lerp(noise_a, job.audio.latents, job.audio.start)
    times = [torch.tensor(grid, dtype=torch.float32) for grid in (job.schedule.video, job.schedule.audio)]
    if job.audio is not None and job.audio.clean:
        times[1] = torch.ones_like(times[1])
    expected = torch.zeros_like(z_v)
    for k in range(len(job.schedule)):
        (t_v, next_v), (t_a, next_a) = (grid[k : k + 2] for grid in times)
        z_v, z_a = held(job.video, z_v, noise_v, t_v, 1), held(job.audio, z_a, noise_a, t_a, 0)
        picture = held(job.video and dataclasses.replace(job.video, clean=True), z_v if t_v >= 1 else expected, 0, 1, 1)
        still = picture[:, :1].expand_as(picture)
        weights = [job.plan.at(m, float(job.schedule.__dict__[m][k])) for m in ("video", "audio")]
        found = {
            branch: velocities(model, job, branch, z_v, z_a, t_v, t_a, still)
            for branch in {FULL: None} | weights[0] | weights[1]
        }
        steps = []
        for i, of in enumerate(weights):
            guided = sum(weight * found[branch][i] for branch, weight in of.items())
            first = found[next(iter(of))][i]
            share = job.plan.rescale
            steps.append(guided * (share * first.std() / guided.std() + 1 - share))
        if next_v > t_v:
            expected = z_v + (1 - t_v) * steps[0]
        z_v, z_a = z_v + (next_v - t_v) * steps[0], z_a + (next_a - t_a) * steps[1]
    return held(job.video, z_v, noise_v, times[0][-1], 1), held(job.audio, z_a, noise_a, times[1][-1], 0)


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


PLANS = st.builds(
    lambda text, sync, static, interval, rescale: combine(
        [text_guidance(text), sync_guidance(sync), sync_cfg_audio(static)], interval=interval, rescale=rescale
    ),
    text=st.sampled_from([0.0, 1.0, 4.0]),
    sync=st.sampled_from([0.0, 2.0]),
    static=st.sampled_from([1.0, 2.0]),
    interval=st.sampled_from([(0.0, 1.0), (0.3, 0.7)]),
    rescale=st.sampled_from([0.0, 0.7]),
)
JOBS = st.builds(
    job,
    seed=st.integers(0, 2**31),
    steps=st.integers(1, 4),
    shift=st.sampled_from([1.0, 3.0]),
    lead=st.sampled_from([0.0, 0.5, 1.0]),
    guidance=PLANS,
    length=st.integers(1, CONFIG.text_tokens),
    known=st.booleans(),
    negative=st.booleans(),
    clean=st.booleans(),
    prefix=st.integers(0, 1),
    start=st.sampled_from([0.0, 0.4]),
)


@given(st.lists(JOBS, min_size=1, max_size=4))
@settings(max_examples=60)
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


def randomised(config):
    """A model none of whose weights is zero; fresh bridges are silent."""
    model = DDiT(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return model.requires_grad_(False)


@pytest.fixture(scope="module", params=["audio_rope", "global_local"])
def hearing(request) -> DDiT:
    """A model whose video reads the audio."""
    return randomised(CONFIG.replace(bridge=request.param, first_block=int(request.param == "audio_rope")))


JOINT_JOBS = st.builds(
    lambda sound, **settings: (
        dataclasses.replace(job(**settings), audio=Known(torch.ones(AUDIO_SHAPE), clean=True))
        if sound
        else job(**settings)
    ),
    sound=st.booleans(),
    seed=st.integers(0, 2**31),
    steps=st.integers(1, 3),
    lead=st.sampled_from([0.0, 1.0]),
    guidance=st.builds(
        lambda text, sync, video, audio: combine(
            [text_guidance(text), sync_guidance(sync), sync_cfg_video(video), sync_cfg_audio(audio)]
        ),
        text=st.sampled_from([1.0, 4.0]),
        sync=st.sampled_from([0.0, 2.0]),
        video=st.sampled_from([1.0, 3.0]),
        audio=st.sampled_from([1.0, 2.0]),
    ),
    prefix=st.integers(0, 1),
    clean=st.booleans(),
    negative=st.booleans(),
)


@given(st.lists(JOINT_JOBS, min_size=1, max_size=3))
@settings(max_examples=25)
def test_any_batch_of_a_hearing_model_equals_the_plain_loop(hearing, jobs):
    """Syncphony and Harmony: sound that is given, muted and still branches, any sum of guidances."""
    silence = torch.full(AUDIO_SHAPE, 0.5)
    assert_naive(hearing, [dataclasses.replace(one, silence=silence) for one in jobs])


def test_a_given_sound_decides_the_video(hearing):
    plain = job(3)
    low, high = (
        dataclasses.replace(plain, audio=Known(torch.full(AUDIO_SHAPE, value), clean=True)) for value in (-1.0, 1.0)
    )
    first, second = sample(hearing, [low]), sample(hearing, [high])
    assert torch.equal(first.audio[0], low.audio.latents)
    assert not torch.allclose(first.video, second.video)
