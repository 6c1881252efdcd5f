"""``syncflow export``: export a model as graphs for other runtimes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from . import options, verification

if TYPE_CHECKING:
    from ..engine.components import Components
    from ..engine.exports import Export, Format, Precision
    from ..engine.package import Package

TRITON_SERVER = "triton-server"

Package_ = Annotated[
    Path | None, typer.Argument(metavar="[MODEL]", help="Model package (a folder); default: the bundled syncflow-tiny.")
]


def export(
    model: Package_ = None,
    output: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUT]",
            help="Folder for a copy of the model with its exports, or for the model repository; default: MODEL itself, "
            "or the user's cache if MODEL is read-only.",
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            help="Formats, comma-separated: onnx, aoti (AOTInductor), tensorrt (with --device cuda); or triton-server: "
            "a model repository in OUT."
        ),
    ] = "onnx",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Device to compile for and to verify on.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Precision of the d-DiT; codecs stay in float32.")
    ] = "float32",
    codecs: Annotated[
        bool, typer.Option(help="Export the codecs and the text encoder too (onnx and tensorrt).")
    ] = True,
    verify: Annotated[bool, typer.Option(help="Compare the graphs with PyTorch in every installed runtime.")] = True,
    json: options.Json = False,
) -> None:
    """Export a model as graphs for other runtimes, and verify them; exit code 1 if an error exceeds its bound."""
    from ..engine.exports import Format

    formats: list[Format] = options.choices("format", to, (*get_args(Format), TRITON_SERVER))
    if TRITON_SERVER in to:
        if len(formats) > 1:
            raise ValueError(f"{TRITON_SERVER} cannot be combined with other formats, and --to is {to}")
        _write_repository(options.model_folder(model), output, dtype, codecs=codecs, json=json)
        return

    from ..engine.components import Components
    from ..engine.package import open_package

    package = open_package(options.model_folder(model))
    folder = _destination(package, output)
    components = Components.load(package.path)
    found = [_write(components, folder, format, device=device, precision=dtype, codecs=codecs) for format in formats]
    runtimes = [verification.installed_runtimes(one, device) if verify else [] for one in found]
    verification.show(
        [verification.verify_export(components, *pair, device) for pair in zip(found, runtimes, strict=True)], json=json
    )


def _write(components: Components, folder: Path, format: Format, **how: Any) -> Export:
    """Write the graphs of a model, under a progress bar, with the keywords of ``write_export``."""
    from ..engine.progress import progress_bar
    from ..export.writing import write_export

    with progress_bar(desc=format, unit="graph", leave=False) as bar:

        def show(name: str) -> None:
            bar.set_description(f"{format}: {name}")
            bar.update()

        return write_export(components, folder, format, progress=show, **how)


def _write_repository(model: Path, output: Path | None, precision: Precision, *, codecs: bool, json: bool) -> None:
    """Write a model repository for Triton from the ONNX graphs of a model, which are exported first if missing."""
    from ..engine.components import Components
    from ..engine.exports import Export, ExportLocations
    from ..engine.package import open_package
    from ..export.triton_server.repository import check_target, write_repository

    if output is None:
        raise ValueError(f"name a folder for the model repository: `syncflow export MODEL OUT --to {TRITON_SERVER}`")
    check_target(output)
    package = open_package(model)
    folder = ExportLocations(package.path, package.digest).find("onnx", "cpu", precision)
    if folder is None:
        components = Components.load(package.path)
        export = _write(components, _destination(package, None), "onnx", precision=precision, codecs=codecs)
    else:
        export = Export.read(folder, package.digest)
    names = write_repository(package, export, output)
    if json:
        options.show_json({"repository": str(output), "models": names, "graphs": str(export.path)})
    else:
        print(f"{output}: {', '.join(names)}")


def _destination(package: Package, output: Path | None) -> Path:
    """The folder of exports: in the package, in a copy of it, or in the user's cache."""
    from ..engine.engine import bundled_model
    from ..engine.exports import cache_folder
    from ..engine.package import EXPORTS, open_package

    if output is None:
        if package.path == bundled_model() or not os.access(package.path, os.W_OK):
            return cache_folder() / package.digest
        return package.path / EXPORTS
    if output.exists():
        if open_package(output).digest != package.digest:
            raise ValueError(f"{output} is another model; name a folder that is not there yet, or a copy of this model")
        return output / EXPORTS
    options.check_output(output)
    part = output.with_name(f".{output.name}.part")
    shutil.copytree(package.path, part, dirs_exist_ok=True)
    os.replace(part, output)
    return output / EXPORTS
