"""AOTInductor: graphs compiled to machine code, in ``.pt2`` archives that libtorch runs with or without Python.

On a CPU the operations are decomposed into their PyTorch references, which the compiler fuses; on a GPU their Triton
kernels are compiled into the archive. An archive runs with the torch version that compiled it, on machines with the
instructions of the compiling one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from ..engine.exports import TensorSpec
from .graphs import Graph


def compile_graph(graph: Graph, path: Path) -> dict[str, TensorSpec]:
    """Write ``graph`` to ``path`` (``.pt2``), for the device of its inputs. -> its outputs, by name.

    Raises ``ValueError`` where there is no compiler.
    """
    with torch.no_grad():  # required for freezing weights
        return _compile(graph, path)


def _compile(graph: Graph, path: Path) -> dict[str, TensorSpec]:
    program = trace(graph)
    on_cpu = next(iter(graph.inputs.values())).device.type == "cpu"
    if on_cpu:
        program = program.run_decompositions(_references(program))
    outputs = _outputs(program, graph)
    _remove_assertions(program)
    settings = {"freezing": True} if on_cpu else {}  # packs weights for this processor
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=os.fspath(path), inductor_configs=settings)
    except InvalidCxxCompiler:
        raise ValueError("compiling graphs needs a C++ compiler, such as g++, and there is none here") from None
    return outputs


def trace(graph: Graph) -> ExportedProgram:
    """Export a graph with dynamic axes, whose lengths may be 1 too."""
    shapes = torch.export.ShapesCollection()
    for name, axes in graph.dynamic.items():
        shapes[graph.inputs[name]] = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(
            graph.module,
            tuple(graph.inputs.values()),
            dynamic_shapes=shapes,  # type: ignore[arg-type]
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def _references(program: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """The PyTorch reference of every syncflow operation in a program."""
    ops = {node.target for node in program.graph.nodes if getattr(node.target, "namespace", None) == "syncflow"}
    return {op: import_module(f"syncflow.kernels.{op.__name__.partition('.')[0]}").reference for op in ops}


def _remove_assertions(program: ExportedProgram) -> None:
    """Remove the assertions about lengths: they distinguish memory layouts, and no result depends on them."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _outputs(program: ExportedProgram, graph: Graph) -> dict[str, TensorSpec]:
    """Specs of the outputs of a program, with the names of the dynamic axes."""
    placeholders = {node.name: node for node in program.graph.nodes}
    given = [placeholders[name].meta["val"] for name in program.graph_signature.user_inputs]
    names: dict[str, str] = {}
    for tensor, (name, example) in zip(given, graph.inputs.items(), strict=True):
        assert tensor.ndim == example.ndim, name
        names |= {str(tensor.shape[axis]): label for axis, label in graph.dynamic.get(name, {}).items()}
    found = [placeholders[name].meta["val"] for name in program.graph_signature.user_outputs]
    return {name: _spec(tensor, names) for name, tensor in zip(graph.outputs, found, strict=True)}


def _spec(tensor: Tensor, names: Mapping[str, str]) -> TensorSpec:
    lengths = (
        length if isinstance(length, int) else re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(length))
        for length in tensor.shape
    )
    return TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(lengths))
