"""Branch caching: what is evaluated when, what that costs, and what stays exact. That a request with it is what its
definition gives, in any company, is held by the property tests of the loop (``plain.py`` draws branch intervals).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syncflow import Engine, Request
from syncflow.engine.cost.counting import CountingDenoiser
from syncflow.engine.cost.live_memory import peak_bytes
from syncflow.engine.cost.memory import MemoryEstimator
from syncflow.engine.sampling.caching import cache_phases_of
from syncflow.engine.sampling.guidance import GuidancePlan, cfg, combine, sync_cfg_video, sync_guidance, text_guidance
from syncflow.engine.sampling.loop import sample
from syncflow.engine.sampling.schedule import schedule
from syncflow.engine.sampling.sequential import SequentialBatch, batch_of

from .plain import CONFIG, PLANS, Passes, assert_plain, job, randomised

BRIDGES = ("adaptor", "audio_rope", "global_local")
PROMPT = "a large red rubber ball bounces on a wooden floor"


@pytest.fixture(scope="module")
def models():
    return {name: randomised(CONFIG.replace(bridge=name, first_block=int(name == "audio_rope"))) for name in BRIDGES}


def every(interval: int, *directions) -> GuidancePlan:
    return combine([text_guidance(4.0), *directions], branch_interval=interval)


def rows(model, jobs) -> Passes:
    with Passes(model) as passes:
        sample(model, jobs)
    return passes


# When


@given(
    plan=PLANS,
    interval=st.integers(1, 5),
    steps=st.integers(1, 12),
    lead=st.sampled_from([0.0, 0.3, 1.0]),
    start=st.sampled_from([0.0, 0.6]),
)
def test_a_difference_is_younger_than_its_interval(plan, interval, steps, lead, start):
    """Every guided step renews or reuses; what is reused was renewed, for the same modality, less than N steps ago."""
    plan, times = replace(plan, branch_interval=interval), schedule(steps, lead=lead).after(start)
    phases = cache_phases_of(plan, times.video, times.audio)
    if interval == 1:
        assert phases == ((), ())
        return
    renewals = []
    for k, pair in enumerate(zip(*phases, strict=True)):
        for name, phase in zip(("video", "audio"), pair, strict=True):
            grid = getattr(times, name)
            assert (phase is not None) == (grid[k + 1] > grid[k] and len(plan.at(name, grid[k])) > 1)
        assert len({phase for phase in pair if phase}) <= 1
        if "renew" in pair:
            renewals.append((k, pair))
        for i, phase in enumerate(pair):
            if phase == "reuse":
                last, renewed = renewals[-1]
                assert k - last < interval and renewed[i] == "renew"
    for (k, before), (later, pair) in pairwise(renewals):
        fresh = any(now == "renew" and then is None for now, then in zip(pair, before, strict=True))
        assert later - k >= interval or fresh


def test_a_sound_that_begins_renews_both():
    """The audio begins at the third step of five, between two renewals of the video."""
    times = schedule(4, lead=0.5)
    video, audio = cache_phases_of(every(3), times.video, times.audio)
    assert video == ("renew", "reuse", "renew", "reuse", None, None)
    assert audio == (None, None, "renew", "reuse", "reuse", "renew")


# What is computed


@pytest.mark.parametrize(
    ("bridge", "video", "audio"),
    [
        ("adaptor", [2, 1, 1, 2, 1], [3, 1, 1, 3, 1]),
        ("audio_rope", [2, 1, 1, 2, 1], [1, 1, 1, 1, 1]),
        ("global_local", [3, 1, 1, 3, 1], [3, 1, 1, 3, 1]),
    ],
)
def test_between_renewals_the_full_branch_is_computed_alone(models, bridge, video, audio):
    passes = rows(models[bridge], [job(1, steps=5, guidance=every(3, sync_guidance(2.0)))])
    assert (passes.video, passes.audio) == (video, audio)


@pytest.mark.slow
def test_requests_of_other_intervals_and_phases_share_a_batch(models):
    """N = 2 from the first step, N = 3 from the second, and one without: the rows of each step are their sum."""
    model = models["adaptor"]
    jobs = [job(1, steps=5, guidance=every(2)), job(2, steps=4, guidance=every(3)), job(3, steps=5, guidance=every(1))]
    batch = batch_of(model)
    batch.join([jobs[0], jobs[2]])
    with Passes(model) as passes:
        batch.step()
        batch.join([jobs[1]])
        for _ in range(4):
            batch.step()
    assert passes.video == passes.audio == [2 + 2, 1 + 2 + 2, 2 + 2 + 1, 1 + 2 + 1, 2 + 2 + 2]
    for one, latents in zip((jobs[0], jobs[2], jobs[1]), batch.leave([0, 1, 2]), strict=True):
        assert_plain(model, one, latents)


def test_takes_and_a_finished_video_save_too(models):
    """Video first, three sounds of it: contexts of branches are there when they are wanted."""
    passes = rows(models["adaptor"], [job(1, steps=3, lead=1.0, guidance=every(2), takes=(1, 2, 3))])
    assert passes.video == [2, 1, 2, 2]
    assert passes.audio == [6, 3, 6]


@pytest.mark.slow
@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("interval", [2, 3, 4])
def test_the_work_falls_as_counted(models, bridge, interval):
    """Of 8 steps, ceil(8 / N) cost what they do without caching and the others what the full branch does."""

    def cost(plan: GuidancePlan, steps: int) -> int:
        model = CountingDenoiser(CONFIG.replace(bridge=bridge, first_block=int(bridge == "audio_rope")))
        batch = batch_of(model)
        one = job(1, steps=8, guidance=plan)
        batch.join([replace(one, text=replace(one.text, states=one.text.states.to("meta"), key="a prompt"))])
        before = model.flops
        for _ in range(steps):
            batch.step()
        return model.flops - before

    directions = [sync_guidance(2.0)] if bridge == "adaptor" else [sync_guidance(2.0), sync_cfg_video(2.0)]
    whole, full, found = (
        cost(every(1, *directions), 1),
        cost(combine([]), 1),
        cost(every(interval, *directions), 8),
    )
    renewals = -(-8 // interval)
    assert found == renewals * whole + (8 - renewals) * full
    assert full < whole


# What it gives


@pytest.mark.parametrize("bridge", BRIDGES)
def test_an_interval_of_1_is_off(models, bridge):
    plan = replace(every(2, sync_guidance(2.0)), branch_interval=1)
    exact, found = (sample(models[bridge], [job(3, guidance=one)]) for one in (every(1, sync_guidance(2.0)), plan))
    assert torch.equal(found.video, exact.video) and torch.equal(found.audio, exact.audio)
    cached = sample(models[bridge], [job(3, guidance=replace(plan, branch_interval=2))])
    assert not torch.allclose(cached.video, exact.video, atol=1e-3)


def test_one_branch_has_nothing_to_keep(models):
    exact, found = (sample(models["adaptor"], [job(3, guidance=combine([], branch_interval=n))]) for n in (1, 3))
    assert torch.equal(found.video, exact.video) and torch.equal(found.audio, exact.audio)


@pytest.mark.parametrize("bridge", BRIDGES)
def test_it_is_the_same_every_time(models, bridge):
    jobs = [job(seed, steps=4, guidance=every(1 + seed, sync_guidance(2.0))) for seed in range(3)]
    first, second = sample(models[bridge], jobs), sample(models[bridge], jobs)
    assert torch.equal(first.video, second.video) and torch.equal(first.audio, second.audio)


def test_a_request_of_a_sequential_batch_has_the_bits_that_it_has_alone(models):
    jobs, together = (
        [job(seed, steps=4, guidance=every(1 + seed)) for seed in range(3)],
        SequentialBatch(models["adaptor"]),
    )
    together.join(jobs)
    for _ in range(4):
        together.step()
    for one, latents in zip(jobs, together.leave([0, 1, 2]), strict=True):
        alone = sample(models["adaptor"], [one])
        assert torch.equal(latents.video, alone.video) and torch.equal(latents.audio, alone.audio)


def test_a_difference_goes_with_its_request(models):
    """Another one leaves between the step that evaluates it and the step that reuses it."""
    model, batch = models["adaptor"], batch_of(models["adaptor"])
    jobs = [job(seed, steps=4, guidance=every(4)) for seed in (1, 2)]
    batch.join(jobs)
    batch.step()
    batch.leave([0])
    for _ in range(3):
        batch.step()
    assert_plain(model, jobs[1], batch.leave([0])[0])


@pytest.mark.parametrize("bridge", BRIDGES)
def test_outside_its_interval_a_plan_reuses_nothing(models, bridge):
    """Steps that reuse, and steps without guidance after them, both weigh the full branch alone."""
    plan = combine([text_guidance(4.0)], interval=(0.0, 0.5), branch_interval=2)
    one = job(1, steps=6, guidance=plan)
    assert_plain(models[bridge], one, sample(models[bridge], [one]))


def test_a_model_in_half_precision_keeps_its_differences(models):
    """As near to single precision as it is without caching."""
    exact = models["adaptor"]
    half = randomised().bfloat16()
    errors = []
    for plan in (cfg(4.0), every(2)):
        found, expected = (sample(model, [job(1, steps=4, guidance=plan)]) for model in (half, exact))
        errors.append(float((found.video - expected.video).norm() / expected.video.norm()))
    assert 0 < errors[1] < 2 * errors[0]


# Around it


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(device="cpu", runtime="torch")


@pytest.mark.parametrize("interval", [0, -1, 1001, 1.5, "2"])
def test_intervals_that_are_refused(interval):
    with pytest.raises(ValueError, match=rf"branch_interval is {interval!r}; it must be a whole number from 1 to 1000"):
        Request(PROMPT, branch_interval=interval)


def test_a_plan_needs_an_interval():
    with pytest.raises(ValueError, match="the branch interval is 0; it must be at least 1"):
        every(0)


@pytest.mark.slow
def test_a_retake_is_the_clip_with_its_interval(engine):
    """The sound's renewals are those that it had beside its video."""
    clip = engine.generate(PROMPT, seed=3, steps=5, seconds=1.0, branch_interval=3)
    again = engine.retake(clip)
    assert again.provenance["branch_interval"] == clip.provenance["branch_interval"] == 3
    np.testing.assert_allclose(again.waveform, clip.waveform, rtol=0, atol=1e-4)
    exact = engine.retake(clip, branch_interval=1)
    assert np.abs(exact.waveform - clip.waveform).max() > 1e-3


@pytest.mark.slow
def test_what_it_takes_of_memory_is_predicted(engine):
    """Every step stays within what the first is predicted to take, differences included."""
    memory = MemoryEstimator(engine.components)
    cached = engine.pipeline.prepare(Request(PROMPT, steps=4, seconds=1.0, video_lead=0.0, branch_interval=2))
    plain = engine.pipeline.prepare(Request(PROMPT, steps=4, seconds=1.0, video_lead=0.0))
    jobs = [engine.pipeline.encode(cached) for _ in range(2)]

    def work() -> None:
        batch = batch_of(engine.components.ddit)
        batch.join(jobs)
        for _ in range(4):
            batch.step()

    predicted = memory.predict(cached.sequence, cached.plan)
    step = memory.step_of(cached.sequence, cached.plan)
    assert peak_bytes(work) == pytest.approx(predicted.fixed - memory.weights + 2 * step, rel=0.25)
    latents = jobs[0].sequence
    video = engine.config.ddit.video_channels * latents.latent_frames * latents.latent_height * latents.latent_width
    assert step - memory.step_of(plain.sequence, plain.plan) >= 4 * video
