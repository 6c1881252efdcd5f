"""Inputs and outputs of an ONNX file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from ...engine.exports import TensorSpec

TensorSpecs = dict[str, TensorSpec]


def read_specs(path: Path) -> tuple[TensorSpecs, TensorSpecs]:
    """The inputs and the outputs of a graph, by name, in order; weights beside the file are not read."""
    graph = onnx.load(path, load_external_data=False).graph
    return _specs(graph.input), _specs(graph.output)


def _specs(values: Iterable[onnx.ValueInfoProto]) -> TensorSpecs:
    return {value.name: _spec(value.type.tensor_type) for value in values}


def _spec(tensor: onnx.TypeProto.Tensor) -> TensorSpec:
    lengths = tuple(length.dim_param or length.dim_value for length in tensor.shape.dim)
    return TensorSpec(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, lengths)
