"""The libraries that run exported graphs: what each needs, which of them are installed, how one is loaded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ..exports import Device, Export, ExportLocations, Format, Precision
from ..model import DDiT
from . import aoti, onnxruntime, openvino, tensorrt
from .exported import GraphDenoiser
from .precision import DTYPES


@dataclass(frozen=True)
class Library:
    """What a runtime needs: a format of graphs, a module to import, the extra that brings it, a device."""

    format: Format
    module: str
    extra: str
    devices: tuple[Device, ...]


LIBRARIES: dict[str, Library] = {
    "onnxruntime": Library("onnx", "onnxruntime", "onnxruntime", ("cpu", "cuda")),
    "onnxruntime-tensorrt": Library("onnx", "onnxruntime", "gpu", ("cuda",)),
    "openvino": Library("onnx", "openvino", "openvino", ("cpu",)),
    "aoti": Library("aoti", "torch", "", ("cpu", "cuda")),
    "tensorrt": Library("tensorrt", "tensorrt", "gpu", ("cuda",)),
    "tensorrt-cuda-graphs": Library("tensorrt", "tensorrt", "gpu", ("cuda",)),
}


def load(runtime: str, export: Export, model: DDiT, precision: Precision) -> GraphDenoiser:
    """The graphs of an export in place of a model. Raises ``ValueError`` for a damaged one, or no way to run it."""
    version_of(runtime)
    if runtime == "aoti":
        run = aoti.sessions(export, model.device)
    elif runtime == "openvino":
        run = openvino.sessions(export, precision)
    elif runtime.startswith("tensorrt"):
        run = tensorrt.sessions(export, model.device, cuda_graphs=runtime == "tensorrt-cuda-graphs")
    else:
        run = onnxruntime.sessions(export, model.device, runtime)
    silence = model.silence if model.config.bridge == "global_local" else None
    dtype = DTYPES[export.precision]
    return GraphDenoiser(model.config, run, model.null_text, silence, device=model.device, dtype=dtype)


def version_of(runtime: str) -> str:
    """The version of a runtime's library. Raises ``ValueError`` where it is not installed."""
    try:
        return str(import_module(LIBRARIES[runtime].module).__version__)
    except ImportError:
        raise ValueError(_missing(runtime)) from None


def fingerprint(runtime: str) -> str:
    """What tells this installation of a runtime's library from another, without importing it.

    Raises ``ValueError`` where it is not installed.
    """
    spec = find_spec(LIBRARIES[runtime].module)
    if spec is None:
        raise ValueError(_missing(runtime))
    file = Path(spec.origin or "")
    return f"{file} {file.stat().st_mtime_ns}" if file.is_file() else str(file)


def _missing(runtime: str) -> str:
    library = LIBRARIES[runtime]
    return f"the runtime {runtime} needs {library.module}; install it with `pip install syncflow[{library.extra}]`"


def able(export: Export, device: Device, precision: Precision) -> list[str]:
    """The runtimes that are installed and can compute an export on a device in a precision."""
    fitting = [
        name
        for name, library in LIBRARIES.items()
        if library.format == export.format
        and device in library.devices
        and export.device in ("any", device)
        and export.precision == stored_precision(name, precision)
    ]
    found = []
    for name in fitting:
        with suppress(ValueError):
            version_of(name)
            found.append(name)
    return found


def stored_precision(runtime: str, precision: Precision) -> Precision:
    """That of the graphs with which a runtime computes in some precision: OpenVINO rounds by itself."""
    return "float32" if runtime == "openvino" else precision


def export_for(runtime: str, model: DDiT, locations: ExportLocations, precision: Precision) -> Export:
    """The export of a model that a runtime computes. Raises ``ValueError`` where there is none or it cannot be read."""
    library, device = LIBRARIES[runtime], device_of(model)
    if device not in library.devices:
        raise ValueError(f"the runtime {runtime} does not work on {device}; it works on {', '.join(library.devices)}")
    folder = locations.find(library.format, device, stored_precision(runtime, precision))
    if folder is None:
        command = f"syncflow export --to {library.format}" + (" --device cuda" if library.devices == ("cuda",) else "")
        raise ValueError(f"the runtime {runtime} needs exported graphs, and there are none; `{command}` writes them")
    return Export.read(folder, locations.model)


def device_of(model: DDiT) -> Device:
    """The kind of device on which a model is."""
    return "cuda" if model.device.type == "cuda" else "cpu"
