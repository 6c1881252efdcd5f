"""``syncflow generate``: generate a clip from a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options, results

if TYPE_CHECKING:
    from ..engine.config import ModelConfig


def generate(
    prompt: Annotated[
        str,
        typer.Argument(
            help="What the clip shows, in a sentence; may be empty with --video, --image, --extend or --audio."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Output file: .mp4, .mov, .mkv, .webm, .gif, .wav for the audio alone, or - for an mp4 on standard "
            "output; not used with --plan.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the noise, from 0; the same prompt and seed give the same clip.")
    ] = 0,
    audio_seed: Annotated[int | None, typer.Option(help="Seed of the audio's noise, from 0; default: --seed.")] = None,
    takes: results.Takes = 1,
    steps: Annotated[
        int | None, typer.Option(help="Euler steps of each modality, 1 to 1000; default: the model's.")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance, -100 to 100, 1: off; default: the model's.")
    ] = None,
    negative: Annotated[
        str | None, typer.Option(help="Negative prompt of classifier-free guidance; default: none.")
    ] = None,
    sync_guidance: Annotated[
        float | None,
        typer.Option(
            help="Scale of sync guidance (away from skipped bridges), -100 to 100, 0: off; default: the model's."
        ),
    ] = None,
    sync_cfg_audio: Annotated[
        float | None,
        typer.Option(
            help="Scale of SyncCFG (away from the audio of a static video), -100 to 100, 1: off; default: the model's."
        ),
    ] = None,
    sync_cfg_video: Annotated[
        float | None,
        typer.Option(
            help="Scale of SyncCFG (away from the video of silence), -100 to 100, 1: off; default: the model's."
        ),
    ] = None,
    cfg_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Range of flow times (0: noise, 1: data) with guidance; default: 0 1."),
    ] = None,
    cfg_rescale: Annotated[float | None, typer.Option(help="Guidance rescale, 0 (off) to 1; default: 0.")] = None,
    branch_interval: Annotated[
        int | None,
        typer.Option(
            help="Evaluate guidance branches at every N-th step alone (approximate), 1 to 1000; default: 1, exact."
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Duration in seconds, above 0 to 60; default: that of --video, or the model's.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="WIDTHxHEIGHT in pixels, up to 2048x2048; default: the model's."),
    ] = None,
    video: Annotated[Path | None, typer.Option(help="Video file to generate the audio for (video-to-audio).")] = None,
    image: Annotated[Path | None, typer.Option(help="Image file that the clip begins with.")] = None,
    extend: Annotated[
        Path | None,
        typer.Option(help="Clip to continue; --seconds is the total duration, by default 1 s more than the clip's."),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(help="Audio file to generate the video for, with a model whose video reads the audio."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Audio file whose style is taken, with a model with the bridge global_local.")
    ] = None,
    sound_only: Annotated[
        bool,
        typer.Option(
            "--sound-only", help="Generate audio without video (.wav), with a model whose audio reads the text."
        ),
    ] = False,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Generate a variation of --video: above 0 (close to it) to 1 (generated anew); default: none."
        ),
    ] = None,
    video_lead: Annotated[
        float | None,
        typer.Option(help="Lead of the video's flow time, 0 (shared time) to 1 (video first); default: the model's."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter (LoRA) in peft's format, a folder or FOLDER=WEIGHT; repeatable; default: none."),
    ] = None,
    keep_latents: results.KeepLatents = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Print the cost of the request and generate nothing; --model may be the name of a preset."
        ),
    ] = False,
    model: options.Model = None,
    runtime: options.Runtime = "auto",
    precision: options.RuntimePrecision = "auto",
    cuda_graphs: options.CudaGraphs = None,
    overlap: options.Overlap = None,
    fp8: options.Fp8 = False,
    autotune: options.Autotune = False,
    block_offload: options.BlockOffload = False,
    memory: options.Memory = None,
    quantization: options.Quantization = None,
    json: options.Json = False,
) -> None:
    """Generate a short video and its audio from a prompt."""
    watch = results.Stopwatch()
    width, height = options.size(size)
    adapters = [_adapter(one) for one in adapter or []]

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
        adapters={str(number): weight for number, (_, weight) in enumerate(adapters)} or None,
    )
    if plan:
        from ..engine.cost.request import request_cost

        found = request_cost(_configuration(model), request)
        if json:
            options.show_json(found.to_dict())
        else:
            print(found.table())
        return
    if output is None:
        raise ValueError("no output file is given; name one, such as -o clip.mp4")
    suffixes = (".wav",) if sound_only else (*results.VIDEO_SUFFIXES, ".wav")
    results.check_json(output, json=json)
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
        block_offload=block_offload,
        capture_seconds=0,  # of one request, which captures what it needs
        memory=memory,
        quantization=quantization,
    )
    results.show_memory_plan(engine)
    for number, (path, _) in enumerate(adapters):
        engine.load_adapter(path, str(number))
    watch.model_loaded()
    clips = engine.generate([request], progress=not json)
    results.write(clips, paths, watch, keep_latents=keep_latents, json=json)


def _adapter(text: str) -> tuple[str, float]:
    """``FOLDER`` or ``FOLDER=WEIGHT`` -> the folder and the weight, by default 1."""
    path, equals, weight = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return path, float(weight)
    except ValueError:
        raise ValueError(f"the weight of the adapter {path} is {weight!r}; it must be a number") from None


def _configuration(model: Path | None) -> ModelConfig:
    """The configuration of a package, or of a preset, which needs no weights."""
    from ..engine.package import open_package
    from ..engine.presets import PRESETS

    if model is not None and str(model) in PRESETS and not model.exists():
        return PRESETS[str(model)]
    return open_package(options.model_folder(model)).config
