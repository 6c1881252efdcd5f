"""A module as an ONNX graph in standard operators, for any runtime to execute.

``torch.export`` records the module, :data:`~.operations.TRANSLATIONS` writes its operations, and what is left is made
small and readable: constants are folded, what is computed twice is computed once, and every node and value is named
after the module and the operation that it comes from.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import Tensor, nn

from .naming import forget_origins, name_all, name_lengths
from .operations import TRANSLATIONS
from .passes import drop_reshapes, share_constants, share_lengths
from .tensors import OPSET

EMBEDDED = 2**26  # bytes of weights up to which a graph is one file
# The library's own, without the one that searches all nodes again at every node; no graph here has what it looks for.
RULES = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if rule is not slice_split_rule]

Axes = Mapping[str, Mapping[int, str]]


def export_graph(
    module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Axes, outputs: Sequence[str], path: str | Path
) -> Path:
    """Write ``module`` as an ONNX graph to ``path``, and the weights of a large one beside it as ``<path>.data``.

    ``inputs`` are examples, by name, in the order in which ``forward`` takes them. ``dynamic`` names the axes, by input
    and position, whose length is left to the run; axes of one name are equally long, and an example's are 2 or longer,
    since 0 and 1 would be taken as constants. ``outputs`` names what ``forward`` returns. The same arguments give the
    same bytes.

    Weights are read one at a time, as they are written: those of a module whose parameters are mapped from a file never
    fill the memory. A module that chooses by a dynamic length does what it does for the example's, whatever the length.
    """
    for name, axes in dynamic.items():
        short = {axis: inputs[name].shape[axis] for axis in axes if inputs[name].shape[axis] < 2}
        assert not short, f"the example of {name} has dynamic axes of lengths {short}; they must be at least 2"
    with _quiet_torch():
        model = _translate(module, inputs, dynamic, outputs)
        weights = frozenset(model.graph.initializers)
        _simplify(model, weights)
    name_lengths(model, dynamic)
    name_all(model.graph, weights)
    forget_origins(model)
    common.ShapeInferencePass()(model)
    _check_lengths(model, dynamic)
    return _write(model, Path(path))


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Without warnings about libraries that no graph needs and about changes to come in torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _translate(module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Axes, outputs: Sequence[str]) -> ir.Model:
    shapes = torch.export.ShapesCollection()
    for name, axes in dynamic.items():
        shapes[inputs[name]] = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        # What torch assumes of lengths to tell one memory layout from another means nothing to a graph: as assertions,
        # which are not translated, these assumptions bind no caller.
        program = torch.export.export(
            module,
            tuple(inputs.values()),
            dynamic_shapes=shapes,  # type: ignore[arg-type]
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        translated = torch.onnx.export(
            program,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            optimize=False,
            verbose=False,
        )
    assert translated is not None
    return translated.model


def _simplify(model: ir.Model, weights: Collection[str]) -> None:
    share_lengths(model.graph)
    for _ in range(2):
        optimizer.fold_constants_ir(model)
        rewriter.rewrite(model, RULES)
        common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    share_constants(model.graph, weights)
    common.CommonSubexpressionEliminationPass()(model)
    drop_reshapes(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedOpsetsPass()(model)


def _check_lengths(model: ir.Model, dynamic: Axes) -> None:
    """That the graph leaves to the run what was promised."""
    given = {value.name: value.shape for value in model.graph.inputs}
    for name, axes in dynamic.items():
        for axis, label in axes.items():
            shape = given.get(name)
            assert shape is not None, f"the graph has no input {name}"
            assert shape[axis] == label, f"axis {axis} of {name} became {shape[axis]}; {label} was promised"


def _write(model: ir.Model, path: Path) -> Path:
    """Both files beside their places, checked, and then renamed."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        draft = Path(folder) / path.name
        ir.save(model, draft, external_data=f"{path.name}.data" if size > EMBEDDED else None)
        onnx.checker.check_model(draft, full_check=True)
        if size <= EMBEDDED:
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        for written in sorted(Path(folder).iterdir(), reverse=True):  # the weights before the graph that reads them
            os.replace(written, path.parent / written.name)
    return path
