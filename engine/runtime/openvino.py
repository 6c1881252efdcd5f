"""ONNX graphs in OpenVINO, on the processors that it knows best: Intel's and other x86."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import torch

from ..exports import Export, GraphSpec, Precision, cache_folder
from .graphs import Tensors
from .sessions import Run, Sessions

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def sessions(export: Export, precision: Precision = "float32", *, threads: int | None = None) -> Sessions:
    """Compiled graphs that compute in ``precision``, whatever the type of their tensors.

    ``threads`` are PyTorch's by default. What OpenVINO compiles is kept in the user's cache, where it can be written.
    """
    import openvino

    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
    }
    core = openvino.Core()
    cache = cache_folder() / export.model / "openvino"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        core.set_property({"CACHE_DIR": os.fspath(cache)})
    except OSError:
        pass

    def load(spec: GraphSpec, path: Path) -> Run:
        compiled = core.compile_model(path, "CPU", settings)
        of_thread = threading.local()

        def run(inputs: Tensors) -> Tensors:
            if not hasattr(of_thread, "request"):
                of_thread.request = compiled.create_infer_request()
            feed = {name: inputs[name].contiguous().numpy() for name in spec.inputs}
            found = of_thread.request.infer(feed, share_inputs=True)
            return {name: torch.from_numpy(found[i]) for i, name in enumerate(spec.outputs)}

        return run

    return Sessions(export, load, {"openvino": openvino.__version__, **settings})
