"""The libraries that run exported graphs: their requirements, installed versions, and how each loads an export."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ...exports import Device, Export, ExportLocations, Format, Precision
from ...model import DDiT
from .. import aoti, onnxruntime, openvino, tensorrt
from ..exported import GraphDenoiser
from ..pytorch import DTYPES


@dataclass(frozen=True)
class Library:
    """The requirements of a runtime: format of its graphs, Python module, extra that installs it, and devices."""

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
    """A denoiser that runs an export of ``model``. Raises ``ValueError`` if it is damaged or cannot run here."""
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
    """A string that identifies the installed library of a runtime, without importing it.

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


def usable_runtimes(export: Export, device: Device, precision: Precision) -> list[str]:
    """The installed runtimes that can compute an export on a device in a precision."""
    suitable = [
        name
        for name, library in LIBRARIES.items()
        if library.format == export.format
        and device in library.devices
        and export.device in ("any", device)
        and export.precision == stored_precision(name, precision)
    ]
    installed = []
    for name in suitable:
        with suppress(ValueError):
            version_of(name)
            installed.append(name)
    return installed


def stored_precision(runtime: str, precision: Precision) -> Precision:
    """The precision of the graphs that a runtime reads to compute in ``precision``: OpenVINO converts by itself."""
    return "float32" if runtime == "openvino" else precision


def export_for(runtime: str, model: DDiT, locations: ExportLocations, precision: Precision) -> Export:
    """The export of a model for a runtime. Raises ``ValueError`` if there is none or it cannot be read."""
    library, device = LIBRARIES[runtime], device_of(model)
    if device not in library.devices:
        raise ValueError(f"the runtime {runtime} does not work on {device}; it works on {', '.join(library.devices)}")
    folder = locations.find(library.format, device, stored_precision(runtime, precision))
    if folder is None:
        package = f" {shlex.quote(str(locations.package))}" if locations.package else ""
        gpu = " --device cuda" if library.devices == ("cuda",) else ""
        command = f"syncflow export{package} --to {library.format}{gpu}"
        raise ValueError(f"the runtime {runtime} needs exported graphs, and there are none; `{command}` writes them")
    return Export.read(folder, locations.model)


def device_of(model: DDiT) -> Device:
    """The type of the device on which a model is."""
    return "cuda" if model.device.type == "cuda" else "cpu"
