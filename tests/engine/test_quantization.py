"""Weights in 8 bits: which there are, how far off they are, what they take, and where they are refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from syncflow.benchmarks import memory, quantization
from syncflow.engine.components import Components
from syncflow.engine.cost.memory import tensor_bytes
from syncflow.engine.engine import Engine, bundled_model
from syncflow.engine.quantization import _torchao, converted, is_quantized, quantized, stored_bytes
from syncflow.engine.runtime.pytorch import PlainTorchDenoiser
from syncflow.engine.types import Request

from .model_cases import SMALL, passes, randomised
from .model_cases import inputs as model_inputs

INT8 = "int8_weight_only"
PROMPT = "a large red rubber ball"
SHORT = {"seconds": 0.5, "steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(quantization=INT8, device="cpu")


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_the_linear_layers_of_blocks_have_8_bits_and_all_else_is_shared():
    model = randomised(SMALL)
    made = quantized(model)
    own = dict(model.named_parameters())
    changed = {name for name, tensor in made.named_parameters() if tensor is not own[name]}
    assert changed == {
        name
        for name, layer in model.named_parameters()
        if layer.ndim == 2
        and name.endswith(".weight")
        and ("_blocks." in name or ".layers." in name or "adaptors." in name)
    }
    assert not is_quantized(model)
    for name in changed:
        weight, found = own[name], made.get_parameter(name)
        steps = weight.abs().amax(1, keepdim=True) / 127.5
        assert ((found.dequantize() - weight).abs() <= 0.51 * steps).all(), name
        assert stored_bytes(found) == weight.numel() + 5 * len(weight)  # the scale in float32, the zero point in 8 bits


@pytest.mark.parametrize("runtime", ["torch", "torch-plain"])
def test_velocities_of_a_small_model(runtime):
    model = randomised(SMALL)
    made = quantized(model)
    denoiser = made if runtime == "torch" else PlainTorchDenoiser(made)
    with torch.inference_mode():
        found = [
            torch.cat([one.video_pass(video)[0].flatten(), one.audio_pass(audio)[0].flatten()])
            for one in (denoiser, model)
            for video, audio in [passes(made if one is denoiser else model, model_inputs())]
        ]
    assert 1e-4 < off(*found) < 0.03


def test_a_tensor_takes_the_form_of_another():
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    assert converted(weight, weight) is weight
    assert converted(weight, torch.empty(0, dtype=torch.bfloat16)).dtype == torch.bfloat16
    blocks = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 6)})])})
    form = quantized(blocks.to(torch.bfloat16)).get_parameter("blocks.0.fc.weight")
    assert form.dtype == converted(weight, form).dtype == torch.bfloat16
    assert off(converted(weight, form).dequantize().float(), weight) < 0.02


@pytest.mark.slow
def test_the_bundled_model_takes_less_memory_and_draws_nearly_the_same(engine):
    exact = Engine.from_pretrained(runtime="torch", device="cpu")
    assert engine.describe()["quantization"] == INT8
    assert engine.describe()["runtime"] == "torch"
    assert engine.describe()["weight_bytes"] < 0.6 * exact.describe()["weight_bytes"]
    assert tensor_bytes(engine.components.ddit) < 0.32 * tensor_bytes(exact.components.ddit)
    video, audio = quantization.velocity_errors(exact, engine, Request(PROMPT, **SHORT))
    assert 1e-4 < video < 0.05
    assert 1e-4 < audio < 0.05
    frames = [one.generate(PROMPT, **SHORT).frames.astype(float) for one in (exact, engine)]
    assert 10 * np.log10(255**2 / np.mean((frames[0] - frames[1]) ** 2)) > 40


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["36MB", "1GiB"])
def test_under_a_budget_clips_are_the_same_to_the_bit(engine, budget):
    in_turn = Engine.from_pretrained(quantization=INT8, memory=budget, device="cpu")
    assert sum(in_turn.memory_plan.weights.values()) == engine.describe()["weight_bytes"]
    for _ in range(2):
        clip, expected = in_turn.generate(PROMPT, **SHORT), engine.generate(PROMPT, **SHORT)
        assert np.array_equal(clip.frames, expected.frames)
        assert np.array_equal(clip.waveform, expected.waveform)


@pytest.mark.slow
@pytest.mark.parametrize("model", memory.MODELS)
def test_its_memory_is_predicted(model):
    assert abs(memory.measure(model, 1, INT8).error) < 0.1


@pytest.mark.slow
def test_what_is_refused(engine, tmp_path, monkeypatch):
    refused = {
        "quantization is a setting of the runtimes torch and torch-plain; this one is native": {"runtime": "native"},
        "quantization and fp8 exclude each other": {"fp8": True},
        "quantization is 'int4'; it must be one of int8_weight_only, or None": {"quantization": "int4"},
    }
    for sentence, settings in refused.items():
        with pytest.raises(ValueError, match=sentence):
            Engine.from_pretrained(device="cpu", **{"quantization": INT8, **settings})
    with pytest.raises(ValueError, match="quantized weights are not saved"):
        engine.components.save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    _torchao.cache_clear()
    with pytest.raises(ValueError, match="quantization needs torchao; install it with pip install 'syncflow"):
        Engine(Components.load(bundled_model()), quantization=INT8)
    _torchao.cache_clear()
