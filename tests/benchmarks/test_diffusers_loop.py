"""diffusers' LTX loop at the FLOPs of a step: what it takes, and what it computes."""

from __future__ import annotations

import pytest
import torch

from syncflow.benchmarks import diffusers_loop, step
from syncflow.benchmarks.diffusers_loop import GUIDANCE, MISSING, LTXLoop
from syncflow.engine.presets import preset

pytest.importorskip("diffusers")

TINY = preset("syncflow-tiny")
TARGET = 500_000_000


@pytest.mark.slow
def test_a_step_takes_the_flops_that_it_should_and_is_the_guided_euler_step():
    loop = LTXLoop(TINY, 2, TARGET)
    assert 0.999 * TARGET < loop.flops <= TARGET
    assert loop.latents.shape == (2, TINY.sequence.latent_frames * TINY.sequence.spatial_tokens, 16)
    before = loop.latents.clone()
    loop.step()
    sigmas, times = loop.scheduler.sigmas, loop.scheduler.timesteps
    with torch.no_grad():
        both = torch.cat([before, before])
        found = loop.transformer(**loop.inputs, hidden_states=both, timestep=times[0].expand(4), return_dict=False)[0]
    without, text = found.chunk(2)
    expected = before + (sigmas[1] - sigmas[0]) * (without + GUIDANCE * (text - without))
    torch.testing.assert_close(loop.latents, expected, rtol=1e-4, atol=1e-5)
    one = diffusers_loop.variant(TINY, 1, TARGET)
    assert one.name == step.OTHER_WORK and one.rel_err is None and 0.999 * TARGET < one.flops <= TARGET
    with pytest.raises(ValueError, match="one of its layers takes"):
        LTXLoop(TINY, 8, 1000)


def test_without_diffusers_it_is_left_out(monkeypatch):
    told = []
    monkeypatch.setattr(diffusers_loop, "find_spec", lambda name: None)
    assert diffusers_loop.maker(TINY, 1, "cpu", told.append) is None
    assert told == [MISSING]


def test_auto_is_not_compared_with_other_work():
    seconds = {"reference": [9.0, 8.0], "diffusers": [0.5, 0.5], "auto": [1.5, 1.0]}
    assert step.over_fastest(seconds, "auto")["fastest_other"] == "reference"
