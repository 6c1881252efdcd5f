"""ONNX graphs in OpenVINO, on the processors that it knows best: Intel's and other x86."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..exports import Export, GraphSpec, Precision
from .exported import Tensors
from .sessions import Run, Sessions

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16"}
# Flow times are angles that need all digits, and codecs are never rounded.
ROUNDED = ("prepare_text", "denoise_", "adapt_video", "embed_reference")
TINY, TINY_FLOAT16 = 2.0**-126, 2.0**-24  # added to scores of their type they change no softmax, yet are not zero


def compile_graph(path: Path, settings: Mapping[str, Any]) -> Any:
    """An ONNX file as an ``openvino.CompiledModel`` for the CPU, with OpenVINO's ``settings``.

    OpenVINO 2026.4 makes one kernel of a softmax between two matrix products. If its first run has a single key, it is
    wrong in every later run that has at least as many keys as a vector has lanes. A sum before the softmax, in the same
    kernel, avoids this; adding :data:`TINY` costs no time and changes no bit of the result.
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
    """What OpenVINO computes in on this processor when it is asked for ``precision``: float32 where that is lacking."""
    import openvino

    if precision == "float32":
        return precision
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return precision if CAPABILITIES[precision] in capabilities else "float32"


def sessions(export: Export, precision: Precision = "float32", *, threads: int | None = None) -> Sessions:
    """Compiled graphs, those of the towers and their text in ``precision``, whatever the type of their tensors.

    A processor without the type computes in float32 (:func:`inference_precision`). ``threads`` are PyTorch's by
    default. OpenVINO's own cache stays off: of version 2026.4 a graph that came from there
    computes something else.
    """
    import openvino

    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
    }

    def load(spec: GraphSpec, path: Path) -> Run:
        exact = {} if path.stem.startswith(ROUNDED) else {"INFERENCE_PRECISION_HINT": PRECISIONS["float32"]}
        compiled = compile_graph(path, settings | exact)
        of_thread = threading.local()

        def run(inputs: Tensors) -> Tensors:
            if not hasattr(of_thread, "request"):
                of_thread.request = compiled.create_infer_request()
            feed = {name: inputs[name].contiguous().numpy() for name in spec.inputs}
            found = of_thread.request.infer(feed, share_inputs=True)
            return {name: torch.from_numpy(found[i]) for i, name in enumerate(spec.outputs)}

        return run

    told = {"openvino": openvino.__version__, "computes_in": inference_precision(precision), **settings}
    return Sessions(export, load, told)
