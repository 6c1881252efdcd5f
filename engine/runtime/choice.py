"""Who computes the passes: PyTorch, the native part, or another runtime with the graphs that were exported for it.

``auto`` takes the fastest runtime that is installed and that ``syncflow verify`` found right, in the version that is
installed, on this kind of device, and faster than what needs no export; else that: the native part for small models in
float32 on a CPU, PyTorch otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from typing import cast as typed

from ..exports import STEP, Device, Export, Format, Places, Precision, Proof
from ..model import DDiT
from ..model.denoiser import Denoiser
from . import aoti, onnxruntime, openvino, tensorrt
from .assemble import assemble
from .codecs import through
from .delegate import describe
from .graphs import GraphDenoiser, graph_names
from .native import NativeDDiT, objection, pays
from .precision import DTYPES, cast
from .sessions import Sessions


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
    "tensorrt-graphed": Library("tensorrt", "tensorrt", "gpu", ("cuda",)),
}
OF_TORCH = {"torch": "eager", "graphed": "graphed", "compiled": "compiled"}
RUNTIMES = ("auto", *OF_TORCH, "native", *LIBRARIES)


@dataclass(frozen=True)
class Chosen:
    """A denoiser, the name of its runtime and why it is this one; ``others`` says why it is none of them.

    ``proof`` is what ``syncflow verify`` found of the runtime, if it was asked.
    """

    denoiser: Denoiser
    runtime: str
    why: str
    proof: Proof | None = None
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def codecs(self) -> tuple[str, ...]:
        """Graphs of codecs and text encoder that this runtime was found to compute rightly, and faster than PyTorch."""
        proof = self.proof
        if proof is None or not isinstance(self.denoiser, GraphDenoiser):
            return ()
        graphs = set(proof.errors) - set(graph_names(self.denoiser.config))
        return tuple(sorted(name for name in graphs if proof.holds([name]) and proof.speed(name) > 1))

    def code(self, parts: Any) -> Any:
        """``Components`` whose codecs and text encoder are computed by this runtime where that was found to pay."""
        if not isinstance(self.denoiser, GraphDenoiser) or not isinstance(self.denoiser.run, Sessions):
            return parts
        graphs = self.denoiser.run.export.graphs
        return through(parts, self.denoiser.run, {name: graphs[name] for name in self.codecs})

    def describe(self) -> dict[str, Any]:
        """What runs and why, with its settings, and why others do not."""
        found: dict[str, Any] = {"runtime": self.runtime, "why": self.why}
        if isinstance(self.denoiser, GraphDenoiser) and isinstance(self.denoiser.run, Sessions):
            run = self.denoiser.run
            found |= {**run.settings, "graphs": str(run.export.path), "codecs": list(self.codecs)}
        else:
            found |= describe(self.denoiser)
        return found | ({"others": dict(self.others)} if self.others else {})


def choose(runtime: str, model: DDiT, places: Places, precision: str = "float32") -> Chosen:
    """Who computes the passes of ``model``, whose exports lie in ``places``, on the device where it is.

    Raises ``ValueError`` for a runtime or precision that there is not, or whose library, device or graphs are missing,
    or that was found wrong.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime is {runtime!r}; it must be one of {', '.join(RUNTIMES)}")
    if precision not in DTYPES:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(DTYPES)}")
    wanted = typed("Precision", precision)
    if runtime == "auto":
        return _automatic(model, places, wanted)
    if runtime in LIBRARIES:
        export = _export(runtime, model, places, wanted)
        proof = export.proof(runtime, _device(model), wanted)
        if proof is not None and (fault := _fault(proof, model)):
            raise ValueError(f"the runtime {runtime} computes this model wrongly in {precision}: {fault}")
        return Chosen(load(runtime, export, model, wanted), runtime, "it was asked for", proof)
    if runtime == "native":
        return Chosen(NativeDDiT(cast(model, DTYPES[precision])), runtime, "it was asked for")
    return Chosen(assemble(model, OF_TORCH[runtime], dtype=precision), runtime, "it was asked for")


def without_exports(model: DDiT, precision: Precision = "float32") -> tuple[str, Denoiser]:
    """The faster of the runtimes that need no graphs: its name, and the model in it."""
    model = cast(model, DTYPES[precision])
    if pays(model.config) and not objection(model):
        return "native", NativeDDiT(model)
    return "torch", model


def load(runtime: str, export: Export, model: DDiT, precision: Precision) -> GraphDenoiser:
    """The graphs of an export in place of a model. Raises ``ValueError`` for a damaged one, or no way to run it."""
    version_of(runtime)
    if runtime == "aoti":
        run = aoti.sessions(export, model.device)
    elif runtime == "openvino":
        run = openvino.sessions(export, precision)
    elif runtime.startswith("tensorrt"):
        run = tensorrt.sessions(export, model.device, recorded=runtime == "tensorrt-graphed")
    else:
        run = onnxruntime.sessions(export, model.device, runtime)
    silence = model.silence if model.config.bridge == "global_local" else None
    dtype = DTYPES[export.precision]
    return GraphDenoiser(model.config, run, model.null_text, silence, device=model.device, dtype=dtype)


def version_of(runtime: str) -> str:
    """The version of a runtime's library. Raises ``ValueError`` where it is not installed."""
    library = LIBRARIES[runtime]
    try:
        return str(import_module(library.module).__version__)
    except ImportError:
        raise ValueError(
            f"the runtime {runtime} needs {library.module}; install it with `pip install syncflow[{library.extra}]`"
        ) from None


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


def _automatic(model: DDiT, places: Places, precision: Precision) -> Chosen:
    proofs: dict[str, tuple[Export, Proof]] = {}
    others: dict[str, str] = {}
    for runtime in LIBRARIES:
        try:
            export = _export(runtime, model, places, precision)
            proof = export.proof(runtime, _device(model), precision)
            others[runtime] = _objection(proof, runtime, model)
        except ValueError as error:
            others[runtime] = str(error)
            continue
        if proof is not None and not others[runtime]:
            proofs[runtime] = export, proof
    for runtime, (export, proof) in sorted(proofs.items(), key=lambda item: -item[1][1].speed()):
        here, otherwise = proof.seconds[STEP]
        why = f"the fastest that was verified: {1000 * here:.3g} ms a step, {1000 * otherwise:.3g} without exports"
        try:
            loaded = load(runtime, export, model, precision)
        except ValueError as error:
            others[runtime] = str(error)
            warnings.warn(f"{error}; the next best runtime is taken", stacklevel=2)
            continue
        slower = {name: f"{1000 * p.seconds[STEP][0]:.3g} ms a step" for name, (_, p) in proofs.items()}
        rest = {name: said or slower[name] for name, said in others.items() if name != runtime}
        return Chosen(loaded, runtime, why, proof, rest)
    runtime, denoiser = without_exports(model, precision)
    return Chosen(denoiser, runtime, "no other runtime was verified to be faster", None, others)


def _objection(proof: Proof | None, runtime: str, model: DDiT) -> str:
    """Why a runtime is not taken without being asked for; nothing if it may be.

    Raises ``ValueError`` where its library is missing, which is imported for no other runtime than one that may be.
    """
    if proof is None:
        return "not verified on this kind of device; `syncflow verify` does it"
    if fault := _fault(proof, model):
        return fault
    if proof.speed() <= 1:
        return "not faster than what needs no export"
    installed = version_of(runtime)
    if proof.version != installed:
        return f"version {proof.version} was verified, and {installed} is installed; run `syncflow verify` again"
    return ""


def _fault(proof: Proof, model: DDiT) -> str:
    """What is wrong with a runtime; nothing if all graphs of the model are right."""
    wrong = [name for name in graph_names(model.config) if not proof.holds([name])]
    if not wrong:
        return ""
    error = proof.errors.get(wrong[0])
    return f"{wrong[0]} " + ("fails" if error is None else f"is off by {error:.1e}, more than {proof.bound:g}")


def _export(runtime: str, model: DDiT, places: Places, precision: Precision) -> Export:
    library, device = LIBRARIES[runtime], _device(model)
    if device not in library.devices:
        raise ValueError(f"the runtime {runtime} does not work on {device}; it works on {', '.join(library.devices)}")
    folder = places.find(library.format, device, stored_precision(runtime, precision))
    if folder is None:
        command = f"syncflow export --to {library.format}" + (" --device cuda" if library.devices == ("cuda",) else "")
        raise ValueError(f"the runtime {runtime} needs exported graphs, and there are none; `{command}` writes them")
    return Export.read(folder, places.model)


def _device(model: DDiT) -> Device:
    return "cuda" if model.device.type == "cuda" else "cpu"
