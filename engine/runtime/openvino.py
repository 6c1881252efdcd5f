"""ONNX graphs in OpenVINO, on x86 processors."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..exports import Export, GraphSpec, Precision
from .exported import Run, Sessions, Tensors

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16"}
# Not flow times, whose angles need float32, and not codecs.
REDUCED_PRECISION = ("prepare_text", "denoise_", "adapt_video", "embed_reference")
TINY, TINY_FLOAT16 = 2.0**-126, 2.0**-24  # nonzero, and too small to change a softmax of scores of that type


def compile_graph(path: Path, settings: Mapping[str, Any]) -> Any:
    """An ONNX file as an ``openvino.CompiledModel`` for the CPU, with OpenVINO's ``settings``.

    OpenVINO 2026.4 fuses a softmax between two matrix products into one kernel. If the first run has a single key, the
    kernel is wrong in every later run with at least as many keys as a vector has lanes. An addition before the softmax,
    in the same kernel, avoids this; adding :data:`TINY` costs no time and changes no bit of the result.
    """
    import openvino
    from openvino import opset13 as ops

    core = openvino.Core()
    model = core.read_model(path)
    for softmax in model.get_ops():
        scores = softmax.input_value(0) if softmax.get_type_name() == "Softmax" else None
        if scores is not None and scores.get_node().get_type_name() != "Add":
            dtype = scores.get_element_type()
            tiny = ops.constant(TINY_FLOAT16 if dtype == openvino.Type.f16 else TINY, dtype)
            softmax.input(0).replace_source_output(ops.add(scores, tiny).output(0))
    return core.compile_model(model, "CPU", dict(settings))


def inference_precision(precision: Precision) -> Precision:
    """The precision in which OpenVINO is told to compute on this processor: float32 where ``precision`` is missing.

    Left to itself it would take bfloat16 for float16 where the processor has only that.
    """
    import openvino

    if precision == "float32":
        return precision
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return precision if CAPABILITIES[precision] in capabilities else "float32"


def sessions(export: Export, precision: Precision = "float32", *, threads: int | None = None) -> Sessions:
    """Compiled graphs, those of the towers and their text in ``precision``, whatever the type of their tensors.

    A processor without that type computes in float32 (:func:`inference_precision`). ``threads`` are PyTorch's by
    default. OpenVINO's own cache stays off: version 2026.4 computes wrong results with graphs from it.
    """
    import openvino

    computes_in = inference_precision(precision)
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISIONS[computes_in],
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
    }

    def load(spec: GraphSpec, path: Path) -> Run:
        exact = {} if path.stem.startswith(REDUCED_PRECISION) else {"INFERENCE_PRECISION_HINT": PRECISIONS["float32"]}
        compiled = compile_graph(path, settings | exact)
        thread_local = threading.local()

        def run(inputs: Tensors) -> Tensors:
            if not hasattr(thread_local, "request"):
                thread_local.request = compiled.create_infer_request()
            feed = {name: inputs[name].contiguous().numpy() for name in spec.inputs}
            outputs = thread_local.request.infer(feed, share_inputs=True)
            return {name: torch.from_numpy(outputs[i]) for i, name in enumerate(spec.outputs)}

        return run

    description = {"openvino": openvino.__version__, "computes_in": computes_in, **settings}
    return Sessions(export, load, description)
