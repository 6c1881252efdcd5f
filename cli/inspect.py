"""``syncflow inspect``: measure and plot a clip, or say what a folder of weights is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


def inspect(
    clip: Annotated[
        Path, typer.Argument(help="Video file, with or without sound; or a folder or file of weights.", metavar="PATH")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Plot, a .png file; default: none.")] = None,
    json: options.Json = False,
) -> None:
    """Print motion, onsets and impacts of a clip, and plot them with frames and waveform on one time axis.

    Of a folder or file of weights, print what it is: a model package, a published layout, or neither.
    """
    if clip.is_dir() or clip.suffix in WEIGHTS:
        if output is not None:
            raise ValueError(f"{clip} is no clip that could be plotted; leave --output out")
        from ..training.importers.layouts import describe

        found = describe(clip)
        if json:
            options.show_json(found.to_dict())
        else:
            print(found)
        return
    if output is not None:
        options.check_output(output, ".png")

    from ..engine.media import load_clip
    from ..training.evaluation.report import draw_report, inspect_clip

    loaded = load_clip(clip)
    inspection = inspect_clip(loaded)
    if output is not None:
        draw_report(loaded, inspection, output)
    if json:
        options.show_json(inspection.to_dict())
    else:
        print(inspection)
        if output is not None:
            print(f"{output}: report")
