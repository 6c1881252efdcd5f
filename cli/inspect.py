"""``syncflow inspect``: look at a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options


def inspect(
    clip: Annotated[Path, typer.Argument(help="A video file, with or without sound.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to draw the report (.png).")] = None,
    json: options.Json = False,
) -> None:
    """Draw frames, waveform, motion energy and onsets of a clip on one time axis."""
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
