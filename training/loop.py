"""The training loop: batches, steps, averages, checkpoints. The loss is in ``objectives``, the stages in ``stages``.

A run is a folder: ``checkpoint.pt`` (everything needed to continue, replaced atomically), ``tensorboard/`` and
``train.json``. Every random number of step i depends on (seed, i) alone, so a resumed run equals one that was
not interrupted. The rows of a step are drawn as one and dealt to processes and parts, so a run on several processes
equals one on a single process up to rounding.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..engine.codecs.text import TextEncoder
from ..engine.model import DDiT
from .config import TrainConfig
from .data.latents import LatentSet
from .distillation import DistillationObjective, SegmentBatches
from .objectives import Batch, FlowObjective, rows_of_lengths, sample_flow, take
from .processes import make_accelerator
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
    """Random batches of latent sets, on the device, addressed by step; each step is of one set, thus of one length.

    A step has ``parts`` of ``config.batch`` rows of the first set, or of as many of another as have the same number of
    tokens. Sets are chosen so often that every clip is seen equally often.
    """

    def __init__(
        self,
        latents: Sequence[LatentSet],
        text_encoder: TextEncoder,
        config: TrainConfig,
        device: torch.device,
        parts: int = 1,
    ) -> None:
        self.latents, self.device = latents, device
        captions = sorted({caption for one in latents for caption in one.captions})
        ids, mask = text_encoder.tokenize(captions)
        index = {caption: i for i, caption in enumerate(captions)}
        self.text = [torch.tensor([index[caption] for caption in one.captions]) for one in latents]
        self.ids, self.mask = ids.to(device), mask.to(device)
        self.rows = rows_of_lengths(config.batch, parts, [len(one.frame_times) for one in latents])
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
    # Syncphony's video reads nothing of the end of the audio tower, which has no gradient then.
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.stage == "sync")
    precision = "no" if config.precision == "fp32" else "bf16"
    accelerator = make_accelerator(mixed_precision=precision, kwargs_handlers=[unused])
    model.to(accelerator.device), text_encoder.to(accelerator.device)
    freeze_rest(model, text_encoder, config)
    parts = accelerator.num_processes * config.accumulate
    own = range(accelerator.process_index * config.accumulate, (accelerator.process_index + 1) * config.accumulate)
    objective, draw = _objective(model, text_encoder, data, config, accelerator.device, parts)
    optimizers = optimisers(model, text_encoder, config)
    average = Average(trained_modules(model, text_encoder, config), config.ema)
    step, elapsed = _resume(run, model, text_encoder, optimizers, average, config)
    base_rates = [optimizer.defaults["lr"] for optimizer in optimizers]
    prepared = accelerator.prepare(objective, *optimizers)
    objective, optimizers = prepared[0], list(prepared[1:])
    loss_of = torch.compile(objective) if config.compile else objective
    trained = [p for module in trained_modules(model, text_encoder, config) for p in module.parameters()]
    saved = time.monotonic()
    with Log(run, config, step, accelerator) as log:
        while (progress := _progress(step, elapsed, config, accelerator)) < 1:
            start = time.monotonic()
            drawn = draw(torch.Generator().manual_seed(_seed(config, step)))
            factor = schedule(progress, step, config)
            for optimizer, rate in zip(optimizers, base_rates, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor
            losses: list[dict[str, Tensor]] = []
            for part in own:
                torch.manual_seed(_seed(config, step, part))  # dropout of a trained text encoder
                with nullcontext() if part == own[-1] else accelerator.no_sync(objective):
                    with accelerator.autocast():
                        losses.append(loss_of(*(take(values, slice(part, None, parts)) for values in drawn)))
                    accelerator.backward(losses[-1]["loss"] / len(own))
            norm = accelerator.clip_grad_norm_(trained, config.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            average.update(step)
            step += 1
            if step > 3:  # the first steps compile
                elapsed += time.monotonic() - start
            log.step(step, progress, losses, {"gradient_norm": float(norm), "learning_rate": config.lr * factor})
            if time.monotonic() - saved > 60 * config.checkpoint_minutes and accelerator.is_main_process:
                _save(run, model, text_encoder, optimizers, average, config, step, elapsed)
                saved = time.monotonic()
    if accelerator.is_main_process:
        _save(run, model, text_encoder, optimizers, average, config, step, elapsed)
    average.store()


class Log:
    """Progress, TensorBoard and ``train.json`` of a run, in its main process."""

    def __init__(self, run: Path, config: TrainConfig, step: int, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.board: SummaryWriter | None = None
        if accelerator.is_main_process:
            run.mkdir(parents=True, exist_ok=True)
            (run / "train.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
            self.board = SummaryWriter(str(run / "tensorboard"))
        self.bar = tqdm(
            initial=step,
            total=None if config.minutes else config.steps,
            desc=f"stage {config.stage}",
            unit="step",
            disable=None if accelerator.is_main_process else True,
            mininterval=5,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()

    def step(self, step: int, progress: float, losses: list[dict[str, Tensor]], values: dict[str, float]) -> None:
        """Every 20 steps the losses, means over all parts of the step, and the other values."""
        self.bar.update(1)
        if step % 20:
            return
        means = torch.stack(
            [torch.stack([part[name].detach().float() for part in losses]).mean() for name in losses[0]]
        )
        named = dict(zip(losses[0], self.accelerator.reduce(means, "mean").tolist(), strict=True))
        if self.board is not None:
            for name, value in ({f"loss/{name}": loss for name, loss in named.items()} | values).items():
                self.board.add_scalar(name, value, step)
        shown = {name: f"{loss:.4f}" for name, loss in named.items() if name != "loss"}
        self.bar.set_postfix(shown | {"done": f"{progress:.1%}"})


def _seed(config: TrainConfig, *place: int) -> int:
    return hash((config.seed, *place)) & (2**63 - 1)


def _objective(
    model: DDiT,
    text_encoder: TextEncoder,
    data: Sequence[LatentSet] | Sequence[TrajectorySet],
    config: TrainConfig,
    device: torch.device,
    parts: int,
) -> tuple[nn.Module, Draw]:
    """The objective of the stage, in training mode, and what draws its arguments for all ``parts`` of a step."""
    if config.stage == "distill":
        segments = SegmentBatches(cast("Sequence[TrajectorySet]", data), text_encoder, config, device, parts)
        return DistillationObjective(model, text_encoder, config).train(), lambda generator: (segments.at(generator),)
    batches = Batches(cast("Sequence[LatentSet]", data), text_encoder, config, device, parts)

    def draw(generator: torch.Generator) -> tuple[Any, ...]:
        batch = batches.at(generator)
        return batch, sample_flow(batch, config, generator)

    return FlowObjective(model, text_encoder, config).train(), draw


def _progress(step: int, elapsed: float, config: TrainConfig, accelerator: Accelerator) -> float:
    """Share of the run that is done, by the clock of the main process, so that all end at the same step."""
    if not config.minutes:
        return step / config.steps
    clock = broadcast(torch.tensor([elapsed], dtype=torch.float32, device=accelerator.device)).item()
    return max(step / config.steps, clock / (60 * config.minutes))


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
