"""``syncflow evaluate``: does what is seen match what is heard, and what was asked for?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options


def evaluate(
    model: options.Model = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, a prompt a line; unseen rendered kinds by default.")
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="How many prompts.")] = 64,
    v2a_count: Annotated[int, typer.Option(min=0, help="How many rendered clips for video-to-audio; 0 = none.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of prompts, clips and noise.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Euler steps; the model's default.")] = None,
    cfg: Annotated[float | None, typer.Option(help="Guidance; the model's default.")] = None,
    sync_guidance: Annotated[float | None, typer.Option(help="Sync guidance; the model's default.")] = None,
    sync_cfg_audio: Annotated[float | None, typer.Option(help="SyncCFG of the audio; the model's default.")] = None,
    video_lead: Annotated[float | None, typer.Option(help="Lead of the video; the model's default.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips drawn at a time.")] = 16,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to keep the clips in.")] = None,
    json: options.Json = False,
) -> None:
    """Score generated clips on sync and on the prompt's colour, beside what blind sounds score."""
    from ..training.evaluation.run import run_evaluation

    lines = None
    if prompts is not None:
        try:
            lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the prompts file {prompts} cannot be read ({error})") from None
        if len(lines) < 2:
            raise ValueError(f"{prompts} has {len(lines)} prompts; shuffling soundtracks needs at least 2")

    from ..engine.engine import Engine

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
        seed=seed,
        batch=batch,
        keep=output,
        **settings,
    )
    if json:
        options.show_json(scores.to_dict())
    else:
        print(scores)
