"""Export a model: write its graphs and a manifest into a temporary folder, then rename it."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import save

from .. import __version__
from ..engine.components import Components
from ..engine.config import ModelConfig
from ..engine.exports import CONSTANTS, Device, Export, Format, GraphSpec, Precision, TensorSpec, folder_name
from ..engine.package import sha256
from ..engine.runtime.exported import graph_names
from ..engine.runtime.pytorch import DTYPES, cast
from .cases import cases_of, inputs_of
from .graphs import Graph, codec_graphs, denoiser_graphs
from .lengths import axes_of
from .recurrence import of_any_length
from .tensorrt.profiles import bounded

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "aoti": ".pt2", "tensorrt": ".plan"}
LIBRARIES: dict[Format, tuple[str, ...]] = {
    "onnx": ("torch", "onnx", "onnxscript"),
    "aoti": ("torch",),
    "tensorrt": ("tensorrt", "torch", "onnx", "onnxscript"),
}

Progress = Callable[[str], None]


def graphs_of(
    components: Components, device: Device, precision: Precision = "float32", *, codecs: bool = True
) -> list[Graph]:
    """The graphs of a model on a device: the d-DiT in ``precision``, codecs and text encoder in float32."""
    model = cast(components.ddit, DTYPES[precision]).to(device)
    for codec in (components.video, components.audio, components.text):
        codec.to(device)
    with torch.device(device):
        graphs = denoiser_graphs(model, components.config) + (codec_graphs(components) if codecs else [])
    for graph in graphs:
        graph.module.eval().requires_grad_(False)
    return graphs


def write_export(
    components: Components,
    folder: Path,
    format: Format,
    *,
    device: Device = "cpu",
    precision: Precision = "float32",
    codecs: bool = True,
    progress: Progress = lambda name: None,
) -> Export:
    """Export the graphs of a model to the subfolder of ``folder`` for this format, replacing an earlier export.

    ``progress`` is called with the name of each graph before it is exported. ``codecs``: export the codecs and the text
    encoder too, except to AOTInductor; one that cannot be exported is skipped, with the reason in the manifest. Raises
    ``ValueError`` for a missing library, an unsaved model, and a device that is missing or not supported by the format.
    """
    if not components.digest:
        raise ValueError("only a saved model can be exported; save it as a package first")
    if not components.config.ddit.has_audio:
        raise ValueError("a model without sound cannot be exported; it runs in the runtimes torch and torch-plain")
    if components.config.ddit.bridge == "bidirectional":
        raise ValueError(
            "a model with the bridge bidirectional cannot be exported; it runs in the runtimes torch and torch-plain"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("exporting for cuda needs a CUDA device, and there is none here")
    if format == "tensorrt" and device != "cuda":
        raise ValueError("TensorRT builds engines for a GPU; export for cuda")
    write = _writer(format, components.config)
    target = folder / folder_name(format, device, precision)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {target.parent} cannot be made ({error.strerror})") from None
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        part = Path(temporary) / target.name
        part.mkdir()
        graphs, missing = {}, {}
        denoiser_names = graph_names(components.config.ddit)
        for graph in graphs_of(components, device, precision, codecs=codecs and format != "aoti"):
            progress(graph.name)
            file = part / f"{graph.name}{SUFFIXES[format]}"
            try:
                with _quiet_exporters(), of_any_length():
                    outputs = write(graph, file)
                if graph.name not in denoiser_names:
                    _check_dynamic_axes(graph, outputs, components.config)
            except Exception as error:
                if graph.name in denoiser_names:
                    raise
                missing[graph.name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                file.unlink(missing_ok=True)
                continue
            inputs = {name: _spec(example, graph.dynamic.get(name, {})) for name, example in graph.inputs.items()}
            axes = axes_of(graph, components.config)
            graphs[graph.name] = GraphSpec(file.name, inputs, outputs, bounded(axes) if format == "tensorrt" else axes)
        _write_constants(components, part / CONSTANTS)
        export = Export(
            part,
            components.digest,
            format,
            "any" if format == "onnx" else device,
            precision,
            graphs,
            _versions(format),
            {file.name: sha256(file) for file in sorted(part.iterdir())},
            machine=_machine(format, device),
            missing=missing,
        )
        export.write()
        _replace_folder(part, target)
    return Export.read(target, components.digest)


@torch.inference_mode()
def _check_dynamic_axes(graph: Graph, outputs: Mapping[str, TensorSpec], config: ModelConfig) -> None:
    """Check that no dynamic axis was specialised to a constant."""
    (other,) = (case for case in cases_of(axes_of(graph, config)) if case.name == "other")
    found = graph.module(*inputs_of(graph, other).values())
    ((name, spec),) = outputs.items()
    for axis, (stated, length) in enumerate(zip(spec.shape, found.shape, strict=True)):
        if isinstance(stated, int) and stated != length:
            raise ValueError(f"axis {axis} of {name} was specialised to {stated}")


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Suppress the log messages and warnings of the exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def _writer(format: Format, config: ModelConfig) -> Callable[[Graph, Path], dict[str, TensorSpec]]:
    if format == "aoti":
        from .aoti import compile_graph

        return compile_graph
    if format == "tensorrt":
        from .tensorrt.building import build_graph

        return partial(build_graph, config=config)
    from .onnx import export_graph, read_specs

    def write(graph: Graph, path: Path) -> dict[str, TensorSpec]:
        export_graph(graph.module, graph.inputs, graph.dynamic, graph.outputs, path)
        _, outputs = read_specs(path)
        return outputs

    return write


def _write_constants(components: Components, path: Path) -> None:
    """Write the weights that are in no graph."""
    model = components.ddit
    constants = {"null_text": model.null_text}
    if model.config.bridge == "global_local":
        constants["silence"] = model.silence
    path.write_bytes(save({name: tensor.detach().float().cpu().contiguous() for name, tensor in constants.items()}))


def _spec(example: torch.Tensor, free: dict[int, str]) -> TensorSpec:
    return TensorSpec(
        str(example.dtype).removeprefix("torch."),
        tuple(free.get(axis, length) for axis, length in enumerate(example.shape)),
    )


def _versions(format: Format) -> dict[str, str]:
    found = {"syncflow": __version__}
    for library in LIBRARIES[format]:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _machine(format: Format, device: Device) -> str:
    if format == "onnx":
        return ""
    if format == "tensorrt":
        from ..engine.runtime.tensorrt import machine

        return machine(torch.device(device))
    from ..engine.runtime.aoti import machine

    return machine(torch.device(device))


def _replace_folder(part: Path, target: Path) -> None:
    """Rename ``part`` to ``target``; an existing ``target`` is moved away first and then deleted."""
    if target.exists():
        old = part.with_name("old")
        os.replace(target, old)
        os.replace(part, target)
        shutil.rmtree(old)
    else:
        os.replace(part, target)
