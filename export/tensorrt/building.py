"""TensorRT engines of graphs, built for the GPU that is here.

A network is typed by its graph alone: half precision comes from graphs in half precision, and TF32 is off. Engines run
with the version of TensorRT and on the kind of GPU that built them. What kernels were timed at is kept in the user's
cache, so that a second build is faster.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ...engine.config import ModelConfig
from ...engine.exports import TensorSpec, cache_folder
from ...engine.runtime.tensorrt import library, machine
from ..graphs import Graph
from ..lengths import axes_of
from ..onnx import export_graph, read_specs
from .lowering import lower
from .profiles import Profile, profiles_of, shapes_of
from .support import faults_of

WORKSPACE = 4 << 30  # bytes that a kernel may take for itself


def build_graph(graph: Graph, path: Path, config: ModelConfig) -> dict[str, TensorSpec]:
    """Write ``graph`` to ``path`` (``.plan``), for the device of its inputs. -> what it gives, by name.

    Raises ``ValueError`` where TensorRT is missing or too old, and for a graph that it does not take.
    """
    library()
    profiles = profiles_of(axes_of(graph, config))
    device = next(iter(graph.inputs.values())).device
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        file = Path(folder) / f"{graph.name}.onnx"
        export_graph(graph.module, graph.inputs, graph.dynamic, graph.outputs, file)
        lower(file)
        if faults := faults_of(file):
            raise ValueError(f"TensorRT does not take {graph.name}: {faults[0]}")
        inputs, outputs = read_specs(file)
        path.write_bytes(build(file, inputs, profiles, timing_file(device)))
    return outputs


def build(model: Path, inputs: Mapping[str, TensorSpec], profiles: Sequence[Profile], timings: Path) -> Any:
    """The engine of an ONNX file with these inputs, as a buffer of bytes, with one optimisation profile for each given.

    ``timings`` is a cache of them, read where it is there and written anew. Raises ``ValueError`` for a graph that
    TensorRT does not take.
    """
    trt = library()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(os.fspath(model)):
        error = parser.get_error(0)
        raise ValueError(f"TensorRT does not take {model.stem}: node {error.node_name()!r}, {error.desc()}")
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    settings.clear_flag(trt.BuilderFlag.TF32)
    for lengths in profiles:
        profile = builder.create_optimization_profile()
        for name, spec in inputs.items():
            profile.set_shape(name, *shapes_of(spec, lengths))
        if settings.add_optimization_profile(profile) < 0:
            raise ValueError(f"TensorRT takes no lengths {dict(lengths)} of {model.stem}")
    kept = timings.read_bytes() if timings.is_file() else b""
    settings.set_timing_cache(settings.create_timing_cache(kept), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise ValueError(f"TensorRT cannot build {model.stem}; what it wrote above says why")
    _keep(settings.get_timing_cache().serialize(), timings)
    return plan


def timing_file(device: torch.device) -> Path:
    """Where the timings of a kind of GPU and a version of TensorRT are kept."""
    name = f"{machine(device)} {library().__version__}".replace(" ", "-").replace("/", "-")
    return cache_folder() / "tensorrt" / f"{name}.timings"


def _keep(data: Any, path: Path) -> None:
    """Whole, where the cache can be written."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
