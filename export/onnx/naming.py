"""Names that say where everything comes from: the module, the operation, the operator.

``tower.spatial_blocks.0.attn.qkv/linear/Gemm`` is the product in that layer, and what it computes is called the same.
Weights keep the names that they have in the module. A small constant is called by its value, as ``int64([3, -1, 16])``,
a larger one by the input that it is, as ``tower/modulated_layer_norm/LayerNormalization.Scale``.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Mapping

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from .tensors import OPSET

SCOPES = "pkg.torch.onnx.name_scopes"  # where torch.onnx notes the modules that a node is in, and its own name
NOWHERE = ("", "_empty_nn_module_stack_from_metadata_hook")  # its modules for what no module computes
SMALL = 8  # elements


def name_lengths(model: ir.Model, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Call symbolic lengths by the names of ``dynamic``, in the inputs and where the outputs depend on them."""
    shapes = {value.name: value.shape for value in model.graph.inputs}
    names = {str(_length(shapes[name], axis)): label for name, axes in dynamic.items() for axis, label in axes.items()}

    def named(length: int | ir.SymbolicDim) -> int | str:
        if isinstance(length, int):
            return length
        return re.sub(r"\w+", lambda symbol: names.get(symbol[0], symbol[0]), str(length))

    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = None if value.shape is None else ir.Shape([named(length) for length in value.shape])


def name_all(graph: ir.Graph, weights: Collection[str]) -> None:
    """Name the nodes, the values between them, and the initializers that are none of the ``weights``."""
    taken: Counter[str] = Counter()
    fixed = {value.name for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        base = _place(node)
        taken[base] += 1
        node.name = base if taken[base] == 1 else f"{base}_{taken[base]}"
        for i, value in enumerate(node.outputs):
            if value.name not in fixed:
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}.{i}"
    for value in list(graph.initializers.values()):
        if value.name not in weights:
            value.name = _constant_name(value)


def forget_origins(model: ir.Model) -> None:
    """Leave out what torch.onnx notes of the source: lines of code, paths, and symbols of its own in shapes."""
    common.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for value in (value for node in graph for value in node.outputs):
        value.metadata_props.clear()
        if not value.is_graph_output():
            value.shape = None


def _place(node: ir.Node) -> str:
    if node.op_type == "Shape" and node.inputs[0] is not None and node.inputs[0].is_graph_input():
        return f"length/{_length(node.inputs[0].shape, node.attributes.get_int('start', 0))}"
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    return "/".join((*(scope for scope in scopes[-2:] if scope not in NOWHERE), node.op_type))


def _constant_name(value: ir.Value) -> str:
    tensor, (node, index) = value.const_value, next(iter(value.uses()))
    if tensor is not None and tensor.size <= SMALL:
        return f"{tensor.dtype.numpy()}({tensor.numpy().tolist()})"
    formal = onnx.defs.get_schema(node.op_type, OPSET, node.domain).inputs
    return f"{node.name}.{formal[min(index, len(formal) - 1)].name}"


def _length(shape: ir.Shape | None, axis: int) -> int | ir.SymbolicDim | None:
    return None if shape is None else shape[axis]
