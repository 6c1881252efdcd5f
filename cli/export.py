"""``syncflow export``: a model's graphs for other runtimes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from . import options, proofs

if TYPE_CHECKING:
    from ..engine.package import Package

Package_ = Annotated[
    Path | None, typer.Argument(metavar="[MODEL]", help="Model folder; the bundled syncflow-tiny by default.")
]


def export(
    model: Package_ = None,
    output: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUT]",
            help="A copy of the model with its exports. By default they go into MODEL itself, "
            "or into the user's cache where that cannot be written.",
        ),
    ] = None,
    to: Annotated[str, typer.Option(help="Formats, with commas: onnx, aoti (machine code by AOTInductor).")] = "onnx",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Device to compile for and to verify on.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the weights; codecs stay in float32.")
    ] = "float32",
    codecs: Annotated[bool, typer.Option(help="The codecs and the text encoder too, in onnx.")] = True,
    verify: Annotated[
        bool, typer.Option(help="Compare the graphs with PyTorch in every runtime that is installed.")
    ] = True,
    json: options.Json = False,
) -> None:
    """Write a model's graphs for other runtimes, and verify them.

    Ends with exit code 1 when an error exceeds its bound.
    """
    from ..engine.exports import Format

    formats: list[Format] = options.choices("format", to, get_args(Format))

    from tqdm import tqdm

    from ..engine.components import Components
    from ..engine.engine import bundled_model
    from ..engine.package import open_package
    from ..export.writing import write_export

    package = open_package(options.model_folder(model))
    folder = _destination(package, output, bundled=package.path == bundled_model())
    components = Components.load(package.path)
    found = []
    for format in formats:
        with tqdm(desc=format, unit="graph", file=sys.stderr, leave=False, disable=None) as bar:

            def show(name: str, bar=bar, format=format) -> None:
                bar.set_description(f"{format}: {name}")
                bar.update()

            written = write_export(
                components, folder, format, device=device, precision=dtype, codecs=codecs, progress=show
            )
        found.append(written)
    runtimes = [proofs.installed(one, device) if verify else [] for one in found]
    proofs.show([proofs.prove(components, *pair, device) for pair in zip(found, runtimes, strict=True)], json=json)


def _destination(package: Package, output: Path | None, *, bundled: bool) -> Path:
    """The folder of exports: of the package, of a copy of it, or of the user's cache."""
    from ..engine.exports import cache_folder
    from ..engine.package import EXPORTS, open_package

    if output is None:
        if bundled or not os.access(package.path, os.W_OK):
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
