"""The benchmark against Open-Sora's own code, as far as it goes without that code."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import softmax

from syncflow.benchmarks import published_step
from syncflow.engine.model.denoiser import VideoInputs
from syncflow.engine.presets import OPEN_SORA

SEQUENCE = OPEN_SORA.sequence.replace(seconds=17 / 24, width=16, height=16)


class Stand:
    """The interface of Open-Sora's STDiT3 in front of a model of this engine, with velocities scaled by ``gain``."""

    def __init__(self, model, gain=1.0):
        self.model, self.gain = model, gain
        self.y_embedder = SimpleNamespace(y_embedding=model.video.y_embedder.y_embedding)

    def __call__(self, z, timestep, y, mask, fps, height, width):
        text = self.model.condition(y[:, 0], torch.full((len(y),), y.shape[2]))
        times = self.model.modulation(1 - timestep[:, None] / 1000, fps.expand(len(z)))
        velocity, _ = self.model.video_pass(VideoInputs(z, times, text, torch.arange(len(z))))
        return torch.cat([self.gain * velocity, velocity], 1)


@pytest.fixture(scope="module")
def model():
    return published_step.ddit_of(width=64, heads=2, depth=1)


def test_the_same_velocities_have_no_difference(model):
    text = torch.randn(300, published_step.TEXT_WIDTH)
    assert published_step.difference(model, Stand(model), SEQUENCE, text) < 1e-6
    assert published_step.difference(model, Stand(model, 1.01), SEQUENCE, text) == pytest.approx(0.01 / 1.01, rel=0.01)


def test_a_step_moves_along_the_guided_velocity(model):
    text = torch.randn(300, published_step.TEXT_WIDTH)
    step = published_step.PublishedStep(Stand(model), SEQUENCE, text)
    first = step().clone()
    assert first.shape == step.start.shape
    assert not torch.equal(first, step.start)
    for _ in range(published_step.STEPS - 1):
        step()
    assert torch.equal(step(), first)  # a clip begins anew


def test_attention_of_rows():
    q, k, v = torch.randn(1, 6, 2, 4), torch.randn(1, 5, 2, 4), torch.randn(1, 5, 2, 4)
    found = published_step._attention(q, k, v, attn_bias=([3, 3], [2, 3]))
    for rows, keys in ((slice(0, 3), slice(0, 2)), (slice(3, 6), slice(2, 5))):
        weights = softmax(torch.einsum("qnd,knd->nqk", q[0, rows], k[0, keys]) / 2, -1)
        expected = torch.einsum("nqk,knd->qnd", weights, v[0, keys])
        assert torch.allclose(found[0, rows], expected, atol=1e-6)


def test_another_folder_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"it must be a checkout of Open-Sora v1\.2\.0"):
        published_step.published_of(tmp_path, model)
    assert "xformers.ops" not in sys.modules
