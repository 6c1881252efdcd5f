"""Arguments of ``generate`` under the names of diffusers, where they mean the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from syncflow import Engine, Request
from syncflow.engine.sampling.job import video_noise

PROMPT = "a red ball"
SHORT = {"seconds": 0.5, "width": 32, "height": 32, "steps": 2}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(runtime="torch", device="cpu")


def noise_of(engine: Engine, seed: int) -> torch.Tensor:
    job = engine.pipeline.encode(engine.pipeline.prepare(Request(PROMPT, seed=seed, **SHORT)))
    return video_noise(job, engine.config.ddit.video_channels)


@pytest.mark.slow
def test_latents_take_the_place_of_the_noise_of_the_seed(engine):
    expected = engine.generate([PROMPT, PROMPT], seed=4, **SHORT)
    noise = torch.stack([noise_of(engine, seed) for seed in (4, 5)])
    found = engine.generate([PROMPT, PROMPT], seed=0, audio_seed=4, latents=noise, **SHORT)
    assert all(np.array_equal(one.frames, other.frames) for one, other in zip(found, expected, strict=True))
    assert np.array_equal(found[0].waveform, expected[0].waveform)
    assert found[0].provenance["noise"] != found[1].provenance["noise"]
    other = engine.generate(PROMPT, seed=4, latents=2 * noise[0], **SHORT)
    assert not np.array_equal(other.frames, expected[0].frames)


def test_latents_of_another_shape_are_refused(engine):
    noise = noise_of(engine, 0)
    for latents in (noise[:1], noise[None].expand(2, -1, -1, -1, -1), noise * float("nan")):
        with pytest.raises(ValueError, match=r"latents are \(.*\); they must be finite numbers in the shape \(1, 16,"):
            engine.generate(PROMPT, latents=latents, **SHORT)
    with pytest.raises(ValueError, match="latents must be a tensor"):
        engine.generate(PROMPT, latents=noise.numpy(), **SHORT)
    with pytest.raises(ValueError, match="latents must be a tensor, for requests of one size and duration"):
        requests = [Request(PROMPT, **SHORT), Request(PROMPT, **SHORT | {"seconds": 1.0})]
        engine.generate(requests, latents=noise)


def test_the_callback_is_called_as_that_of_a_pipeline(engine):
    calls = []

    def callback(pipeline, step, timestep, callback_kwargs):
        calls.append((step, timestep, tuple(callback_kwargs["latents"].shape)))
        assert pipeline is engine
        return callback_kwargs

    engine.generate(PROMPT, video_lead=0.0, shift=1.0, callback_on_step_end=callback, **SHORT)
    shape = (1, *noise_of(engine, 0).shape)
    assert calls == [(0, 1000.0, shape), (1, 500.0, shape)]


def test_what_a_callback_cannot_do_is_refused(engine):
    def changes(pipeline, step, timestep, callback_kwargs):
        return {"latents": callback_kwargs["latents"] * 0}

    with pytest.raises(ValueError, match="callback_on_step_end returned other latents; it may read them"):
        engine.generate(PROMPT, callback_on_step_end=changes, **SHORT)
    with pytest.raises(ValueError, match="on_step and callback_on_step_end are given; leave one of them out"):
        engine.generate(PROMPT, callback_on_step_end=changes, on_step=print, **SHORT)
