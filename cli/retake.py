"""``syncflow retake``: generate another soundtrack for an existing clip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options, results


def retake(
    clip: Annotated[Path, typer.Argument(help="Clip that the model generated, or any video file.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Output file: a video with the same frames, .wav, or - for an mp4 on standard output.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="What the clip shows; default: the clip's own prompt.")] = None,
    seed: Annotated[int | None, typer.Option(help="Audio seed, from 0; default: the clip's own.")] = None,
    takes: results.Takes = 1,
    steps: Annotated[
        int | None, typer.Option(help="Euler steps of the audio, 1 to 1000; default: the clip's own.")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance, 1: off; default: the clip's own.")
    ] = None,
    sync_guidance: Annotated[
        float | None, typer.Option(help="Scale of sync guidance, 0: off; default: the clip's own.")
    ] = None,
    keep_latents: results.KeepLatents = False,
    model: options.Model = None,
    runtime: options.Runtime = "auto",
    memory: options.Memory = None,
    quantization: options.Quantization = None,
    json: options.Json = False,
) -> None:
    """Generate the soundtrack of a clip anew and keep its frames.

    Latents beside the clip (`generate --keep-latents`) save the encoding of its frames.

    A video that the model did not generate gets the model's default settings, and no prompt unless one is given.
    """
    watch = results.Stopwatch()
    given: dict[str, Any] = {"audio_seed": seed, "steps": steps, "guidance": cfg, "sync_guidance": sync_guidance}
    settings = {name: value for name, value in given.items() if value is not None} | {"takes": takes}

    from ..engine.types import Request

    Request(prompt or "", video=clip, **settings)  # refuses bad settings before the model is loaded
    results.check_json(output, json=json)
    paths = results.outputs(output, takes, *results.VIDEO_SUFFIXES, ".wav", keep_latents=keep_latents)

    from ..engine.engine import Engine

    engine = Engine.from_pretrained(model, runtime=runtime, capture_seconds=0, memory=memory, quantization=quantization)
    results.show_memory_plan(engine)
    watch.model_loaded()
    clips = engine.retake(clip, prompt, progress=not json, **settings)
    results.write(clips if takes > 1 else [clips], paths, watch, keep_latents=keep_latents, json=json)
