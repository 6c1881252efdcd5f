"""Who computes the passes: PyTorch, the native part, or another runtime with the graphs that were exported for it.

On a CPU ``auto`` times a step of the model's own clip in every runtime that is there, once (``calibration.py``), and
takes the fastest: PyTorch's own operations, the C++ operations behind PyTorch, whole blocks in C++, and the exported
graphs that ``syncflow verify`` found right on this processor. Where nothing can be timed, and on a GPU, it goes by what
``syncflow verify`` measured and by a rule.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from typing import cast as typed

import torch

from ...kernels import native
from ...kernels.launch import current_implementation
from ..exports import STEP, Export, Places, Precision, Proof
from ..model import DDiT
from ..model.denoiser import Denoiser
from . import calibration, libraries
from .assemble import assemble
from .calibration import Calibration, Key, calibrated
from .codecs import through
from .delegate import describe
from .exported import GraphDenoiser, graph_names
from .libraries import LIBRARIES, device_of, export_for
from .native import VECTORS, NativeDDiT, objection, pays
from .plain import PlainTorchDenoiser
from .precision import DTYPES, cast
from .processor import processor
from .sessions import Sessions
from .timing import Times, Workload, race

OF_TORCH = {"torch": "eager", "graphed": "graphed", "compiled": "compiled"}
RUNTIMES = ("auto", *OF_TORCH, "torch-plain", "native", *LIBRARIES)
ASKED = "it was asked for"

Makers = dict[str, Callable[[], Denoiser]]


@dataclass(frozen=True)
class Chosen:
    """A denoiser, the name of its runtime and why it is this one; ``others`` says why it is none of them.

    ``proof`` is what ``syncflow verify`` found of the runtime on this processor, if it was asked; ``calibration`` what
    was timed, if the choice was made by that.
    """

    denoiser: Denoiser
    runtime: str
    why: str
    proof: Proof | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None

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
        """What runs and why, with its settings, what a step took where it was timed, and why others do not run."""
        found: dict[str, Any] = {"runtime": self.runtime, "why": self.why}
        if isinstance(self.denoiser, GraphDenoiser) and isinstance(self.denoiser.run, Sessions):
            run = self.denoiser.run
            found |= {**run.settings, "graphs": str(run.export.path), "codecs": list(self.codecs)}
        else:
            found |= describe(self.denoiser)
        if self.calibration is not None:
            found |= {"step_ms": self.calibration.milliseconds(), "timed": self.calibration.describe()}
        return found | ({"others": dict(self.others)} if self.others else {})


def choose(
    runtime: str,
    model: DDiT,
    places: Places,
    precision: str = "float32",
    workload: Workload | None = None,
    *,
    renew: bool = False,
) -> Chosen:
    """Who computes the passes of ``model``, whose exports lie in ``places``, on the device where it is.

    ``workload`` is the step that ``auto`` may time on a CPU; ``renew`` times it anew, whatever is known. Raises
    ``ValueError`` for a runtime or precision that there is not, or whose library, device or graphs are missing, or that
    was found wrong.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime is {runtime!r}; it must be one of {', '.join(RUNTIMES)}")
    if precision not in DTYPES:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(DTYPES)}")
    wanted = typed("Precision", precision)
    if runtime == "auto":
        return _automatic(model, places, wanted, workload, renew=renew)
    if runtime in LIBRARIES:
        export = export_for(runtime, model, places, wanted)
        proof = _proof(export, runtime, model, wanted)
        if proof is not None and (fault := _fault(proof, model)):
            raise ValueError(f"the runtime {runtime} computes this model wrongly in {precision}: {fault}")
        return Chosen(libraries.load(runtime, export, model, wanted), runtime, ASKED, proof)
    if runtime == "native":
        return Chosen(NativeDDiT(cast(model, DTYPES[precision])), runtime, ASKED)
    if runtime == "torch-plain":
        return Chosen(PlainTorchDenoiser(cast(model, DTYPES[precision])), runtime, ASKED)
    return Chosen(assemble(model, OF_TORCH[runtime], dtype=precision), runtime, ASKED)


def without_exports(model: DDiT, precision: Precision = "float32") -> tuple[str, Denoiser]:
    """What is taken of the runtimes that need no graphs where nothing is timed: its name, and the model in it."""
    model = cast(model, DTYPES[precision])
    makers = _makers(model)
    name = "torch"
    if "native" in makers and pays(model.config):
        name = "native"
    elif "torch-plain" in makers and native.instructions() not in VECTORS:
        name = "torch-plain"
    return name, makers[name]()


def _makers(model: DDiT) -> Makers:
    """The runtimes that need no export, the safest first. Without the C++ operations PyTorch is ``torch`` alone."""
    makers: Makers = {"torch": lambda: model}
    if native.EXTENSION is not None and model.device.type == "cpu" and model.dtype == torch.float32:
        makers = {"torch-plain": lambda: PlainTorchDenoiser(model), **makers}
        if not objection(model):
            makers["native"] = lambda: NativeDDiT(model)
    return makers


def _automatic(model: DDiT, places: Places, precision: Precision, workload: Workload | None, *, renew: bool) -> Chosen:
    verified: dict[str, tuple[Export, Proof]] = {}
    others: dict[str, str] = {}
    for runtime in LIBRARIES:
        try:
            export = export_for(runtime, model, places, precision)
            proof = _proof(export, runtime, model, precision)
            others[runtime] = _unverified(export, proof, runtime, model, precision)
        except ValueError as error:
            others[runtime] = str(error)
            continue
        if proof is not None and not others[runtime]:
            verified[runtime] = export, proof
    if workload is None or device_of(model) != "cpu":
        return _by_rule(model, precision, verified, others)
    if why := _untimed(model, workload):
        return _by_rule(model, precision, verified, others, f"not timed: {why}")
    return _by_time(model, places, precision, workload, verified, others, renew=renew)


def _untimed(model: DDiT, workload: Workload) -> str:
    """Why nothing is timed, nothing if it may be."""
    if not calibration.enabled():
        return "SYNCFLOW_CALIBRATION is off"
    if (chosen := current_implementation()) != "auto":
        return f"the operations are those of SYNCFLOW_KERNELS={chosen}"
    return workload.objection(model.config)


def _by_time(
    model: DDiT,
    places: Places,
    precision: Precision,
    workload: Workload,
    verified: Mapping[str, tuple[Export, Proof]],
    others: dict[str, str],
    *,
    renew: bool,
) -> Chosen:
    """The fastest of what is there, by times that are known or measured now."""
    makers, exports = _makers(cast(model, DTYPES[precision])), {}
    for runtime, (export, proof) in verified.items():
        try:
            exports[runtime] = f"{libraries.fingerprint(runtime)} {_fingerprint(export, proof)}"
        except ValueError as error:
            others[runtime] = str(error)
            continue
        makers[runtime] = partial(_load, runtime, export, proof, model, precision)
    if len(makers) == 1:
        (only,) = makers
        return Chosen(makers[only](), only, "there is no other runtime here", None, others)
    shape = _hash({"ddit": model.config.to_dict(), "sequence": workload.sequence.to_dict()})
    key = Key.here(places.model or shape, precision, tuple(makers), exports)
    made: dict[str, Denoiser] = {}

    def measure() -> Times:
        times, denoisers = race(makers, workload)
        made.update(denoisers)
        return times

    found = calibrated(key, measure, renew=renew)
    if found.times.stopped:
        return _by_rule(model, precision, verified, others, f"not timed: {found.times.stopped}")
    failed = {name: f"could not be timed on {found.date}: {said}" for name, said in found.times.failures.items()}
    others = others | failed
    for runtime in found.ranking():
        try:
            denoiser = made[runtime] if runtime in made else makers[runtime]()
        except ValueError as error:
            others[runtime] = _passed_by(error)
            continue
        timed = {name: others.get(name) or f"{ms:.3g} ms a step" for name, ms in found.milliseconds().items()}
        rest = {name: said for name, said in (others | timed).items() if name != runtime}
        found_of = verified[runtime][1] if runtime in verified else None
        return Chosen(denoiser, runtime, _reason(found, runtime), found_of, rest, found)
    raise AssertionError("one runtime needs no files")


def _reason(found: Calibration, runtime: str) -> str:
    """Why a runtime was taken, with its time."""
    times = found.milliseconds()
    fastest = next(iter(times))
    where = f"the fastest of {len(times)} that were timed on this machine"
    if runtime == fastest:
        return f"{where}: {times[runtime]:.3g} ms a step"
    return f"{times[runtime]:.3g} ms a step; {where} is {fastest}, {times[fastest]:.3g} ms"


def _by_rule(
    model: DDiT,
    precision: Precision,
    verified: Mapping[str, tuple[Export, Proof]],
    others: dict[str, str],
    untimed: str = "",
) -> Chosen:
    """The fastest by what ``syncflow verify`` measured, else what is usually the fastest without exports."""
    faster: dict[str, tuple[Export, Proof]] = {}
    for runtime, (export, proof) in verified.items():
        try:
            others[runtime] = _stale(runtime, proof) if proof.speed() > 1 else "not faster than what needs no export"
        except ValueError as error:
            others[runtime] = str(error)
        if not others[runtime]:
            faster[runtime] = export, proof
    note = f"; {untimed}" if untimed else ""
    for runtime, (export, proof) in sorted(faster.items(), key=lambda item: -item[1][1].speed()):
        here, otherwise = proof.seconds[STEP]
        why = f"the fastest that was verified: {1000 * here:.3g} ms a step, {1000 * otherwise:.3g} without exports"
        try:
            loaded = libraries.load(runtime, export, model, precision)
        except ValueError as error:
            others[runtime] = _passed_by(error)
            continue
        slower = {name: f"{1000 * p.seconds[STEP][0]:.3g} ms a step" for name, (_, p) in faster.items()}
        rest = {name: said or slower[name] for name, said in others.items() if name != runtime}
        return Chosen(loaded, runtime, why + note, proof, rest)
    runtime, denoiser = without_exports(model, precision)
    return Chosen(denoiser, runtime, f"no other runtime was verified to be faster{note}", None, others)


def _load(runtime: str, export: Export, proof: Proof, model: DDiT, precision: Precision) -> Denoiser:
    """A verified export. Raises ``ValueError`` for one that cannot be loaded or needs to be verified again."""
    if why := _stale(runtime, proof):
        raise ValueError(why)
    return libraries.load(runtime, export, model, precision)


def _passed_by(error: ValueError) -> str:
    warnings.warn(f"{error}; the next best runtime is taken", stacklevel=2)
    return str(error)


def _proof(export: Export, runtime: str, model: DDiT, precision: Precision) -> Proof | None:
    """What was found of a runtime on this processor."""
    return export.proof(runtime, device_of(model), precision, str(processor(model.device)))


def _unverified(export: Export, proof: Proof | None, runtime: str, model: DDiT, precision: Precision) -> str:
    """Why a runtime may not be taken without being asked for; nothing if it was found right on this processor."""
    if proof is None:
        places = export.elsewhere(runtime, device_of(model), precision, str(processor(model.device)))
        if places:
            return f"verified on {places[0] or 'an unknown processor'}, not on this one; run `syncflow verify` here"
        return "not verified on this kind of device; `syncflow verify` does it"
    return _fault(proof, model)


def _stale(runtime: str, proof: Proof) -> str:
    """What is said of a runtime that was verified in another version; nothing of one that was verified in this.

    Imports the library. Raises ``ValueError`` where it is missing.
    """
    installed = libraries.version_of(runtime)
    if proof.version == installed:
        return ""
    return f"version {proof.version} was verified, and {installed} is installed; run `syncflow verify` again"


def _fault(proof: Proof, model: DDiT) -> str:
    """What is wrong with a runtime; nothing if all graphs of the model are right."""
    wrong = [name for name in graph_names(model.config) if not proof.holds([name])]
    if not wrong:
        return ""
    error = proof.errors.get(wrong[0])
    return f"{wrong[0]} " + ("fails" if error is None else f"is off by {error:.1e}, more than {proof.bound:g}")


def _fingerprint(export: Export, proof: Proof) -> str:
    """Of the files of an export as they lie there, and of the version that was verified."""
    files = {name: export.path / name for name in export.checksums}
    changed = {name: file.stat().st_mtime_ns if file.is_file() else None for name, file in files.items()}
    return f"{proof.version} {_hash([dict(export.checksums), changed])[:16]}"


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
