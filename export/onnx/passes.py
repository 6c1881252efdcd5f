"""Passes over a graph that the libraries lack: each makes something stand there once, in the form that is needed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

SHAPE_KEEPING = ("Gelu", "LayerNormalization", "RMSNormalization")


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


def drop_reshapes(graph: ir.Graph) -> None:
    """Of reshapes in a row leave the last, and none that gives a value the shape that it has.

    Constants and lengths must have been shared: shapes are known to be the same where they are one value. A shape with
    a 0 asks for a length of what is shaped, and is left alone; of the free lengths only the first may be 0 in a run.
    """
    for node in list(graph):
        if node.op_type != "Reshape" or _asks(node.inputs[1]):
            continue
        while (before := _producer(node.inputs[0], "Reshape")) is not None:
            node.replace_input_with(0, before.inputs[0])
        source = node.inputs[0]
        if source is not None and _has(source, node.inputs[1]) and not node.outputs[0].is_graph_output():
            _replace(graph, node, source)


def _asks(shape: ir.Value | None) -> bool:
    """Whether there is a 0 among the constants of a shape."""
    joined = _producer(shape, "Concat")
    tensor = None if shape is None else ir.convenience.get_const_tensor(shape)
    return any(map(_asks, joined.inputs)) if joined is not None else tensor is not None and not tensor.numpy().all()


def _has(value: ir.Value, shape: ir.Value | None) -> bool:
    """Whether a value, or that of which it is made element by element, came in a shape out of a Reshape or a Gemm."""
    node = value.producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type == "Reshape":
        return node.inputs[1] is shape
    if node.op_type == "Gemm":
        rows, weight = None if shape is None else ir.convenience.get_const_tensor(shape), node.inputs[1]
        assert weight is not None and weight.shape is not None
        columns = weight.shape[0 if node.attributes.get_int("transB", 0) else 1]
        return rows is not None and rows.numpy().tolist() == [-1, columns]
    return node.op_type in SHAPE_KEEPING and _has(node.inputs[0], shape)


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
