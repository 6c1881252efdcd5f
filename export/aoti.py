"""AOTInductor: graphs as machine code, ``.pt2`` archives that libtorch runs with or without Python.

On a CPU the operations are taken apart into their plain references, which the compiler fuses again; on a GPU their
Triton kernels are compiled into the archive. A compiled graph runs with the version of torch that compiled it, and on
machines that have the instructions of the one that did.
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
    """Write ``graph`` to ``path`` (``.pt2``), for the device of its inputs. -> what it gives, by name.

    Raises ``ValueError`` where there is no compiler.
    """
    with torch.no_grad():  # what a graph holds is frozen only so
        return _compile(graph, path)


def _compile(graph: Graph, path: Path) -> dict[str, TensorSpec]:
    program = trace(graph)
    on_cpu = next(iter(graph.inputs.values())).device.type == "cpu"
    if on_cpu:
        program = program.run_decompositions(_references(program))
    outputs = _outputs(program, graph)
    _forget_assumptions(program)
    settings = {"freezing": True} if on_cpu else {}  # weights laid out for the products of this processor
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=os.fspath(path), inductor_configs=settings)
    except InvalidCxxCompiler:
        raise ValueError("compiling graphs needs a C++ compiler, such as g++, and there is none here") from None
    return outputs


def trace(graph: Graph) -> ExportedProgram:
    """The program of a graph whose free axes stay free, also to be 1."""
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
    """The plain PyTorch of every operation of ours in a program."""
    ops = {node.target for node in program.graph.nodes if getattr(node.target, "namespace", None) == "syncflow"}
    return {op: import_module(f"syncflow.kernels.{op.__name__.partition('.')[0]}").reference for op in ops}


def _forget_assumptions(program: ExportedProgram) -> None:
    """Take the assertions about lengths out: they tell memory layouts apart, and no result depends on them."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _outputs(program: ExportedProgram, graph: Graph) -> dict[str, TensorSpec]:
    """Types and lengths of what a program gives, in the names of the free axes."""
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
