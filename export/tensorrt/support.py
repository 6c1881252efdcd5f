"""Whether TensorRT takes a graph: every operator, type and restriction, read off the file before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import helper

from .operators import (
    AT_THE_EDGE,
    DATA_DEPENDENT,
    LENGTHS,
    MAX_RANK,
    OPERATOR_SETS,
    RESTRICTIONS,
    SINCE,
    TYPES,
)

RELEASE = ".".join(map(str, SINCE))
NATIVE = {"tensor(bool)", "tensor(int32)", "tensor(int64)"}  # of indices, lengths and masks, which every operator takes


def faults_of(path: Path) -> list[str]:
    """What TensorRT does not take of the ONNX graph in a file, a sentence each with the node; nothing if it takes all.

    Weights beside the file are not read.
    """
    model = onnx.load(path, load_external_data=False)
    sets = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    version = sets.pop("ai.onnx", 0)
    if version not in OPERATOR_SETS:
        known = f"{OPERATOR_SETS.start} to {OPERATOR_SETS.stop - 1}"
        return [f"{path.name} is in operator set {version}; TensorRT {RELEASE} takes {known}"]
    return list(_Graph(onnx.shape_inference.infer_shapes(model).graph, version).faults())


class _Graph:
    """A graph with what is known of its values: types, ranks, the nodes that compute them."""

    def __init__(self, graph: onnx.GraphProto, version: int) -> None:
        self.graph, self.version = graph, version
        self.inputs = {value.name for value in graph.input}
        self.edge = self.inputs | {value.name for value in graph.output}
        self.maker = {name: node for node in graph.node for name in node.output if name}
        self.weights = {weight.name for weight in graph.initializer}
        self.types = {weight.name: _type(weight.data_type) for weight in graph.initializer}
        self.ranks: dict[str, int] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self.types[value.name] = _type(tensor.elem_type)
            if tensor.HasField("shape"):
                self.ranks[value.name] = len(tensor.shape.dim)

    def faults(self) -> Iterator[str]:
        for node in self.graph.node:
            called = f"node {node.name!r} is {_article(node.op_type)}"
            if node.domain not in ("", "ai.onnx"):
                yield f"{called} of {node.domain}; TensorRT takes standard operators"
            elif node.op_type in DATA_DEPENDENT:
                yield f"{called}, whose output is as long as its data make it; lengths must follow from those of inputs"
            elif node.op_type not in TYPES:
                yield f"{called}, which TensorRT {RELEASE} does not take, or not in every form"
            else:
                yield from (f"{called} {said}" for said in (*self._types(node), *self._restrictions(node)))

    def _types(self, node: onnx.NodeProto) -> Iterator[str]:
        """Faults of the tensors that a node computes."""
        allowed = TYPES[node.op_type]
        schema = onnx.defs.get_schema(node.op_type, self.version)
        checked = {
            constraint.type_param_str
            for constraint in schema.type_constraints
            if not NATIVE.issuperset(constraint.allowed_type_strs)
        }
        for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
            for i, name in enumerate(names):
                kind = self.types.get(name)
                if name and formals[min(i, len(formals) - 1)].type_str in checked:
                    if kind is None:
                        yield f"of {name!r}, whose type is not known"
                    elif kind not in allowed:
                        yield f"of {kind}; TensorRT takes {', '.join(sorted(allowed))} there"
                    elif kind == AT_THE_EDGE and name not in self.edge:
                        yield f"of {kind}, which TensorRT takes in inputs and outputs of the graph alone"
                if self.ranks.get(name, 0) > MAX_RANK:
                    yield f"of {self.ranks[name]} axes; TensorRT takes at most {MAX_RANK}"

    def _restrictions(self, node: onnx.NodeProto) -> Iterator[str]:
        rule = RESTRICTIONS.get(node.op_type)
        if rule is not None:
            used = [i for i, name in enumerate(node.input) if name]
            for i in rule.constant:
                if i in used and not self._constant(node.input[i]):
                    yield f"with a computed input {i}; TensorRT takes a constant there"
            for name, allowed in rule.attributes.items():
                value = self._attribute(node, name)
                if value is not None and value not in allowed:
                    yield f"with {name} {value!r}; TensorRT takes {' or '.join(map(repr, allowed))}"
            if rule.inputs is not None and used and used[-1] >= rule.inputs:
                yield f"with input {used[-1]}; TensorRT takes the first {rule.inputs}"
            if rule.rank is not None and (
                odd := [i for i in used if self.ranks.get(node.input[i]) not in (None, rule.rank)]
            ):
                yield f"whose input {odd[0]} has {self.ranks[node.input[odd[0]]]} axes; TensorRT takes {rule.rank}"
            if rule.outputs is not None and any(node.output[rule.outputs :]):
                yield f"with {len(node.output)} outputs; TensorRT gives {rule.outputs}"
        for i in LENGTHS.get(node.op_type, ()):
            if i < len(node.input) and (source := self._data(node.input[i])):
                yield f"whose length follows from what {source!r} holds; it must follow from lengths of inputs"

    def _constant(self, name: str) -> bool:
        return name in self.weights or (name in self.maker and self.maker[name].op_type == "Constant")

    def _attribute(self, node: onnx.NodeProto, name: str) -> object:
        """Its value, or its default; None where neither is."""
        given = {attribute.name: attribute for attribute in node.attribute}
        default = onnx.defs.get_schema(node.op_type, self.version).attributes
        attribute = given.get(name) or (default[name].default_value if name in default else None)
        if attribute is None or not attribute.type:
            return None
        value = helper.get_attribute_value(attribute)
        return value.decode() if isinstance(value, bytes) else value

    def _data(self, name: str) -> str:
        """The input of the graph whose values a length follows from; nothing if it follows from lengths."""
        seen, waiting = set(), [name]
        while waiting:
            name = waiting.pop()
            if name in self.inputs:
                return name
            if not name or name in seen or name not in self.maker:
                continue
            seen.add(name)
            node = self.maker[name]
            if node.op_type not in ("Shape", "Size"):
                waiting.extend(node.input)
        return ""


def _type(number: int) -> str:
    """``float32`` of ONNX's FLOAT."""
    name = onnx.TensorProto.DataType.Name(number).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _article(operator: str) -> str:
    return f"{'an' if operator[0] in 'AEIO' else 'a'} {operator}"
