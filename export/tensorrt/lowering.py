"""A graph in the form that TensorRT takes: bytes at its edges alone.

Layout is changed before the last Cast, and lengths are asked of what the first Cast gives. The numbers stay the same.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

BYTES = ir.DataType.UINT8
LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
LENGTHS = ("Shape", "Size")


def lower(path: Path) -> None:
    """Rewrite the ONNX graph in a file where it must be; weights beside it stay as they are."""
    model = ir.load(path)
    casts = [node for node in model.graph if node.op_type == "Cast"]
    changed = [_ask_after(node) if _bytes(node.inputs[0]) else _layout_before(node) for node in casts]
    if any(changed):
        ir.save(model, path)


def _ask_after(cast: ir.Node) -> bool:
    """Let the lengths of an input of bytes be asked of what a Cast makes of it. -> whether any were."""
    source, graph = cast.inputs[0], cast.graph
    assert source is not None and isinstance(graph, ir.Graph)
    asking = [(node, i) for node, i in source.uses() if node.op_type in LENGTHS]
    if not asking or not source.is_graph_input():
        return False
    graph.remove(cast)
    graph.insert_before(graph[0], cast)
    for node, i in asking:
        node.replace_input_with(i, cast.outputs[0])
    return True


def _layout_before(cast: ir.Node) -> bool:
    """Let the changes of layout that follow a Cast to bytes come before it. -> whether there were any."""
    made, graph = cast.outputs[0], cast.graph
    assert isinstance(graph, ir.Graph)
    uses = made.uses()
    if not _bytes(made) or made.is_graph_output() or len(uses) != 1:
        return False
    ((layout, place),) = uses
    if layout.op_type not in LAYOUT or place != 0:
        return False
    given = layout.outputs[0]
    last = ir.Value(name=given.name, type=given.type, shape=given.shape)
    ir.convenience.replace_all_uses_with(given, last, replace_graph_outputs=True)
    source = cast.inputs[0]
    layout.replace_input_with(0, source)
    given.name, given.type = f"{last.name}/uncast", None if source is None else source.type
    after = ir.node("Cast", [given], {"to": BYTES}, outputs=[last], name=cast.name)
    graph.remove(cast, safe=True)
    graph.insert_after(layout, after)
    return _layout_before(after) or True


def _bytes(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == BYTES
