"""``syncflow verify``: whether a package is whole, and whether runtimes compute its graphs rightly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options, proofs


def verify(
    model: Annotated[
        Path | None, typer.Argument(metavar="[PACKAGE]", help="Model folder; the bundled syncflow-tiny by default.")
    ] = None,
    runtimes: Annotated[
        str | None,
        typer.Option(help="With commas: onnxruntime, openvino, aoti, tensorrt; all that are installed."),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Device to compute on.")] = "cpu",
    precision: options.Precision = "float32",
    json: options.Json = False,
) -> None:
    """Check every file, and compare every exported graph with PyTorch: the largest error over usual and odd inputs.

    What is found is kept with the graphs; the runtime "auto" goes by it. Ends with exit code 1 when an error exceeds
    its bound.
    """
    from ..engine.components import Components
    from ..engine.exports import Export, Places
    from ..engine.package import open_package
    from ..engine.runtime.selection.libraries import LIBRARIES, version_of

    wanted = None if runtimes is None else options.choices("runtime", runtimes, tuple(LIBRARIES))
    for runtime in wanted or []:
        version_of(runtime)
    package = open_package(options.model_folder(model))
    places = Places(package.path, package.digest)
    exports = [Export.read(folder, package.digest).check() for folder in places.all()]
    if not exports:
        raise ValueError(f"{package.path} is whole, and has no exported graphs; `syncflow export` writes them")
    components = Components.load(package.path)
    found = []
    for export in exports:
        usable = proofs.installed(export, device, precision)
        chosen = [runtime for runtime in usable if wanted is None or runtime in wanted]
        if chosen:
            found.append(proofs.prove(components, export, chosen, device, precision))
    if not found:
        raise ValueError("none of the runtimes that are asked for can compute these exports on this device")
    proofs.show(found, json=json)
