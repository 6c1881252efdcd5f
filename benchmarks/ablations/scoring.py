"""The scores of one cell: of a given model sampled as a variant says, or of one that is trained as it says first."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from syncflow.engine.components import Components
from syncflow.engine.engine import Engine, model_folder
from syncflow.engine.model import DDiT
from syncflow.engine.presets import preset
from syncflow.training.config import TrainConfig
from syncflow.training.data.latents import LatentSet
from syncflow.training.evaluation.run import run_evaluation
from syncflow.training.evaluation.validation import validation_losses
from syncflow.training.loop import train
from syncflow.training.recipes import stage_config, with_towers

from .ablation import Ablation, Training, Variant

BATCH = 8
SEEDS_APART = 1000  # of the prompts and noises of two cells
TOWERS = "syncflow-tiny"
TASKS = {"prompts": "", "v2a": "v2a_", "a2v": "a2v_"}  # prefixes of their counts in run_evaluation
SHORT: dict[str, Any] = {"minutes": 0.0, "warmup": 10, "decay": 0.5, "ema": 0.95}


@dataclass(frozen=True)
class Size:
    """How much a cell takes: ``clips`` of each task in ``sampling_steps``, after ``steps`` optimiser steps of ``batch``
    clips.
    """

    clips: int = 16
    sampling_steps: int = 8
    steps: int = 60
    batch: int = 8


def score(engine: Engine, ablation: Ablation, variant: Variant, seed: int, size: Size) -> dict[str, Any]:
    """Scores of the ablation's tasks; all variants get the same prompts, clips and noise."""
    counts: dict[str, Any] = {f"{name}count": size.clips * (task in ablation.tasks) for task, name in TASKS.items()}
    settings = {"steps": size.sampling_steps} | ablation.request | variant.request
    return run_evaluation(engine, seed=SEEDS_APART * seed, batch=BATCH, **counts, **settings).to_dict()


def train_config(training: Training, variant: Variant, seed: int, size: Size) -> TrainConfig:
    """The recipe of the stage, made short, as the variant changes it."""
    short = SHORT | {"steps": size.steps, "batch": size.batch, "seed": seed}
    return stage_config(training.preset, training.stage, short | training.changes | variant.train)


def start_model(training: Training, variant: Variant, towers: Path, seed: int) -> Components:
    """The model that a variant begins with; what begins afresh depends on the seed alone."""
    config = preset(training.preset)
    config = dataclasses.replace(config, ddit=config.ddit.replace(**variant.ddit))
    components = with_towers(config, towers, seed=seed)
    if training.anew:
        torch.manual_seed(seed)
        fresh = DDiT(preset(training.preset).ddit).audio.state_dict()  # the preset's, so that variants begin alike
        own = components.ddit.audio.state_dict()
        anew = {name: fresh[name] for name in own if any(part in name for part in training.anew)}
        components.ddit.audio.load_state_dict(own | anew)
    return components


def score_trained(
    ablation: Ablation,
    variant: Variant,
    seed: int,
    size: Size,
    data: LatentSet,
    unseen: LatentSet,
    run: Path,
    *,
    towers: str | Path = TOWERS,
    runtime: str = "auto",
) -> dict[str, Any]:
    """Train a variant on ``data`` in the folder ``run``, which is removed at the end, then score it.

    ``loss_…``: the validation losses on ``unseen``, where the ablation has one among its scores.
    """
    assert ablation.training is not None
    config = train_config(ablation.training, variant, seed, size)
    components = start_model(ablation.training, variant, model_folder(towers), seed)
    train(components.ddit, components.text, [data], config, run)
    components.ddit.eval()
    losses = {}
    if any(one.name.startswith("loss_") for one in ablation.scores):
        losses = validation_losses(
            components.ddit,
            components.text,
            unseen,
            time_shift=config.time_shift,
            bridged=config.bridge_dropout < 1,
            seed=seed,
        )
    with Engine(components, components.ddit.device, runtime=runtime) as engine:
        scores = score(engine, ablation, variant, seed, size)
    shutil.rmtree(run)
    return scores | {f"loss_{name}": loss for name, loss in losses.items()}
