"""The choice of a runtime: PyTorch, the C++ part, or a library with graphs that were exported from the model.

On a CPU ``auto`` times a step of the model's own clip in every candidate once (``calibration.py``) and takes the
fastest: PyTorch's own operations, the C++ operations behind PyTorch, whole blocks in C++, and the exported graphs that
``syncflow verify`` found correct on this processor. On a GPU, and where nothing can be timed, it follows a rule: the
fastest exported graphs by the times of ``syncflow verify``, or else the default of the device.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ....kernels import native
from ....kernels.launch import current_implementation
from ...config import DDiTConfig
from ...exports import STEP, Export, ExportLocations, Precision, VerificationResult
from ...model import DDiT
from ...model.denoiser import Denoiser
from ..block_offload import offload_blocks
from ..codecs import with_graph_codecs
from ..delegate import Delegate, describe
from ..exported import GraphDenoiser, Sessions, graph_names, without_weights
from ..fp8 import has_fp8_linears
from ..native import VECTORS, NativeDDiT, is_expected_fastest, unsupported_reason
from ..pytorch import DTYPES, PlainTorchDenoiser, cast, torch_denoiser
from . import calibration, libraries
from .calibration import Calibration, CalibrationKey, load_or_measure
from .libraries import LIBRARIES, device_of, export_for
from .processor import processor
from .settings import ComputeDevice, TorchOptions, resolve_settings
from .timing import StepTimes, Workload, time_denoisers

RUNTIMES = ("auto", "torch", "compiled", "torch-plain", "native", *LIBRARIES)
REQUESTED = "it was asked for"

Factories = dict[str, Callable[[], Denoiser]]


@dataclass(frozen=True)
class RuntimeChoice:
    """A denoiser, the name of its runtime and the reason for it; ``others`` has the reason against each other runtime.

    ``overlap``: the sampling loop runs the towers on two streams. ``verification`` is the result of ``syncflow verify``
    for an exported runtime on this processor; ``calibration`` the times on which the choice is based, if any.
    """

    denoiser: Denoiser
    runtime: str
    why: str
    verification: VerificationResult | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None
    overlap: bool = False

    @property
    def codecs(self) -> tuple[str, ...]:
        """The graphs of codecs and text encoder that were verified as correct and faster than PyTorch."""
        result = self.verification
        if result is None or not isinstance(self.denoiser, GraphDenoiser):
            return ()
        graphs = set(result.errors) - set(graph_names(self.denoiser.config))
        return tuple(sorted(name for name in graphs if result.within_bound([name]) and result.speedup(name) > 1))

    def with_codecs(self, components: Any) -> Any:
        """``Components`` whose codecs and text encoder run as graphs, as far as :attr:`codecs` names them."""
        if not isinstance(self.denoiser, GraphDenoiser) or not isinstance(self.denoiser.run, Sessions):
            return components
        graphs = self.denoiser.run.export.graphs
        return with_graph_codecs(components, self.denoiser.run, {name: graphs[name] for name in self.codecs})

    def describe(self) -> dict[str, Any]:
        """The runtime, its options, the reason for it, the times of steps, and the reasons against the others."""
        description: dict[str, Any] = {"runtime": self.runtime, "why": self.why}
        if isinstance(self.denoiser, GraphDenoiser) and isinstance(self.denoiser.run, Sessions):
            run = self.denoiser.run
            description |= {**run.settings, "graphs": str(run.export.path), "codecs": list(self.codecs)}
        else:
            description |= describe(self.denoiser) | {"overlap": self.overlap}
        if self.calibration is not None:
            description |= {"step_ms": self.calibration.milliseconds(), "timed": self.calibration.describe()}
        return description | ({"others": dict(self.others)} if self.others else {})


@dataclass(frozen=True)
class _Task:
    """A model on a device, its exports, and the precision and options in which it is to be computed."""

    model: DDiT
    device: ComputeDevice
    locations: ExportLocations
    precision: Precision
    options: TorchOptions

    def result_of(self, export: Export, runtime: str) -> VerificationResult | None:
        """What ``syncflow verify`` found of a runtime on this processor."""
        return export.find_result(runtime, device_of(self.model), self.precision, str(processor(self.model.device)))

    def load(self, runtime: str, export: Export, result: VerificationResult) -> Denoiser:
        """The denoiser of an export. Raises ``ValueError`` if it does not load or was verified in another version."""
        if mismatch := _version_mismatch(runtime, result):
            raise ValueError(mismatch)
        return libraries.load(runtime, export, self.model, self.precision)


Verified = Mapping[str, tuple[Export, VerificationResult]]


def choose(
    runtime: str,
    model: DDiT,
    locations: ExportLocations,
    precision: str = "auto",
    workload: Workload | None = None,
    *,
    options: TorchOptions | None = None,
    renew: bool = False,
) -> RuntimeChoice:
    """The runtime that computes the passes of ``model``, whose exports lie in ``locations``, on the model's device.

    ``precision`` and ``options`` as in ``settings.py``. ``workload`` is the step that ``auto`` may time on a CPU;
    ``renew`` times it again even if its times are known. Raises ``ValueError`` for an unknown runtime or precision, an
    option that does not apply, a missing library, device or export, and a runtime that was verified as wrong.
    """
    _check_runtime(runtime)
    task = _task(runtime, model, locations, precision, options or TorchOptions())
    if runtime == "auto":
        exports_excluded = (options or TorchOptions()).requested
        return _choose_automatically(task, workload, exports_excluded, renew=renew)
    if runtime in LIBRARIES:
        export = export_for(runtime, model, locations, task.precision)
        result = task.result_of(export, runtime)
        if result is not None and (error := _verified_error(result, model)):
            raise ValueError(f"the runtime {runtime} computes this model wrongly in {task.precision}: {error}")
        return RuntimeChoice(libraries.load(runtime, export, model, task.precision), runtime, REQUESTED, result)
    if runtime == "native":
        return RuntimeChoice(NativeDDiT(cast(model, DTYPES[task.precision])), runtime, REQUESTED)
    if runtime == "torch-plain":
        return RuntimeChoice(PlainTorchDenoiser(cast(model, DTYPES[task.precision])), runtime, REQUESTED)
    denoiser = torch_denoiser(model, task.precision, task.options, compiled=runtime == "compiled")
    return RuntimeChoice(denoiser, runtime, REQUESTED, overlap=bool(task.options.overlap))


def choose_without_exports(model: DDiT, precision: str = "auto") -> RuntimeChoice:
    """The default where there are no exports and nothing is timed."""
    return _default(_task("auto", model, ExportLocations(None, ""), precision, TorchOptions()))


def in_precision(
    runtime: str, model: DDiT, device: torch.device, precision: str, options: TorchOptions
) -> tuple[DDiT, Precision]:
    """``model`` on ``device`` in the type in which ``runtime`` computes it, and the precision of that name.

    A model in another type than its own is a copy. Graphs of a library have weights of their own, so for these only the
    shapes of the model are left. Raises ``ValueError`` as :func:`choose` does for an unknown runtime or precision and
    for an option that does not apply.
    """
    _check_runtime(runtime)
    found, resolved = _resolve(runtime, model.config, device, precision, options)
    if runtime in LIBRARIES:
        return without_weights(model, DTYPES[found], device), found
    made = cast(model, DTYPES[found])
    if resolved.block_offload:
        offload_blocks(made, device)
        return made, found
    return made if made.device.type == "meta" else made.to(device), found  # weights may be loaded later


def weights_in_use(denoiser: Denoiser, model: DDiT) -> DDiT:
    """``model`` as ``denoiser``, which was chosen for it, computes it: without the weights that it replaces.

    These are all of a model whose passes are graphs, and those of the linears that fp8 has as codes.
    """
    if isinstance(denoiser, GraphDenoiser):
        return without_weights(model, denoiser.dtype, denoiser.device)
    while isinstance(denoiser, Delegate):
        denoiser = denoiser.model
    return denoiser if isinstance(denoiser, DDiT) and has_fp8_linears(denoiser) else model


def compute_device(device: torch.device) -> ComputeDevice:
    """The properties of a device."""
    return ComputeDevice.of(device)


def _check_runtime(runtime: str) -> None:
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime is {runtime!r}; it must be one of {', '.join(RUNTIMES)}")


def _resolve(
    runtime: str, config: DDiTConfig, device: torch.device, precision: str, options: TorchOptions
) -> tuple[Precision, TorchOptions]:
    if config.bridge == "bidirectional":
        if runtime == "compiled" or options.cuda_graphs or options.fp8:
            raise ValueError(
                "compilation, cuda_graphs and fp8 do not apply to the bridge bidirectional; "
                "such a model runs in the runtimes torch and torch-plain"
            )
        options = replace(options, cuda_graphs=False)
    return resolve_settings(runtime, precision, options, compute_device(device), one_way=not config.is_joint)


def _task(runtime: str, model: DDiT, locations: ExportLocations, precision: str, options: TorchOptions) -> _Task:
    resolved = _resolve(runtime, model.config, model.device, precision, options)
    return _Task(model, compute_device(model.device), locations, *resolved)


def _default(task: _Task, note: str = "", others: Mapping[str, str] | None = None) -> RuntimeChoice:
    """On a CPU whole blocks in C++ for a small model, else PyTorch; on a GPU PyTorch with the options of the task."""
    factories, options = _factories_without_exports(task), task.options
    name = "torch"
    if "native" in factories and is_expected_fastest(task.model.config):
        name = "native"
    elif "torch-plain" in factories and native.instructions() not in VECTORS:
        name = "torch-plain"
    why = "no other runtime was verified to be faster"
    if task.device.type == "cuda":
        why = f"the default on a GPU, {task.precision}; no exported graphs were verified to be faster"
    return RuntimeChoice(factories[name](), name, why + note, None, others or {}, overlap=bool(options.overlap))


def _factories_without_exports(task: _Task) -> Factories:
    """The runtimes that need no export, the most reliable first: ``torch`` alone without the C++ part."""
    model = cast(task.model, DTYPES[task.precision])
    factories: Factories = {"torch": lambda: torch_denoiser(model, task.precision, task.options)}
    if native.EXTENSION is not None and task.device.type == "cpu" and model.dtype == torch.float32:
        factories = {"torch-plain": lambda: PlainTorchDenoiser(model), **factories}
        if not unsupported_reason(model):
            factories["native"] = lambda: NativeDDiT(model)
    return factories


def _choose_automatically(
    task: _Task, workload: Workload | None, exports_excluded: tuple[str, ...], *, renew: bool
) -> RuntimeChoice:
    verified: dict[str, tuple[Export, VerificationResult]] = {}
    others: dict[str, str] = {}
    for runtime in LIBRARIES:
        if exports_excluded:
            others[runtime] = f"exported graphs do not have the option {exports_excluded[0]}"
            continue
        try:
            export = export_for(runtime, task.model, task.locations, task.precision)
            result = task.result_of(export, runtime)
            others[runtime] = _verification_problem(task, export, result, runtime)
        except ValueError as error:
            others[runtime] = str(error)
            continue
        if result is not None and not others[runtime]:
            verified[runtime] = export, result
    if workload is None or task.device.type != "cpu":
        return _choose_by_rule(task, verified, others)
    if reason := _reason_not_to_time(task.model, workload):
        return _choose_by_rule(task, verified, others, f"not timed: {reason}")
    return _choose_by_timing(task, workload, verified, others, renew=renew)


def _reason_not_to_time(model: DDiT, workload: Workload) -> str:
    """The reason why no step is timed; empty if steps may be timed."""
    if not calibration.enabled():
        return "SYNCFLOW_CALIBRATION is off"
    if (chosen := current_implementation()) != "auto":
        return f"the operations are those of SYNCFLOW_KERNELS={chosen}"
    return workload.reason_not_to_time(model.config)


def _choose_by_timing(
    task: _Task, workload: Workload, verified: Verified, others: dict[str, str], *, renew: bool
) -> RuntimeChoice:
    """The fastest candidate, by times that are known or measured now."""
    factories, exports = _factories_without_exports(task), {}
    for runtime, (export, result) in verified.items():
        try:
            exports[runtime] = f"{libraries.fingerprint(runtime)} {_export_fingerprint(export, result)}"
        except ValueError as error:
            others[runtime] = str(error)
            continue
        factories[runtime] = partial(task.load, runtime, export, result)
    if len(factories) == 1:
        (only,) = factories
        return RuntimeChoice(factories[only](), only, "there is no other runtime here", None, others)
    shape = _hash({"ddit": task.model.config.to_dict(), "sequence": workload.sequence.to_dict()})
    key = CalibrationKey.here(task.locations.model or shape, task.precision, tuple(factories), exports)
    created: dict[str, Denoiser] = {}

    def measure() -> StepTimes:
        times, denoisers = time_denoisers(factories, workload)
        created.update(denoisers)
        return times

    known = load_or_measure(key, measure, renew=renew)
    if known.times.stopped:
        return _choose_by_rule(task, verified, others, f"not timed: {known.times.stopped}")
    failed = {name: f"could not be timed on {known.date}: {error}" for name, error in known.times.failures.items()}
    others = others | failed
    for runtime in known.ranking():
        try:
            denoiser = created[runtime] if runtime in created else factories[runtime]()
        except ValueError as error:
            others[runtime] = _warn_and_skip(error)
            continue
        timed = {name: others.get(name) or f"{ms:.3g} ms a step" for name, ms in known.milliseconds().items()}
        rest = {name: reason for name, reason in (others | timed).items() if name != runtime}
        result_of = verified[runtime][1] if runtime in verified else None
        return RuntimeChoice(denoiser, runtime, _timing_reason(known, runtime), result_of, rest, known)
    raise AssertionError("a runtime without exports can always be created")


def _timing_reason(known: Calibration, runtime: str) -> str:
    """The reason for a runtime that was chosen by timing, with its time."""
    times = known.milliseconds()
    fastest = next(iter(times))
    where = f"the fastest of {len(times)} that were timed on this machine"
    if runtime == fastest:
        return f"{where}: {times[runtime]:.3g} ms a step"
    return f"{times[runtime]:.3g} ms a step; {where} is {fastest}, {times[fastest]:.3g} ms"


def _choose_by_rule(task: _Task, verified: Verified, others: dict[str, str], untimed: str = "") -> RuntimeChoice:
    """The fastest exported runtime by the times of ``syncflow verify``, or else the default of the device."""
    faster: dict[str, tuple[Export, VerificationResult]] = {}
    for runtime, (export, result) in verified.items():
        try:
            slow = "not faster than what needs no export"
            others[runtime] = _version_mismatch(runtime, result) if result.speedup() > 1 else slow
        except ValueError as error:
            others[runtime] = str(error)
        if not others[runtime]:
            faster[runtime] = export, result
    note = f"; {untimed}" if untimed else ""
    for runtime, (export, result) in sorted(faster.items(), key=lambda item: -item[1][1].speedup()):
        own, without = result.seconds[STEP]
        why = f"the fastest that was verified: {1000 * own:.3g} ms a step, {1000 * without:.3g} without exports"
        try:
            denoiser = task.load(runtime, export, result)
        except ValueError as error:
            others[runtime] = _warn_and_skip(error)
            continue
        slower = {name: f"{1000 * p.seconds[STEP][0]:.3g} ms a step" for name, (_, p) in faster.items()}
        rest = {name: reason or slower[name] for name, reason in others.items() if name != runtime}
        return RuntimeChoice(denoiser, runtime, why + note, result, rest)
    return _default(task, note, others)


def _warn_and_skip(error: ValueError) -> str:
    warnings.warn(f"{error}; the next best runtime is taken", stacklevel=2)
    return str(error)


def _verification_problem(task: _Task, export: Export, result: VerificationResult | None, runtime: str) -> str:
    """The reason why ``auto`` does not take a runtime; empty if it was verified as correct on this processor."""
    if result is None:
        here = str(processor(task.model.device))
        processors = export.other_processors(runtime, device_of(task.model), task.precision, here)
        if processors:
            return f"verified on {processors[0] or 'an unknown processor'}, not on this one; run `syncflow verify` here"
        return "not verified on this kind of device; `syncflow verify` does it"
    return _verified_error(result, task.model)


def _version_mismatch(runtime: str, result: VerificationResult) -> str:
    """A sentence if another version of the library was verified than is installed; else empty.

    Imports the library. Raises ``ValueError`` where it is missing.
    """
    installed = libraries.version_of(runtime)
    if result.version == installed:
        return ""
    return f"version {result.version} was verified, and {installed} is installed; run `syncflow verify` again"


def _verified_error(result: VerificationResult, model: DDiT) -> str:
    """The first graph of the model that was verified as wrong, and its error; empty if all are correct."""
    wrong = [name for name in graph_names(model.config) if not result.within_bound([name])]
    if not wrong:
        return ""
    error = result.errors.get(wrong[0])
    return f"{wrong[0]} " + ("fails" if error is None else f"is off by {error:.1e}, more than {result.bound:g}")


def _export_fingerprint(export: Export, result: VerificationResult) -> str:
    """A hash of the files of an export with their modification times, and the version that was verified."""
    files = {name: export.path / name for name in export.checksums}
    modified = {name: file.stat().st_mtime_ns if file.is_file() else None for name, file in files.items()}
    return f"{result.version} {_hash([dict(export.checksums), modified])[:16]}"


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
