"""The bundled model with every operation in its Triton kernel: the same velocities and the same clip."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import pytest
import torch

from syncflow.engine.engine import Engine
from syncflow.engine.sampling.conditioning_cache import ConditioningCache
from syncflow.engine.sampling.loop import sample
from syncflow.engine.types import Request
from syncflow.kernels import implementation
from syncflow.kernels.launch import Launch, tiles
from syncflow.kernels.launch.language import INSTALLED

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="needs triton")]

OPERATIONS = {
    "gated_residual_norm_kernel",
    "flash_attention_kernel",
    "matmul_kernel",
    "gated_residual_kernel",
    "modulated_layer_norm_kernel",
    "rope_cross_attention_kernel",
    "text_cross_attention_kernel",
    "temporal_attention_kernel",
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(device="cpu")


@contextmanager
def kernels(monkeypatch):
    """Triton for every operation; yields the names of the kernels that are launched.

    Programs of 32 tokens rather than of a few: the interpreter takes its time for each program.
    """
    names, run = set(), Launch.run

    def record(launch):
        names.add(launch.kernel.__name__)
        run(launch)

    with ExitStack() as stack:
        stack.enter_context(implementation("triton"))
        for name in ("modulated_layer_norm", "gated_residual", "gated_residual_norm"):
            stack.enter_context(tiles.override(name, {"TOKENS": 32}))
        stack.enter_context(monkeypatch.context()).setattr(Launch, "run", record)
        yield names


def request(**settings):
    return Request(
        "a large red rubber ball bounces on a wooden floor", seed=7, guidance=3.0, **{"seconds": 0.5} | settings
    )


def prepared(engine, **settings):
    return engine.pipeline.encode(engine.pipeline.prepare(request(**settings)))


def test_velocities(engine, monkeypatch):
    """One forward of both towers with two branches."""
    model = engine.components.ddit
    job = prepared(engine)
    s, config = job.sequence, engine.config.ddit
    generator = torch.Generator().manual_seed(0)
    shape = (2, config.video_channels, s.latent_frames, s.latent_height, s.latent_width)
    z_v = torch.randn(shape, generator=generator)
    z_a = torch.randn(2, s.audio_tokens, config.audio_channels, generator=generator)
    t, fps, rows = torch.tensor([0.3, 0.6]), torch.full((2,), float(s.fps)), torch.tensor([0, 1])
    with torch.inference_mode():
        cache = ConditioningCache(model)
        text = cache.texts([cache.text_of(job, prompted) for prompted in (True, False)])
        plain = model(z_v, z_a, t, t, fps, text, rows)
        with kernels(monkeypatch) as launched:
            fused = model(z_v, z_a, t, t, fps, text, rows)
    assert launched == OPERATIONS
    for a, b in ((fused.video, plain.video), (fused.audio, plain.audio)):
        assert (a - b).norm() / b.norm() < 1e-5


def test_guided_sample(engine, monkeypatch):
    """Two steps of both modalities at a shared time, the second from what the first one left."""
    job = prepared(engine, steps=2, video_lead=0.0)
    plain = sample(engine.components.ddit, [job])
    with kernels(monkeypatch) as launched:
        fused = sample(engine.components.ddit, [job])
    assert launched == OPERATIONS | {"guided_euler_step_kernel"}
    for a, b in ((fused.video, plain.video), (fused.audio, plain.audio)):
        assert (a - b).norm() / b.norm() < 1e-4
