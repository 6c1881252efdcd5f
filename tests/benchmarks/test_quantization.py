"""The command that measures the error of weights in 8 bits."""

from __future__ import annotations

import pytest

from syncflow.benchmarks import quantization
from syncflow.engine.engine import Engine
from syncflow.engine.types import Request


@pytest.mark.slow
def test_a_model_beside_itself_has_no_error():
    engine = Engine.from_pretrained(runtime="torch", device="cpu")
    assert quantization.velocity_errors(engine, engine, Request("a ball", steps=2, seconds=0.5)) == (0.0, 0.0)


@pytest.mark.slow
def test_the_error_of_the_bundled_model():
    found = quantization.measure("tiny", steps=2)
    assert found.quantized < 0.6 * found.weights
    assert 1e-4 < found.video < 0.05 and 1e-4 < found.audio < 0.05
    assert found.frames_db is not None and found.frames_db > 40
    assert f"{found.frames_db:.1f} dB" in quantization.table([found])
    assert found.to_dict()["model"] == "tiny"
