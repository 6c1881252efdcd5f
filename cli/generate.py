"""``syncflow generate``: a sentence becomes a clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options, results

if TYPE_CHECKING:
    from ..engine.config import ModelConfig


def generate(
    prompt: Annotated[str, typer.Argument(help="What the clip shows, in a sentence; may be empty with --video.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write the clip: .mp4, or .wav for the sound. Not for --plan."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same prompt, same seed, same clip.")] = 0,
    audio_seed: Annotated[int | None, typer.Option(help="Seed of the sound; --seed by default.")] = None,
    takes: results.Takes = 1,
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
    branch_interval: Annotated[
        int | None,
        typer.Option(
            help="Evaluate what guidance moves away from at every N-th step, and keep the difference; 1 = off, exact."
        ),
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
    reference: Annotated[
        Path | None, typer.Option(help="A sound whose style is wanted, by a model with the bridge global_local.")
    ] = None,
    sound_only: Annotated[
        bool,
        typer.Option("--sound-only", help="A sound without a video (.wav), by a model whose audio reads the text."),
    ] = False,
    strength: Annotated[
        float | None, typer.Option(help="Draw a variation of --video: 0 would keep it, 1 draws it anew.")
    ] = None,
    video_lead: Annotated[
        float | None, typer.Option(help="How far the video runs ahead of the sound: 0 shared time, 1 video first.")
    ] = None,
    keep_latents: results.KeepLatents = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Draw nothing: say what would be computed. --model may then be the name of a preset."
        ),
    ] = False,
    model: options.Model = None,
    runtime: options.Runtime = "auto",
    precision: options.RuntimePrecision = "auto",
    cuda_graphs: options.CudaGraphs = None,
    overlap: options.Overlap = None,
    fp8: options.Fp8 = False,
    autotune: options.Autotune = False,
    json: options.Json = False,
) -> None:
    """Draw a short video and its sound from a sentence."""
    watch = results.Stopwatch()
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
        branch_interval=branch_interval,
        reference=reference,
        sound_only=sound_only,
        audio_seed=audio_seed,
        takes=takes,
    )
    if plan:
        from ..benchmarks.plan import explain

        found = explain(_configuration(model), request)
        if json:
            options.show_json(found.to_dict())
        else:
            print(found.table())
        return
    if output is None:
        raise ValueError("say where to write the clip: -o clip.mp4")
    suffixes = (".wav",) if sound_only else (".mp4", ".wav")
    paths = results.outputs(output, takes, *suffixes, keep_latents=keep_latents)

    from ..engine.engine import Engine

    engine = Engine.from_pretrained(
        model,
        runtime=runtime,
        precision=precision,
        cuda_graphs=cuda_graphs,
        overlap=overlap,
        fp8=fp8,
        autotune=autotune,
    )
    watch.model_loaded()
    clips = engine.generate([request], progress=not json)
    results.write(clips, paths, watch, keep_latents=keep_latents, json=json)


def _configuration(model: Path | None) -> ModelConfig:
    """That of a package, or a preset's, for which no weights are needed."""
    from ..engine.package import open_package
    from ..engine.presets import PRESETS

    if model is not None and str(model) in PRESETS and not model.exists():
        return PRESETS[str(model)]
    return open_package(options.model_folder(model)).config
