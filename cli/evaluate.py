"""``syncflow evaluate``: score generated clips on audio-video sync and on the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options


def evaluate(
    model: options.Model = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt per line; default: prompts of unseen rendered clips.")
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="Number of prompts; 0: none.")] = 64,
    v2a_count: Annotated[int, typer.Option(min=0, help="Number of rendered clips for video-to-audio; 0: none.")] = 32,
    a2v_count: Annotated[
        int, typer.Option(min=0, help="Number of rendered clips for audio-to-video, where the video reads the audio.")
    ] = 0,
    kinds: options.Kinds = "bounce",
    seed: Annotated[int, typer.Option(min=0, help="Seed of prompts, clips and noise, from 0.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Euler steps, 1 to 1000; default: the model's.")] = None,
    cfg: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance, 1: off; default: the model's.")
    ] = None,
    sync_guidance: Annotated[
        float | None, typer.Option(help="Scale of sync guidance, 0: off; default: the model's.")
    ] = None,
    sync_cfg_audio: Annotated[
        float | None, typer.Option(help="Scale of SyncCFG of the audio, 1: off; default: the model's.")
    ] = None,
    video_lead: Annotated[
        float | None, typer.Option(help="Lead of the video's flow time, 0 to 1; default: the model's.")
    ] = None,
    clap: Annotated[
        Path | None, typer.Option(help="Folder of a CLAP model of transformers: CLAP score and FAD; default: none.")
    ] = None,
    videomae: Annotated[
        Path | None, typer.Option(help="Folder of a VideoMAE model of transformers: FVD; default: none.")
    ] = None,
    ast: Annotated[
        Path | None,
        typer.Option(help="Folder of an audio spectrogram transformer of transformers: KL; default: none."),
    ] = None,
    imagebind: Annotated[
        Path | None, typer.Option(help="File of ImageBind's weights (imagebind_huge.pth): its scores; default: none.")
    ] = None,
    imagebind_tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of CLIP's tokenizer; default: that of --imagebind.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size, at least 1.")] = 16,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the clips and a page of them; default: none.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Score generated clips on sync and on the prompt's colour, beside blind soundtracks and ground truth."""
    from ..training.evaluation.run import run_evaluation

    if output is not None:
        options.check_output(output / "index.html")
    lines = None
    if prompts is not None:
        try:
            lines = [line.strip() for line in prompts.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the prompts file {prompts} cannot be read ({error})") from None
        if len(lines) < 2:
            raise ValueError(f"{prompts} has {len(lines)} prompts; shuffling soundtracks needs at least 2")

    if imagebind_tokenizer and not imagebind:
        raise ValueError("--imagebind-tokenizer is for the texts of ImageBind; name its file too (--imagebind)")

    from ..engine.engine import Engine
    from ..training.evaluation.embeddings import Clap, ImageBind, Networks, SpectrogramTransformer, VideoMae

    networks = Networks(
        Clap(clap) if clap else None,
        VideoMae(videomae) if videomae else None,
        SpectrogramTransformer(ast) if ast else None,
        ImageBind(imagebind, imagebind_tokenizer) if imagebind else None,
    )
    settings = {
        "steps": steps,
        "guidance": cfg,
        "sync_guidance": sync_guidance,
        "sync_cfg_audio": sync_cfg_audio,
        "video_lead": video_lead,
    }
    scores = run_evaluation(
        Engine.from_pretrained(model),
        lines,
        count=count,
        v2a_count=v2a_count,
        a2v_count=a2v_count,
        kinds=options.names(kinds),
        seed=seed,
        batch=batch,
        keep=output,
        networks=networks,
        **settings,
    )
    if json:
        options.show_json(scores.to_dict())
    else:
        print(scores)
        if output is not None:
            print(f"\n{output / 'index.html'}: the scores, and every clip beside its plot")
