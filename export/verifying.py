"""Whether a runtime computes what PyTorch does: every graph on every case, and the time of a step of both."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.components import Components
from ..engine.exports import STEP, Device, Export, GraphSpec, Precision, Proof
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
) -> Proof:
    """What a runtime makes of the graphs of an export, beside PyTorch in float32.

    ``precision`` is the export's own by default. ``progress`` is told the name of every graph that comes next. Raises
    ``ValueError`` for an export that is damaged and a runtime that is not there.
    """
    precision = precision or export.precision
    denoiser = load(runtime, export, components.ddit, precision)
    of_model = graph_names(components.config.ddit)
    errors: dict[str, float | None] = {}
    seconds: dict[str, list[float]] = {}
    for graph in graphs_of(components, device):
        if graph.name not in export.graphs:
            continue
        progress(graph.name)
        errors[graph.name] = graph_error(denoiser.run, graph, export.graphs[graph.name])
        if graph.name not in of_model and errors[graph.name] is not None:
            seconds[graph.name] = _graph_seconds(denoiser.run, graph)
    if all(errors[name] is not None for name in of_model):
        progress("a step")
        seconds[STEP] = step_seconds(
            [denoiser, choose_without_exports(components.ddit, precision).denoiser], components
        )
    here = str(processor(components.ddit.device))
    return Proof(runtime, version_of(runtime), device, precision, errors, BOUNDS[precision], seconds, here)


@torch.inference_mode()
def graph_error(run: Graphs, graph: Graph, spec: GraphSpec) -> float | None:
    """The largest error of a graph over all cases; None where it fails, or gives what is no number."""
    worst = 0.0
    for i, case in enumerate(cases_of(spec.axes)):
        random_inputs = inputs_of(graph, case, i)
        inputs = {name: x.to(DTYPES.get(spec.inputs[name].dtype, x.dtype)) for name, x in random_inputs.items()}
        exact = graph.module(*(inputs[name].to(x.dtype) for name, x in random_inputs.items()))
        try:
            found = run(graph.name, inputs)
        except Exception:  # whatever a runtime throws: it does not compute this graph
            return None
        outputs = exact if isinstance(exact, tuple) else (exact,)
        for name, y in zip(graph.outputs, outputs, strict=True):
            if found[name].shape != y.shape or not found[name].isfinite().all():
                return None
            worst = max(worst, relative_error(found[name], y))
    return worst


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The largest deviation, relative to the largest element; of colours, what goes beyond rounding by one level."""
    if not exact.numel():
        return 0.0
    deviation = (found.double() - exact.double()).abs().max()
    if exact.dtype == torch.uint8:
        return (deviation - 1).clamp_min(0).item() / LEVELS
    return (deviation / exact.double().abs().max().clamp_min(1e-30)).item()


def step_seconds(denoisers: Sequence[Denoiser], components: Components) -> list[float]:
    """The median time of a step of one clip with text guidance: two rows through both towers."""
    steps = [make_step(components.config.sequence, denoiser) for denoiser in denoisers]
    return _in_turns(steps, STEPS)


@torch.inference_mode()
def _graph_seconds(run: Graphs, graph: Graph) -> list[float]:
    inputs = dict(graph.inputs)
    (first, *_) = graph.outputs
    return _in_turns([lambda: run(graph.name, inputs)[first], lambda: graph.module(*inputs.values())], CODINGS)


def _in_turns(works: Sequence[Callable[[], Tensor]], times: int) -> list[float]:
    """The median seconds of each of several functions that are called alternately, once before it counts."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(times + 1):
        for work, of in zip(works, taken, strict=True):
            began = time.perf_counter()
            work().cpu()
            of.append(time.perf_counter() - began)
    return [statistics.median(of[1:]) for of in taken]


def prove(components: Components, export: Export, runtimes: Sequence[str], **how: Any) -> tuple[Export, list[Proof]]:
    """Verify an export in several runtimes, with the keywords of :func:`verify`: it, and what was found now, which is
    put into its manifest where that can be written."""
    proofs = [verify(components, export, runtime, **how) for runtime in runtimes]
    for proof in proofs:
        export = export.proven(proof)
    try:
        export.write()
    except OSError as error:
        warnings.warn(f"what was found is not kept: {export.path} cannot be written ({error.strerror})", stacklevel=2)
    return export, proofs
