"""Graphs in OpenVINO: each load compiles anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncflow.engine.exports import Axis, Export, GraphSpec, TensorSpec
from syncflow.engine.package import sha256

pytest.importorskip("openvino")
pytest.importorskip("onnxscript")

import onnx
from openvino import Core

from syncflow.engine.runtime import openvino
from syncflow.export.onnx import export_graph

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 16), nn.LayerNorm(16)).eval()


@pytest.fixture
def export(graph, tmp_path):
    example = {"x": torch.randn(3, 16)}
    export_graph(graph, example, {"x": {0: "R"}}, ("y",), tmp_path / "layers.onnx")
    spec = GraphSpec(
        "layers.onnx",
        {"x": TensorSpec("float32", ("R", 16))},
        {"y": TensorSpec("float32", ("R", 16))},
        {"R": Axis(1, None, 3)},
    )
    checksums = {"layers.onnx": sha256(tmp_path / "layers.onnx")}
    return Export(tmp_path, "0" * 64, "onnx", "any", "float32", {"layers": spec}, {}, checksums)


def test_each_load_compiles_anew(export, graph, tmp_path, monkeypatch):
    """Nothing is kept for the next: of version 2026.4 what came out of its cache computed something else."""
    monkeypatch.setenv("SYNCFLOW_CACHE", str(tmp_path / "cache"))
    x = torch.randn(5, 16)
    with torch.inference_mode():
        expected = graph(x)
    for _ in range(2):
        found = openvino.sessions(export)("layers", {"x": x})["y"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "cache").exists()


def test_what_it_was_told(export):
    settings = openvino.sessions(export, "bfloat16", threads=1).settings
    assert settings["INFERENCE_PRECISION_HINT"] == openvino.PRECISIONS[openvino.inference_precision("bfloat16")]
    assert settings["INFERENCE_NUM_THREADS"] == 1


@pytest.mark.parametrize("precision", openvino.PRECISIONS)
def test_the_precision_that_is_told_is_the_one_computed_in(export, precision):
    """A compiled graph says that it computes in the type it was told: float32 where the processor lacks another."""
    settings = openvino.sessions(export, precision).settings
    hint = {"INFERENCE_PRECISION_HINT": settings["INFERENCE_PRECISION_HINT"]}
    compiled = openvino.compile_graph(export.path / "layers.onnx", hint)
    computed_in = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    assert computed_in == openvino.PRECISIONS[openvino.inference_precision(precision)]
    assert settings["computes_in"] == openvino.inference_precision(precision)


ATTENTION = """<ir_version: 10, opset_import: ["": 23]>
attention ({0}[B, N, 8] q, {0}[B, 8, M] k, {0}[B, M, 8] v) => ({0}[B, N, 8] y)
{{ scores = MatMul(q, k) weights = Softmax<axis = -1>(scores) y = MatMul(weights, v) }}"""


@pytest.fixture
def attention(tmp_path):
    """An ONNX file: a softmax between two matrix products, in a type."""

    def write(dtype):
        file = tmp_path / f"{dtype}.onnx"
        onnx.save(onnx.parser.parse_model(ATTENTION.format(dtype)), file)
        return file

    return write


@pytest.mark.parametrize(("dtype", "tolerance"), [("float", 1e-5), ("float16", 4e-3)])
@pytest.mark.parametrize("keys", [7, 8, 33, 64])
def test_attention_after_a_run_with_one_key(attention, dtype, tolerance, keys):
    """Of version 2026.4 the kernel of a graph whose first run has one key is wrong from 8 keys on (AVX2)."""
    compiled = openvino.compile_graph(attention(dtype), {"INFERENCE_PRECISION_HINT": "f32"})
    generator = torch.Generator().manual_seed(keys)
    for length in (1, keys):
        shapes = ((3, 5, 8), (3, 8, length), (3, length, 8))
        q, k, v = (torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for shape in shapes)
        found = torch.from_numpy(compiled([q.numpy(), k.numpy(), v.numpy()])[0])
        expected = (q.double() @ k.double()).softmax(-1) @ v.double()
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_a_sum_before_the_softmax_changes_no_bit(attention):
    """Where both are right: as the first run of a graph."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.compile_graph(attention("float"), settings)
    plain = Core().compile_model(attention("float"), "CPU", settings)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator).numpy() for shape in ((3, 5, 8), (3, 8, 33), (3, 33, 8)))
    q[0, 0] = 0
    assert (compiled([q, k, v])[0] == plain([q, k, v])[0]).all()
