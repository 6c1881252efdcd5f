"""``syncflow train``: train a model package on a folder of captioned clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import options


def train(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of clips with captions (metadata.jsonl, metadata.csv, or a .txt per clip), a list of them, or "
            "WebDataset shards (.tar)."
        ),
    ],
    run: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run continues from its checkpoints.")],
    stage: Annotated[
        Literal["all", "codecs", "video", "audio", "joint", "sync", "distill"],
        typer.Option(
            help="Stage to train; all: the codecs, then the stages of the preset's recipe; distill: a student of few "
            "sampling steps."
        ),
    ] = "all",
    preset: Annotated[str, typer.Option(help="Preset: architecture and recipe.")] = "syncflow-tiny",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps per stage; default: the recipe's.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes of training per stage, 0: no limit; default: the recipe's.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Clips per step and process; default: the recipe's.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; default: the recipe's.")] = None,
    optimal_transport: Annotated[
        bool | None,
        typer.Option(
            "--optimal-transport/--independent-pairs", help="How noise is paired with data; default: the recipe's."
        ),
    ] = None,
    compile: Annotated[bool | None, typer.Option(help="Compile the training step; default: the recipe's.")] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            help="Rank of an adapter (LoRA) of the video tower to train in place of the weights, 1 to 4096; needs "
            "--stage video or joint; default: none."
        ),
    ] = None,
    student_steps: Annotated[
        int | None,
        typer.Option(help="Sampling steps of the student that --stage distill makes, 1 to 64; default: the recipe's."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, any other setting of the stage; repeatable.")
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(
            help="Lengths to train on, in frames, separated by commas: each video is taken at the longest that it "
            "fills; default: the preset's length."
        ),
    ] = None,
    windows: Annotated[
        int, typer.Option(min=1, help="Random windows of every video that is longer than a clip; 1 to 1000.")
    ] = 4,
    plan: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            metavar="TFLOPS",
            help="Print what each stage takes on a device that sustains so many TFLOP/s, and train nothing.",
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Model package to start from; default: the run's own.")] = None,
    towers: Annotated[
        Path | None,
        typer.Option(
            help="Model package whose towers a model of another preset begins with, and whose codecs, unless the run "
            "has its own; default: none."
        ),
    ] = None,
) -> None:
    """Train the codecs and the stages: video, audio (video tower frozen), joint, sync (audio to video), distill."""
    from ..engine.config import MAX_SECONDS
    from ..engine.package import open_package
    from ..engine.presets import preset as named
    from ..training import recipes
    from ..training.config import STAGES
    from ..training.processes import end_together, processes

    if towers is not None and model is not None:
        raise ValueError("--model has towers already; leave out --towers")
    if stage == "codecs" and (setting or plan is not None):
        raise ValueError("--set and --plan are for the stages; the codecs have --steps and --minutes")
    if student_steps is not None and stage != "distill":
        raise ValueError("--student-steps belongs to --stage distill")
    package = recipes.starting_package(run, model)
    config = open_package(package).config if package else named(preset)
    given = {
        "steps": steps,
        "minutes": minutes,
        "batch": batch,
        "precision": precision,
        "optimal_transport": optimal_transport,
        "compile": compile,
        "lora": lora,
        "student_steps": student_steps,
        **_settings(setting or []),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if plan is None:
        options.check_output(run / "train.json")
    named_stages = recipes.WHOLE.get(preset, STAGES) if stage == "all" else [s for s in STAGES if s == stage]
    stages = [recipes.stage_config(preset, s, changes) for s in named_stages]
    if plan is not None:
        from ..training.estimate import plan_stage

        for one in stages:
            print(plan_stage(config, one).describe(plan))
        return
    lengths = options.whole_numbers("frames", frames, most=round(MAX_SECONDS * config.sequence.fps)) if frames else []
    clips = recipes.clip_folders(data, config, lengths, stages[0].seed if stages else 0, windows)
    if stage == "codecs" or (stage == "all" and towers is None and model is None):
        limits = {name: value for name, value in {"steps": steps, "minutes": minutes}.items() if value}
        recipes.train_codecs(clips[0], run, model, limits)
    for number, stage_config in enumerate(stages):
        trained = recipes.train_stage(clips, run, config, stage_config, model if number == 0 else None, towers)
        if processes().is_main_process:
            print(f"{trained}: after stage {stage_config.stage}")
    end_together()


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
