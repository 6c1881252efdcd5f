"""``syncflow import``: make a model package of published weights, or write them back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def import_(
    source: Annotated[
        Path, typer.Argument(help="Folder or file of Open-Sora 1.2's transformer (STDiT3); with --reverse, a package.")
    ],
    output: Annotated[Path, typer.Argument(help="Folder to write: the package; with --reverse, the published layout.")],
    vae: Annotated[Path | None, typer.Option(help="Folder of Open-Sora's video autoencoder.")] = None,
    text_encoder: Annotated[Path | None, typer.Option(help="Folder of the T5 encoder.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer; default: that of the text encoder.")
    ] = None,
    precision: Annotated[
        Literal["keep", "float32", "bfloat16", "float16"],
        typer.Option(help="Precision to store weights in; keep: as published, so that --reverse gives the same bits."),
    ] = "keep",
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Write the transformer of a package back in the published layout.")
    ] = False,
    progress: Annotated[bool, typer.Option("--progress", help="Print the name of every tensor.")] = False,
) -> None:
    """Make a model package of published weights (Open-Sora 1.2), with every tensor accounted for."""
    from ..training.importers.opensora import export_opensora, import_opensora

    report = print if progress else _silent
    if reverse:
        if vae or text_encoder or tokenizer or precision != "keep":
            raise ValueError("--reverse takes a package and a folder to write, and no other option")
        print(f"{export_opensora(source, output, report)}: the transformer as it was published")
        return
    if vae is None or text_encoder is None:
        raise ValueError("a package needs --vae and --text-encoder, the folders of the published parts")

    import torch

    dtype = None if precision == "keep" else getattr(torch, precision)
    package = import_opensora(source, vae, text_encoder, output, tokenizer=tokenizer, dtype=dtype, progress=report)
    print(f"{package.path}: model package {package.config.name}, hash {package.digest[:12]}")


def _silent(name: str) -> None:
    """Report nothing."""
