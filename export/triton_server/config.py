"""Configurations of models (``config.pbtxt``): names, types and lengths of what a model takes and gives."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ...engine.exports import GraphSpec, TensorSpec
from .fields import INPUTS, OUTPUTS, REQUIRED, Field

TYPES = {
    "bfloat16": "TYPE_BF16",
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
}
DEFAULT_FILE = "model.onnx"


def pipeline_config(name: str, runtime: str) -> str:
    """Of the model that makes clips, in the Python backend; ``runtime`` computes its passes."""
    inputs = [_tensor("input", key, field, optional=key != REQUIRED) for key, field in INPUTS.items()]
    outputs = [_tensor("output", key, field) for key, field in OUTPUTS.items()]
    return "".join(
        [
            f'name: {_string(name)}\nbackend: "python"\nmax_batch_size: 0\n',
            *inputs,
            *outputs,
            "instance_group [{ count: 1 kind: KIND_AUTO }]\n",
            f'parameters {{ key: "runtime" value {{ string_value: {_string(runtime)} }} }}\n',
            "model_transaction_policy { decoupled: false }\n",
        ]
    )


def graph_config(name: str, spec: GraphSpec) -> str:
    """Of an ONNX graph in the ONNX Runtime backend. Its rows are an axis like any other, so Triton batches nothing."""
    inputs = [_tensor("input", key, field) for key, field in _fields(spec.inputs).items()]
    outputs = [_tensor("output", key, field) for key, field in _fields(spec.outputs).items()]
    head = (
        f'name: {_string(name)}\nbackend: "onnxruntime"\ndefault_model_filename: "{DEFAULT_FILE}"\nmax_batch_size: 0\n'
    )
    return "".join([head, *inputs, *outputs, "instance_group [{ count: 1 kind: KIND_AUTO }]\n"])


def _fields(specs: Mapping[str, TensorSpec]) -> dict[str, Field]:
    return {
        name: Field(TYPES[spec.dtype], tuple(length if isinstance(length, int) else -1 for length in spec.shape))
        for name, spec in specs.items()
    }


def _tensor(kind: str, name: str, field: Field, *, optional: bool = False) -> str:
    also = " optional: true" if optional else ""
    return f"{kind} [{{ name: {_string(name)} data_type: {field.type} dims: {[*field.dims]}{also} }}]\n"


def _string(text: str) -> str:
    return json.dumps(text)
