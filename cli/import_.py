"""``syncflow import``: make a model package of published weights, or write them back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder or file of the transformer of Open-Sora 1.2 (STDiT3) or JavisDiT 0.1 (VASTDiT3); "
            "with --reverse, a package."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder to write: the package; with --reverse, the published layout.")],
    vae: Annotated[Path | None, typer.Option(help="Folder of Open-Sora's video autoencoder.")] = None,
    text_encoder: Annotated[Path | None, typer.Option(help="Folder of the T5 encoder.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer; default: that of the text encoder.")
    ] = None,
    audio_vae: Annotated[
        Path | None, typer.Option(help="JavisDiT: folder of AudioLDM2, which has the folders vae and vocoder.")
    ] = None,
    prior: Annotated[Path | None, typer.Option(help="JavisDiT: folder of its prior extractor.")] = None,
    imagebind: Annotated[
        Path | None, typer.Option(help="JavisDiT: file of ImageBind; default: its text tower is in --prior.")
    ] = None,
    prior_tokenizer: Annotated[
        Path | None, typer.Option(help="JavisDiT: folder of CLIP's tokenizer; default: that of --prior.")
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
    """Make a model package of published weights (Open-Sora 1.2, JavisDiT 0.1), with every tensor accounted for."""
    from ..training.importers import javisdit, opensora
    from ..training.importers.layouts import LAYOUTS, layout_of
    from ..training.importers.transformer import export_transformer

    report = print if progress else _silent
    of_javisdit = audio_vae, prior, imagebind, prior_tokenizer
    if reverse:
        if vae or text_encoder or tokenizer or any(of_javisdit) or precision != "keep":
            raise ValueError("--reverse takes a package and a folder to write, and no other option")
        print(f"{export_transformer(LAYOUTS, source, output, report)}: the transformer as it was published")
        return
    if vae is None or text_encoder is None:
        raise ValueError("a package needs --vae and --text-encoder, the folders of the published parts")

    import torch

    dtype = None if precision == "keep" else getattr(torch, precision)
    if layout_of(source) is javisdit.LAYOUT:
        if audio_vae is None or prior is None:
            raise ValueError("a package of JavisDiT needs --audio-vae and --prior too")
        package = javisdit.import_javisdit(
            source,
            vae,
            text_encoder,
            audio_vae,
            prior,
            output,
            imagebind=imagebind,
            tokenizer=tokenizer,
            prior_tokenizer=prior_tokenizer,
            dtype=dtype,
            progress=report,
        )
    else:
        if any(of_javisdit):
            raise ValueError("--audio-vae, --prior, --imagebind and --prior-tokenizer are parts of JavisDiT alone")
        package = opensora.import_opensora(
            source, vae, text_encoder, output, tokenizer=tokenizer, dtype=dtype, progress=report
        )
    print(f"{package.path}: model package {package.config.name}, hash {package.digest[:12]}")


def _silent(name: str) -> None:
    """Report nothing."""
