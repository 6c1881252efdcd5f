"""What an ONNX file takes and gives."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from ...engine.exports import Port

Ports = dict[str, Port]


def read_ports(path: Path) -> tuple[Ports, Ports]:
    """The inputs and the outputs of a graph, by name, in order; weights beside the file are not read."""
    graph = onnx.load(path, load_external_data=False).graph
    return _ports(graph.input), _ports(graph.output)


def _ports(values: Iterable[onnx.ValueInfoProto]) -> Ports:
    return {value.name: _port(value.type.tensor_type) for value in values}


def _port(tensor: onnx.TypeProto.Tensor) -> Port:
    lengths = tuple(length.dim_param or length.dim_value for length in tensor.shape.dim)
    return Port(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, lengths)
