"""ONNX graphs in OpenVINO, on the processors that it knows best: Intel's and other x86."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from ..exports import Export, GraphSpec, Precision
from .graphs import Tensors
from .sessions import Run, Sessions

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
ROUNDED = ("prepare_text", "denoise_")  # flow times are angles that need all digits, and codecs are never rounded


def sessions(export: Export, precision: Precision = "float32", *, threads: int | None = None) -> Sessions:
    """Compiled graphs, those of the towers and their text in ``precision``, whatever the type of their tensors.

    ``threads`` are PyTorch's by default. OpenVINO's own cache stays off: of version 2026.4 a graph that came from there
    computes something else.
    """
    import openvino

    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
    }
    core = openvino.Core()

    def load(spec: GraphSpec, path: Path) -> Run:
        exact = {} if path.stem.startswith(ROUNDED) else {"INFERENCE_PRECISION_HINT": PRECISIONS["float32"]}
        compiled = core.compile_model(path, "CPU", settings | exact)
        of_thread = threading.local()

        def run(inputs: Tensors) -> Tensors:
            if not hasattr(of_thread, "request"):
                of_thread.request = compiled.create_infer_request()
            feed = {name: inputs[name].contiguous().numpy() for name in spec.inputs}
            found = of_thread.request.infer(feed, share_inputs=True)
            return {name: torch.from_numpy(found[i]) for i, name in enumerate(spec.outputs)}

        return run

    return Sessions(export, load, {"openvino": openvino.__version__, **settings})
