"""Graphs that AOTInductor compiled to machine code, which is loaded only from files that match their checksums."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from ..exports import Export, GraphSpec
from .exported import Run, Sessions, Tensors


def sessions(export: Export, device: torch.device) -> Sessions:
    """Compiled graphs. Raises ``ValueError`` if they were compiled for another torch, device or processor."""
    made_with, here = export.versions.get("torch", "no torch"), torch.__version__
    if made_with != here:
        raise ValueError(f"{export.path} was compiled by torch {made_with}, and this is {here}; export it anew")
    if export.machine != machine(device):
        raise ValueError(f"{export.path} was compiled for {export.machine}, and this is {machine(device)}")

    def load(spec: GraphSpec, path: Path) -> Run:
        model = torch._inductor.aoti_load_package(os.fspath(path))

        def run(inputs: Tensors) -> Tensors:
            outputs = model(*(inputs[name].contiguous() for name in spec.inputs))
            return dict(zip(spec.outputs, outputs, strict=True))

        return run

    return Sessions(export, load, {"torch": torch.__version__, "machine": export.machine})


def machine(device: torch.device) -> str:
    """The instruction set for which code is compiled here, of the CPU or of the GPU."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
