"""ONNX graphs in ONNX Runtime: on a CPU, on a GPU with its CUDA kernels, or compiled by TensorRT.

Inputs and outputs are bound without copies, so cached texts and contexts cost no extra time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..exports import Export, GraphSpec, cache_folder
from .exported import Run, Sessions, Tensors

FATAL = 4  # of ONNX Runtime's severities of messages
SPIN = "50"  # us for which a thread spins: longer than most operators, and short for other threads of the core
BFLOAT16 = 16  # numpy has no bfloat16; this is its number in ONNX
ELEMENTS = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: BFLOAT16,
    torch.int64: np.int64,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}
Provider = tuple[str, dict[str, Any]]
PROVIDERS = {"onnxruntime": {"cpu": "CPU", "cuda": "CUDA"}, "onnxruntime-tensorrt": {"cuda": "Tensorrt"}}


def sessions(
    export: Export, device: torch.device, runtime: str = "onnxruntime", *, threads: int | None = None
) -> Sessions:
    """Sessions of a ``runtime``: ``onnxruntime`` or ``onnxruntime-tensorrt``.

    ``threads`` on a CPU are PyTorch's by default. Raises ``ValueError`` if the installed ONNX Runtime does not support
    the device.
    """
    import onnxruntime as ort

    provider = f"{PROVIDERS[runtime].get(device.type)}ExecutionProvider"
    if provider not in ort.get_available_providers():
        raise ValueError(f"this ONNX Runtime has no {provider}; it has {', '.join(ort.get_available_providers())}")
    providers = _providers(provider, device, export)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = FATAL  # errors are raised as exceptions, and need no message on stderr
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN)
    options.add_session_config_entry("session.force_spinning_stop", "1")  # graphs alternate with PyTorch

    def load(spec: GraphSpec, path: Path) -> Run:
        session = ort.InferenceSession(os.fspath(path), options, providers=providers)

        def run(inputs: Tensors) -> Tensors:
            binding = session.io_binding()
            contiguous = [inputs[name].contiguous() for name in spec.inputs]  # kept alive until the graph has run
            for name, x in zip(spec.inputs, contiguous, strict=True):
                binding.bind_input(name, device.type, device.index or 0, ELEMENTS[x.dtype], x.shape, x.data_ptr())
            for name in spec.outputs:
                binding.bind_output(name, device.type, device.index or 0)
            session.run_with_iobinding(binding)
            return dict(zip(spec.outputs, map(torch.from_dlpack, binding.get_outputs()), strict=True))

        return run

    settings = {"onnxruntime": ort.__version__, "provider": provider}
    if device.type == "cpu":
        settings["threads"] = options.intra_op_num_threads
    return Sessions(export, load, settings)


def _providers(provider: str, device: torch.device, export: Export) -> list[Provider]:
    """The execution providers, the preferred one first; later ones compute the operators that it does not support."""
    cpu: Provider = ("CPUExecutionProvider", {})
    if device.type == "cpu":
        return [cpu]
    common = {"device_id": device.index or 0, "user_compute_stream": str(torch.cuda.current_stream(device).cuda_stream)}
    cuda: Provider = ("CUDAExecutionProvider", common | {"use_tf32": 0})
    if provider.startswith("CUDA"):
        return [cuda, cpu]
    cache = cache_folder() / export.model / "tensorrt"
    caches = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": os.fspath(cache),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": os.fspath(cache),
    }
    return [("TensorrtExecutionProvider", common | caches), cuda, cpu]
