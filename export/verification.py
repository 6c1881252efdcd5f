"""Compare a runtime with PyTorch: the error of every graph on every case, and the times of a step and of the codecs."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.components import Components
from ..engine.exports import STEP, Device, Export, GraphSpec, Precision, VerificationResult
from ..engine.model.denoiser import Denoiser
from ..engine.runtime.exported import Graphs, graph_names
from ..engine.runtime.pytorch import DTYPES
from ..engine.runtime.selection.choose import choose_without_exports
from ..engine.runtime.selection.libraries import load, version_of
from ..engine.runtime.selection.processor import processor
from ..engine.sampling.trial import make_step
from .cases import cases_of, inputs_of
from .graphs import Graph
from .writing import Progress, graphs_of

BOUNDS: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
STEPS, CODINGS = 9, 3  # how often each is timed
LEVELS = 255  # of a colour in uint8


def verify(
    components: Components,
    export: Export,
    runtime: str,
    *,
    device: Device = "cpu",
    precision: Precision | None = None,
    progress: Progress = lambda name: None,
) -> VerificationResult:
    """Compare the graphs of an export in a runtime with PyTorch in float32.

    ``precision`` is the export's own by default. ``progress`` is called with the name of each graph before it runs.
    Raises ``ValueError`` for a damaged export and a runtime that is not installed.
    """
    precision = precision or export.precision
    denoiser = load(runtime, export, components.ddit, precision)
    denoiser_graphs = graph_names(components.config.ddit)
    errors: dict[str, float | None] = {}
    seconds: dict[str, list[float]] = {}
    for graph in graphs_of(components, device):
        if graph.name not in export.graphs:
            continue
        progress(graph.name)
        errors[graph.name] = graph_error(denoiser.run, graph, export.graphs[graph.name])
        if graph.name not in denoiser_graphs and errors[graph.name] is not None:
            seconds[graph.name] = _graph_seconds(denoiser.run, graph)
    if all(errors[name] is not None for name in denoiser_graphs):
        progress("a step")
        seconds[STEP] = step_seconds(
            [denoiser, choose_without_exports(components.ddit, precision).denoiser], components
        )
    here = str(processor(components.ddit.device))
    return VerificationResult(runtime, version_of(runtime), device, precision, errors, BOUNDS[precision], seconds, here)


@torch.inference_mode()
def graph_error(run: Graphs, graph: Graph, spec: GraphSpec) -> float | None:
    """The largest relative error over all cases; None where the graph fails or an output is not finite."""
    worst = 0.0
    for i, case in enumerate(cases_of(spec.axes)):
        random_inputs = inputs_of(graph, case, i)
        inputs = {name: x.to(DTYPES.get(spec.inputs[name].dtype, x.dtype)) for name, x in random_inputs.items()}
        exact = graph.module(*(inputs[name].to(x.dtype) for name, x in random_inputs.items()))
        try:
            found = run(graph.name, inputs)
        except Exception:  # runtimes raise exceptions of their own
            return None
        outputs = exact if isinstance(exact, tuple) else (exact,)
        for name, y in zip(graph.outputs, outputs, strict=True):
            if found[name].shape != y.shape or not found[name].isfinite().all():
                return None
            worst = max(worst, relative_error(found[name], y))
    return worst


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The largest deviation over the largest element; of uint8 pixels, the deviation beyond one level, over 255."""
    if not exact.numel():
        return 0.0
    deviation = (found.double() - exact.double()).abs().max()
    if exact.dtype == torch.uint8:
        return (deviation - 1).clamp_min(0).item() / LEVELS
    return (deviation / exact.double().abs().max().clamp_min(1e-30)).item()


def step_seconds(denoisers: Sequence[Denoiser], components: Components) -> list[float]:
    """The median time of a step of one clip with text guidance: two rows through both towers."""
    steps = [make_step(components.config.sequence, denoiser) for denoiser in denoisers]
    return _alternating_medians(steps, STEPS)


@torch.inference_mode()
def _graph_seconds(run: Graphs, graph: Graph) -> list[float]:
    inputs = dict(graph.inputs)
    (first, *_) = graph.outputs
    return _alternating_medians(
        [lambda: run(graph.name, inputs)[first], lambda: graph.module(*inputs.values())], CODINGS
    )


def _alternating_medians(functions: Sequence[Callable[[], Tensor]], times: int) -> list[float]:
    """Median seconds of each function, called in alternation ``times`` times after one warm-up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(times + 1):
        for function, measured in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function().cpu()
            measured.append(time.perf_counter() - start)
    return [statistics.median(measured[1:]) for measured in seconds]


def verify_runtimes(
    components: Components, export: Export, runtimes: Sequence[str], **how: Any
) -> tuple[Export, list[VerificationResult]]:
    """Verify an export in several runtimes, with the keywords of :func:`verify`, and save the results in its manifest.

    -> the export with the results, and the new results. A manifest that cannot be written is a warning.
    """
    results = [verify(components, export, runtime, **how) for runtime in runtimes]
    for result in results:
        export = export.with_result(result)
    try:
        export.write()
    except OSError as error:
        warnings.warn(f"the results are not saved: {export.path} cannot be written ({error.strerror})", stacklevel=2)
    return export, results
