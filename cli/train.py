"""``syncflow train``: from a folder of captioned clips to a model package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import options


def train(
    data: Annotated[
        Path, typer.Argument(help="Folder of clips with captions (metadata.jsonl, metadata.csv or a .txt each).")
    ],
    run: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run goes on from its checkpoints.")],
    stage: Annotated[
        Literal["all", "codecs", "video", "audio", "joint"],
        typer.Option(help="What to train; all = the codecs and the stages of the preset's recipe."),
    ] = "all",
    preset: Annotated[str, typer.Option(help="Architecture and recipe.")] = "syncflow-tiny",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each stage.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Training time of each stage; 0 = no limit.")] = None,
    batch: Annotated[int | None, typer.Option(help="Clips a step and process.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    optimal_transport: Annotated[
        bool | None, typer.Option("--optimal-transport/--independent-pairs", help="How noise is paired with data.")
    ] = None,
    compile: Annotated[bool | None, typer.Option(help="Compile the training step.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE: any other setting of the stage; may be repeated.")
    ] = None,
    windows: Annotated[
        int, typer.Option(min=1, help="Random windows of every video that is longer than a clip; 1 to 1000.")
    ] = 4,
    model: Annotated[Path | None, typer.Option(help="Model package to start from instead of the run's own.")] = None,
) -> None:
    """Train the codecs and the three stages: video, audio with the video frozen, joint."""
    from ..engine.config import preset as named
    from ..training import recipes
    from ..training.config import STAGES

    config = named(preset)
    given = {
        "steps": steps,
        "minutes": minutes,
        "batch": batch,
        "precision": precision,
        "optimal_transport": optimal_transport,
        "compile": compile,
        **_settings(setting or []),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    options.check_output(run / "train.json")
    named_stages = recipes.WHOLE.get(preset, STAGES) if stage == "all" else [s for s in STAGES if s == stage]
    stages = [recipes.stage_config(preset, s, changes) for s in named_stages]
    clips = recipes.clip_folder(data, config, stages[0].seed if stages else 0, windows)
    if stage in ("codecs", "all"):
        recipes.train_codecs(clips, run)
    for number, stage_config in enumerate(stages):
        package = recipes.train_stage(clips, run, config, stage_config, model if number == 0 else None)
        print(f"{package}: after stage {stage_config.stage}")


def _settings(pairs: list[str]) -> dict[str, Any]:
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {pair!r}")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    return values
