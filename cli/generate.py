"""``syncflow generate``: a sentence becomes a clip."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from . import options


def generate(
    prompt: Annotated[str, typer.Argument(help="What the clip shows, in a sentence; may be empty with --video.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write the clip: .mp4, or .wav for the sound.")
    ],
    seed: Annotated[int, typer.Option(help="Same prompt, same seed, same clip.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Euler steps of each modality; the model's default.")] = None,
    cfg: Annotated[
        float | None, typer.Option(help="Weight of classifier-free guidance, 1 = off; the model's default.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What guidance moves away from, instead of no text.")] = None,
    sync_guidance: Annotated[
        float | None,
        typer.Option(help="Away from sound that sees no picture, 0 = off; the model's default."),
    ] = None,
    sync_cfg_audio: Annotated[
        float | None, typer.Option(help="Away from the sound of a still picture, 1 = off; the model's default.")
    ] = None,
    sync_cfg_video: Annotated[
        float | None, typer.Option(help="Away from the video of silence, 1 = off; the model's default.")
    ] = None,
    cfg_interval: Annotated[
        tuple[float, float] | None, typer.Option(help="Flow times (0 = noise, 1 = data) between which guidance holds.")
    ] = None,
    cfg_rescale: Annotated[
        float | None, typer.Option(help="Draw the contrast of guided steps back, 0 = off to 1 = wholly.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Duration; the model's default, or that of --video.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; the model's default.")] = None,
    video: Annotated[Path | None, typer.Option(help="A video whose sound is to be drawn (video-to-audio).")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture that the clip begins with.")] = None,
    extend: Annotated[
        Path | None, typer.Option(help="A clip to continue; --seconds is the whole, 1 s more than it by default.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="A sound whose video is to be drawn, by a model whose video reads it.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Draw a variation of --video: 0 would keep it, 1 draws it anew.")
    ] = None,
    video_lead: Annotated[
        float | None, typer.Option(help="How far the video runs ahead of the sound: 0 shared time, 1 video first.")
    ] = None,
    model: options.Model = None,
    json: options.Json = False,
) -> None:
    """Draw a short video and its sound from a sentence."""
    started = time.perf_counter()
    options.check_output(output, ".mp4", ".wav")
    width, height = options.size(size)

    from ..engine.types import Request

    request = Request(
        prompt,
        seed=seed,
        steps=steps,
        guidance=cfg,
        seconds=seconds,
        width=width,
        height=height,
        video=video,
        image=image,
        extend=extend,
        audio=audio,
        strength=strength,
        video_lead=video_lead,
        negative_prompt=negative,
        sync_guidance=sync_guidance,
        sync_cfg_audio=sync_cfg_audio,
        sync_cfg_video=sync_cfg_video,
        guidance_interval=cfg_interval,
        guidance_rescale=cfg_rescale,
    )

    from ..engine.engine import Engine

    engine = Engine.from_pretrained(model)
    loaded = time.perf_counter()
    clip = engine.generate(request, progress=not json)
    sampled = time.perf_counter()
    clip.save(output)
    if json:
        options.show_json(
            {
                "path": str(output),
                "seconds": clip.seconds,
                "frames": len(clip.frames),
                "width": clip.frames.shape[2],
                "height": clip.frames.shape[1],
                "fps": clip.fps,
                "sample_rate": clip.sample_rate,
                "load_s": round(loaded - started, 3),
                "sampling_s": round(sampled - loaded, 3),
                "total_s": round(time.perf_counter() - started, 3),
                **clip.provenance,
            }
        )
    else:
        print(
            f"{output}: {clip.seconds:g} s, {clip.frames.shape[2]}x{clip.frames.shape[1]}, "
            f"{time.perf_counter() - started:.1f} s"
        )
