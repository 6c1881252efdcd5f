"""``syncflow verify``: check the files of a package, and compare its exported graphs with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options, verification


def verify(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[PACKAGE]", help="Model package (a folder); default: the bundled syncflow-tiny."),
    ] = None,
    runtimes: Annotated[
        str | None,
        typer.Option(help="Runtimes, comma-separated: onnxruntime, openvino, aoti, tensorrt; default: all installed."),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Device to run the graphs on.")] = "cpu",
    precision: options.Precision = "float32",
    json: options.Json = False,
) -> None:
    """Check the files of a package and compare its exported graphs with PyTorch; exit code 1 if an error is too large.

    The results are saved with the graphs; the runtime "auto" needs them.
    """
    from ..engine.components import Components
    from ..engine.exports import Export, ExportLocations
    from ..engine.package import open_package
    from ..engine.runtime.selection.libraries import LIBRARIES, version_of

    wanted = None if runtimes is None else options.choices("runtime", runtimes, tuple(LIBRARIES))
    for runtime in wanted or []:
        version_of(runtime)
    package = open_package(options.model_folder(model))
    locations = ExportLocations(package.path, package.digest)
    exports = [Export.read(folder, package.digest).check() for folder in locations.all()]
    if not exports:
        raise ValueError(f"{package.path} is whole, and has no exported graphs; `syncflow export` writes them")
    components = Components.load(package.path)
    found = []
    for export in exports:
        installed = verification.installed_runtimes(export, device, precision)
        chosen = [runtime for runtime in installed if wanted is None or runtime in wanted]
        if chosen:
            found.append(verification.verify_export(components, export, chosen, device, precision))
    if not found:
        raise ValueError("none of the requested runtimes can compute these exports on this device")
    verification.show(found, json=json)
