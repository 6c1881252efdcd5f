"""Types of weights and activations: what stays exact, and how far off the approximate ones are."""

from __future__ import annotations

import pytest
import torch

from syncflow.engine.components import Components
from syncflow.engine.engine import bundled_model
from syncflow.engine.model.denoiser import VideoInputs
from syncflow.engine.runtime.delegate import describe
from syncflow.engine.runtime.fp8 import Fp8Linear, Quantised, with_fp8
from syncflow.engine.runtime.pytorch import cast, torch_denoiser
from syncflow.engine.runtime.selection.settings import TorchOptions
from syncflow.engine.sampling.loop import sample
from syncflow.kernels import fp8_linear, modulated_layer_norm_fp8

from ..plain import assert_plain, job
from .conftest import CONFIGS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundled():
    return Components.load(bundled_model()).ddit


def video_pass(model, rows=4):
    """Velocity and contexts of random latents, in float32."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    z = torch.randn(rows, config.video_channels, 8, 8, 8, generator=generator).to(model.dtype)
    states = torch.randn(2, config.text_tokens, config.text_width, generator=generator).to(model.dtype)
    t = torch.linspace(0, 1, rows)[:, None]
    with torch.inference_mode():
        times, text = model.modulation(t, torch.full((rows,), 16.0)), model.condition(states, torch.tensor([9, 5]))
        of_row = torch.arange(rows)
        velocity, contexts = model.video_pass(VideoInputs(z, times, text, of_row % 2, context_rows=of_row))
    return [velocity.float(), *(context.float() for context in contexts)]


def off(found, expected):
    """Root mean square of the largest difference, relative."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).square().mean().sqrt() / b.square().mean().sqrt()) for a, b in pairs)


@pytest.mark.parametrize(
    ("precision", "fp8", "allowed"),
    [
        ("float32", False, 0.0),
        ("float16", False, 0.005),
        ("bfloat16", False, 0.03),
        ("float32", True, 0.06),
        ("bfloat16", True, 0.07),
    ],
)
def test_the_error_of_a_pass(bundled, precision, fp8, allowed):
    """Of the bundled model's velocity and contexts; an approximation that were none would not be tested."""
    made = torch_denoiser(bundled, precision, TorchOptions(fp8=fp8))
    error = off(video_pass(made), video_pass(bundled))
    assert error <= allowed
    assert (error > 0) is bool(allowed)
    told = describe(made)
    assert (told["dtype"], told["fp8"]) == (precision, fp8)


def test_a_cast_keeps_buffers_and_the_other_model(bundled):
    half = cast(bundled, torch.bfloat16)
    assert bundled.dtype == torch.float32
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in half.buffers()} == {torch.float32}
    assert cast(half, torch.bfloat16) is half
    for (name, own), (other, plain) in zip(half.named_parameters(), bundled.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(own.float(), plain, rtol=2**-8, atol=0)


def test_latents_stay_in_single_precision(models):
    latents = sample(cast(models["adaptor"], torch.bfloat16), [job(1, guidance=1.0)])
    assert latents.video.dtype == latents.audio.dtype == torch.float32
    exact = sample(models["adaptor"], [job(1, guidance=1.0)])
    torch.testing.assert_close(latents.video, exact.video, rtol=0.1, atol=0.1)


def test_codes_of_a_linear_are_its_weights():
    linear = torch.nn.Linear(48, 32)
    made = Fp8Linear(linear, gelu=True)
    weights = made.codes.float() * made.scales[:, None]
    torch.testing.assert_close(weights, linear.weight, rtol=1 / 16, atol=float(made.scales.max()) * 2**-9)
    x, table, rows = torch.randn(2, 3, 5, 48), torch.randn(6, 48), torch.randn(2, 1, 6, 48)
    tokens = Quantised(*modulated_layer_norm_fp8(x, table, rows, 0, 1e-6))
    with torch.no_grad():
        whole = made(tokens)
        assert torch.equal(whole, fp8_linear(tokens.codes, tokens.scales, made.codes, made.scales, linear.bias, True))
        assert torch.equal(made(tokens[torch.tensor([1, 1])]), whole[[1, 1]])
        assert torch.equal(made(tokens[:1]), whole[:1])


@pytest.mark.parametrize("name", CONFIGS)
def test_fp8_takes_every_way_through_the_blocks(models, name):
    """Bridges at the entry of a layer, prefixes, rows that only serve for their features: near the exact model."""
    plain = models[name]
    with torch.no_grad():
        coarse = with_fp8(plain)
    jobs = [job(1, steps=2, guidance=1.0), job(2, steps=2, lead=1.0, guidance=1.0)]
    exact, found = sample(plain, jobs), sample(coarse, jobs)
    assert not torch.equal(found.video, exact.video)
    for own, right in ((found.video, exact.video), (found.audio, exact.audio)):
        torch.testing.assert_close(own, right, rtol=0.15, atol=0.15)
    assert_plain(plain, jobs[0], type(exact)(exact.video[:1], exact.audio[:1]))  # the other is as it was
