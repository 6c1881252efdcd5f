"""Passes over a graph that the libraries lack: each makes something stand there once, in the form that is needed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir


def fold_transposes(graph: ir.Graph) -> frozenset[str]:
    """Store weights that are turned on their way to a product as they are needed, as ``<name>.T``.

    A weight is turned when it is written; until then only its shape matters. -> the names of all weights.
    """
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        tensor = weight.const_value if weight is not None and weight.is_initializer() else None
        if weight is None or tensor is None or len(tensor.shape) != 2:
            continue
        name = f"{weight.name}.T"
        turned = graph.initializers.get(name)
        if turned is None:
            turned = ir.Value(name=name, const_value=_turned(tensor, name))
            graph.register_initializer(turned)
        _replace(graph, node, turned)
    return frozenset(graph.initializers)


def _turned(tensor: ir.TensorProtocol, name: str) -> ir.LazyTensor:
    rows, columns = tensor.shape.numpy()

    def turn() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy().T), dtype=tensor.dtype)

    return ir.LazyTensor(turn, dtype=tensor.dtype, shape=ir.Shape((columns, rows)), name=name)


def share_constants(graph: ir.Graph, weights: Collection[str]) -> None:
    """Hold every constant once that is none of the ``weights``."""
    kept: dict[tuple[ir.DataType, Sequence[int], bytes], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or name in weights:
            continue
        first = kept.setdefault((tensor.dtype, tensor.shape.numpy(), tensor.tobytes()), value)
        if first is not value:
            ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[name]


def share_lengths(graph: ir.Graph) -> None:
    """Ask once for the length that a symbol stands for, of whichever value has it first.

    A length that was made a scalar and is a vector again is the one that it was.
    """
    first: dict[str, ir.Value] = {}
    for node in list(graph):
        symbol = _symbol_asked(node)
        length = _length_regained(node) if symbol is None else first.setdefault(symbol, node.outputs[0])
        if length is not None and length is not node.outputs[0]:
            _replace(graph, node, length)


def _symbol_asked(node: ir.Node) -> str | None:
    """The symbol of the one axis that a Shape asks for."""
    shape = node.inputs[0].shape if node.op_type == "Shape" and node.inputs[0] is not None else None
    if shape is None:
        return None
    asked = shape[node.attributes.get_int("start", 0) : node.attributes.get_int("end")]
    return str(asked[0]) if len(asked) == 1 else None


def _length_regained(node: ir.Node) -> ir.Value | None:
    """What Shape gave, of a Reshape to (1,) of its Squeeze."""
    if node.op_type != "Reshape" or node.inputs[1] is None:
        return None
    shape, scalar = ir.convenience.get_const_tensor(node.inputs[1]), _producer(node.inputs[0], "Squeeze")
    if shape is None or shape.size != 1 or scalar is None:
        return None
    return scalar.inputs[0] if _producer(scalar.inputs[0], "Shape") is not None else None


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    graph.remove(node, safe=True)
