"""Graphs in OpenVINO: each load compiles anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from syncflow.engine.exports import Axis, Export, GraphSpec, Port
from syncflow.engine.package import sha256

pytest.importorskip("openvino")
pytest.importorskip("onnxscript")

from syncflow.engine.runtime import openvino
from syncflow.export.onnx import export_graph


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 16), nn.LayerNorm(16)).eval()


@pytest.fixture
def export(graph, tmp_path):
    example = {"x": torch.randn(3, 16)}
    export_graph(graph, example, {"x": {0: "R"}}, ("y",), tmp_path / "layers.onnx")
    spec = GraphSpec(
        "layers.onnx", {"x": Port("float32", ("R", 16))}, {"y": Port("float32", ("R", 16))}, {"R": Axis(1, None, 3)}
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
    assert settings["INFERENCE_PRECISION_HINT"] == "bf16" and settings["INFERENCE_NUM_THREADS"] == 1
