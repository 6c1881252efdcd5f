"""``syncflow retake``: another sound for a clip that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options, results


def retake(
    clip: Annotated[Path, typer.Argument(help="A clip that the model drew, or any video.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Where to write it: a video with the same pictures, .wav, or - for an mp4.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="What the clip shows; by default what it was drawn from.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sound, by default the clip's own: another seed, another sound.")
    ] = None,
    takes: results.Takes = 1,
    steps: Annotated[int | None, typer.Option(help="Euler steps of the sound; the clip's own by default.")] = None,
    cfg: Annotated[
        float | None, typer.Option(help="Weight of classifier-free guidance, 1 = off; the clip's own by default.")
    ] = None,
    sync_guidance: Annotated[
        float | None, typer.Option(help="Away from sound that sees no picture, 0 = off; the clip's own by default.")
    ] = None,
    keep_latents: results.KeepLatents = False,
    model: options.Model = None,
    runtime: options.Runtime = "auto",
    json: options.Json = False,
) -> None:
    """Draw the sound of a clip anew; the pictures stay.

    Latents kept beside it (`generate --keep-latents`) spare the encoding of its pictures.

    A video that the model did not draw takes the model's settings, and no prompt unless one is given.
    """
    watch = results.Stopwatch()
    given: dict[str, Any] = {"audio_seed": seed, "steps": steps, "guidance": cfg, "sync_guidance": sync_guidance}
    settings = {name: value for name, value in given.items() if value is not None} | {"takes": takes}

    from ..engine.types import Request

    Request(prompt or "", video=clip, **settings)  # refuses bad settings before the model is loaded
    results.check_json(output, json=json)
    paths = results.outputs(output, takes, *results.VIDEO_SUFFIXES, ".wav", keep_latents=keep_latents)

    from ..engine.engine import Engine

    engine = Engine.from_pretrained(model, runtime=runtime)
    watch.model_loaded()
    drawn = engine.retake(clip, prompt, progress=not json, **settings)
    results.write(drawn if takes > 1 else [drawn], paths, watch, keep_latents=keep_latents, json=json)
