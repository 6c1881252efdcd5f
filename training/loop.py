"""The training loop: batches, steps, averages, checkpoints. The loss is in ``objectives``, the stages in ``stages``.

A run is a folder: ``checkpoint.pt`` (everything needed to continue, replaced atomically), ``tensorboard/`` and
``train.json``. Every random number of step i depends on (seed, i) alone, so a resumed run equals one that was
not interrupted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..engine.codecs.text import TextEncoder
from ..engine.model import DDiT
from .config import TrainConfig
from .data.latents import LatentSet
from .distillation import DistillationObjective, SegmentBatches
from .objectives import Batch, FlowObjective, sample_flow
from .stages import freeze_rest, optimisers, trained_modules
from .trajectories import TrajectorySet

Draw = Callable[[torch.Generator], tuple[Any, ...]]  # the arguments of an objective, random ones of a generator


class Average:
    """Exponential moving average of parameters with the usual quick start: min(decay, (1 + step) / (10 + step))."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self.live: list[Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.mean = [p.detach().clone() for p in self.live]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.mean, self.live, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def store(self) -> None:
        """Put the averages into the model."""
        for p, mean in zip(self.live, self.mean, strict=True):
            p.copy_(mean)


class Batches:
    """Random batches of latent sets, on the device, addressed by step; each batch is of one set, thus of one length.

    A batch of the first set has ``config.batch`` rows, one of another set as many as have the same number of tokens.
    Sets are chosen so often that every clip is seen equally often.
    """

    def __init__(
        self, latents: Sequence[LatentSet], text_encoder: TextEncoder, config: TrainConfig, device: torch.device
    ) -> None:
        self.latents, self.device = latents, device
        captions = sorted({caption for one in latents for caption in one.captions})
        ids, mask = text_encoder.tokenize(captions)
        index = {caption: i for i, caption in enumerate(captions)}
        self.text = [torch.tensor([index[caption] for caption in one.captions]) for one in latents]
        self.ids, self.mask = ids.to(device), mask.to(device)
        self.rows = [
            max(1, round(config.batch * len(latents[0].frame_times) / len(one.frame_times))) for one in latents
        ]
        self.shares = torch.tensor([len(one) / rows for one, rows in zip(latents, self.rows, strict=True)])

    def at(self, generator: torch.Generator) -> Batch:
        chosen = int(torch.multinomial(self.shares, 1, generator=generator)) if len(self.latents) > 1 else 0
        latents = self.latents[chosen]
        picks = torch.randint(len(latents), (self.rows[chosen],), generator=generator)
        rows = picks.numpy()
        text = self.text[chosen][picks].to(self.device)
        return Batch(
            torch.from_numpy(latents.video[rows]).float().to(self.device),
            torch.from_numpy(latents.audio[rows]).float().to(self.device),
            self.ids[text],
            self.mask[text],
            torch.full((len(picks),), float(latents.fps), device=self.device),
            torch.tensor(latents.frame_times, device=self.device),
        )


def schedule(progress: float, step: int, config: TrainConfig) -> float:
    """Factor of the learning rate: linear warm-up, constant, then linear to zero over the last ``decay`` of the run."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return warm * min(1.0, max(0.0, 1 - progress) / max(config.decay, 1e-9))


def train(
    model: DDiT,
    text_encoder: TextEncoder,
    data: Sequence[LatentSet] | Sequence[TrajectorySet],
    config: TrainConfig,
    run: Path,
) -> None:
    """Train one stage in place; the model holds the averaged weights afterwards.

    ``data`` are clips of one or several lengths, or for the stage ``distill`` trajectories of the teacher. Continues
    from ``run/checkpoint.pt`` if it exists and belongs to the same stage.
    """
    run.mkdir(parents=True, exist_ok=True)
    (run / "train.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    accelerator = Accelerator(mixed_precision="no" if config.precision == "fp32" else "bf16")
    model.to(accelerator.device), text_encoder.to(accelerator.device)
    freeze_rest(model, text_encoder, config)
    objective, draw = _objective(model, text_encoder, data, config, accelerator.device)
    optimizers = optimisers(model, text_encoder, config)
    average = Average(trained_modules(model, text_encoder, config), config.ema)
    step, elapsed = _resume(run, model, text_encoder, optimizers, average, config)
    base_rates = [optimizer.defaults["lr"] for optimizer in optimizers]
    prepared = accelerator.prepare(objective, *optimizers)
    objective, optimizers = prepared[0], list(prepared[1:])
    loss_of = torch.compile(objective) if config.compile else objective
    trained = [p for module in trained_modules(model, text_encoder, config) for p in module.parameters()]
    saved = time.monotonic()
    with SummaryWriter(str(run / "tensorboard")) as board, _bar(step, config, accelerator) as bar:
        while (progress := _progress(step, elapsed, config)) < 1:
            start = time.monotonic()
            seed = hash((config.seed, step, accelerator.process_index)) & (2**63 - 1)
            generator = torch.Generator().manual_seed(seed)
            torch.manual_seed(seed)  # dropout of a trained text encoder
            drawn = draw(generator)
            factor = schedule(progress, step, config)
            for optimizer, rate in zip(optimizers, base_rates, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor
            with accelerator.autocast():
                parts: dict[str, Tensor] = loss_of(*drawn)
            accelerator.backward(parts["loss"])
            norm = accelerator.clip_grad_norm_(trained, config.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            average.update(step)
            step += 1
            if step > 3:  # the first steps compile
                elapsed += time.monotonic() - start
            bar.update(1)
            if step % 20 == 0:
                for name, value in parts.items():
                    board.add_scalar(f"loss/{name}", value.item(), step)
                board.add_scalar("gradient_norm", float(norm), step)
                board.add_scalar("learning_rate", config.lr * factor, step)
                shown = {name: f"{value.item():.4f}" for name, value in parts.items() if name != "loss"}
                bar.set_postfix(shown | {"done": f"{progress:.1%}"})
            if time.monotonic() - saved > 60 * config.checkpoint_minutes and accelerator.is_main_process:
                _save(run, model, text_encoder, optimizers, average, config, step, elapsed)
                saved = time.monotonic()
    if accelerator.is_main_process:
        _save(run, model, text_encoder, optimizers, average, config, step, elapsed)
    average.store()


def _objective(
    model: DDiT,
    text_encoder: TextEncoder,
    data: Sequence[LatentSet] | Sequence[TrajectorySet],
    config: TrainConfig,
    device: torch.device,
) -> tuple[nn.Module, Draw]:
    """The objective of the stage, in training mode, and what draws its arguments."""
    if config.stage == "distill":
        segments = SegmentBatches(cast("Sequence[TrajectorySet]", data), text_encoder, config, device)
        return DistillationObjective(model, text_encoder, config).train(), lambda generator: (segments.at(generator),)
    batches = Batches(cast("Sequence[LatentSet]", data), text_encoder, config, device)

    def draw(generator: torch.Generator) -> tuple[Any, ...]:
        batch = batches.at(generator)
        return batch, sample_flow(batch, config, generator)

    return FlowObjective(model, text_encoder, config).train(), draw


def _progress(step: int, elapsed: float, config: TrainConfig) -> float:
    timed = elapsed / (60 * config.minutes) if config.minutes else 0.0
    return max(step / config.steps, timed)


def _bar(step: int, config: TrainConfig, accelerator: Accelerator) -> tqdm:
    total = None if config.minutes else config.steps
    shown = accelerator.is_main_process
    return tqdm(
        initial=step,
        total=total,
        desc=f"stage {config.stage}",
        unit="step",
        disable=None if shown else True,
        mininterval=5,
    )


def _save(
    run: Path,
    model: DDiT,
    text_encoder: TextEncoder,
    optimizers: list[Any],
    average: Average,
    config: TrainConfig,
    step: int,
    elapsed: float,
) -> None:
    part = run / "checkpoint.pt.part"
    torch.save(
        {
            "stage": config.stage,
            "step": step,
            "elapsed": elapsed,
            "model": model.state_dict(),
            "text_encoder": text_encoder.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "average": average.mean,
        },
        part,
    )
    os.replace(part, run / "checkpoint.pt")


def _resume(
    run: Path, model: DDiT, text_encoder: TextEncoder, optimizers: list[Any], average: Average, config: TrainConfig
) -> tuple[int, float]:
    file = run / "checkpoint.pt"
    if not file.is_file():
        return 0, 0.0
    state = torch.load(file, map_location="cpu", weights_only=True)
    if state["stage"] != config.stage:
        raise ValueError(
            f"{file} belongs to stage {state['stage']}, not to stage {config.stage}; choose another run folder"
        )
    model.load_state_dict(state["model"])
    text_encoder.load_state_dict(state["text_encoder"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    with torch.no_grad():
        for mean, saved in zip(average.mean, state["average"], strict=True):
            mean.copy_(saved)
    return state["step"], state["elapsed"]
