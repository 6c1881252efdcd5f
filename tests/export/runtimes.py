"""Exported graphs in the runtimes that the tests hold against the references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from syncflow.engine.runtime.openvino import compile_graph

Run = Callable[[Mapping[str, Tensor]], list[Tensor]]
Load = Callable[[Path], Run]


@cache
def onnxruntime(path: Path) -> Run:
    """The graph in ONNX Runtime on the CPU, loaded once."""
    library = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    options = library.SessionOptions()
    options.intra_op_num_threads = 1
    session = library.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return [torch.from_numpy(y) for y in session.run(None, {name: inputs[name].numpy() for name in names})]

    return run


@cache
def openvino(path: Path) -> Run:
    """The graph in OpenVINO on the CPU, in float32, loaded once."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    compiled = compile_graph(path, {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    names = [value.any_name for value in compiled.inputs]

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        found = compiled({name: inputs[name].numpy() for name in names})
        return [torch.from_numpy(np.array(found[output])) for output in compiled.outputs]

    return run


RUNTIMES: dict[str, Load] = {"onnxruntime": onnxruntime, "openvino": openvino}


def largest_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest deviation from ``exact``, relative to its largest element; infinite where anything is not finite."""
    assert [y.shape for y in found] == [y.shape for y in exact]
    if not all(y.isfinite().all() for y in found):
        return float("inf")
    pairs = [(y.double(), x) for y, x in zip(found, exact, strict=True) if x.numel()]
    return max((((y - x).abs().max() / x.abs().max().clamp(1e-30)).item() for y, x in pairs), default=0.0)
