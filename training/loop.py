"""The training loop: batches, steps, averages. The loss is in ``objectives``, the stages in ``stages``.

A run is a folder: ``checkpoint.pt`` (everything needed to continue, replaced atomically), ``tensorboard/`` and
``train.json``. Every random number of step i depends on (seed, i) alone, so a resumed run equals one that was
not interrupted. The rows of a step are drawn as one and dealt to processes and parts, so a run on several processes
equals one on a single process up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, broadcast
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ..engine.codecs.text import TextEncoder
from ..engine.model import DDiT
from .average import Average
from .batches import Batches
from .checkpoint import TrainingState
from .config import TrainConfig
from .data.latents import LatentSet
from .distillation import DistillationObjective, SegmentBatches
from .log import Log
from .objectives import FlowObjective, Objective, evaluating, sample_flow, take
from .processes import make_accelerator
from .samples import Sampler
from .schedule import rate_factor, share_done
from .sharding import sharded, take_weights, whole
from .stages import freeze_rest, optimisers, trained_modules
from .trajectories import TrajectorySet

Draw = Callable[[torch.Generator], tuple[Any, ...]]  # the arguments of an objective, random ones of a generator


def train(
    model: DDiT,
    text_encoder: TextEncoder,
    data: Sequence[LatentSet] | Sequence[TrajectorySet],
    config: TrainConfig,
    run: Path,
    sampler: Sampler | None = None,
    *,
    keep_frozen: bool = False,
) -> None:
    """Train one stage in place; the model holds the averaged weights afterwards.

    ``data`` are clips of one or several lengths, or for the stage ``distill`` trajectories of the teacher. Continues
    from ``run/checkpoint.pt`` if it exists and belongs to the same stage; with ``keep_frozen`` weights that the stage
    does not train are the model's own, not the checkpoint's. Every ``config.sample_minutes`` the main process asks
    ``sampler`` for clips of the averaged weights; nothing that is trained depends on it. Raises ``ValueError`` where a
    gradient is not finite, with the last checkpoint left as it is.
    """
    # Syncphony's video reads nothing of the end of the audio tower, which has no gradient then.
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.stage == "sync")
    precision = "no" if config.precision == "fp32" else "bf16"
    accelerator = make_accelerator(mixed_precision=precision, kwargs_handlers=[unused])
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("weights are sharded by the setting shard=true; start the processes without FSDP")
    shard = config.shard and accelerator.num_processes > 1
    if not shard:
        model.to(accelerator.device), text_encoder.to(accelerator.device)
    if shard or not accelerator.is_main_process or not config.sample_minutes:
        sampler = None  # every pass of sharded weights is one of all processes
    freeze_rest(model, text_encoder, config)
    parts = accelerator.num_processes * config.accumulate
    own = range(accelerator.process_index * config.accumulate, (accelerator.process_index + 1) * config.accumulate)
    whole_objective, draw = _objective(model, text_encoder, data, config, accelerator.device, parts)
    objective = sharded(whole_objective, accelerator.device) if shard else whole_objective
    modules = trained_modules(objective.model, objective.text_encoder, config)
    optimizers = optimisers(objective.model, objective.text_encoder, config)
    average = Average(modules, config.ema)
    state = TrainingState(config.stage, objective.model, objective.text_encoder, optimizers, average)
    state.resume(run, keep_frozen=keep_frozen)
    prepared = objective if shard else accelerator.prepare(objective)
    loss_of = torch.compile(prepared) if config.compile and not shard else prepared
    trained = [p for module in modules for p in module.parameters()]
    saved = sampled = time.monotonic()
    with Log(run, config, state.step, accelerator) as log:
        while (progress := _progress(state, config, accelerator)) < 1:
            start = time.monotonic()
            drawn = draw(torch.Generator().manual_seed(_seed(config, state.step)))
            factor = rate_factor(progress, state.step, config)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = optimizer.defaults["lr"] * factor
            losses: list[dict[str, Tensor]] = []
            for part in own:
                torch.manual_seed(_seed(config, state.step, part))  # dropout of a trained text encoder
                with nullcontext() if part == own[-1] else accelerator.no_sync(prepared):
                    with accelerator.autocast():
                        losses.append(loss_of(*(take(values, slice(part, None, parts)) for values in drawn)))
                    accelerator.backward(losses[-1]["loss"] / len(own))
            norm = whole(clip_grad_norm_(trained, config.clip_norm))
            if not norm.isfinite():
                raise ValueError(
                    f"the gradient of step {state.step + 1} is not finite; the last checkpoint is kept, from which a "
                    f"lower lr ({config.lr:g}) or matrix_lr ({config.matrix_lr:g}) may go on"
                )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            average.update(state.step)
            state.step += 1
            if state.step > 3:  # the first steps compile
                state.elapsed += time.monotonic() - start
            log.step(state.step, progress, losses, {"gradient_norm": float(norm), "learning_rate": config.lr * factor})
            if sampler is not None and time.monotonic() - sampled > 60 * config.sample_minutes:
                with average.swapped_in(), evaluating(objective):
                    log.samples(state.step, sampler)
                sampled = time.monotonic()
            if _of_main(time.monotonic() - saved, accelerator) > 60 * config.checkpoint_minutes:
                state.save(run, write=accelerator.is_main_process)
                saved = time.monotonic()
    state.save(run, write=accelerator.is_main_process)
    average.store()
    if shard:
        take_weights(whole_objective, objective)


def _seed(config: TrainConfig, *place: int) -> int:
    return hash((config.seed, *place)) & (2**63 - 1)


def _objective(
    model: DDiT,
    text_encoder: TextEncoder,
    data: Sequence[LatentSet] | Sequence[TrajectorySet],
    config: TrainConfig,
    device: torch.device,
    parts: int,
) -> tuple[Objective, Draw]:
    """The objective of the stage, in training mode, and what draws its arguments for all ``parts`` of a step."""
    if config.stage == "distill":
        segments = SegmentBatches(cast("Sequence[TrajectorySet]", data), text_encoder, config, device, parts)
        return DistillationObjective(model, text_encoder, config).train(), lambda generator: (segments.at(generator),)
    batches = Batches(cast("Sequence[LatentSet]", data), text_encoder, config, device, parts)

    def draw(generator: torch.Generator) -> tuple[Any, ...]:
        batch = batches.at(generator)
        return batch, sample_flow(batch, config, generator)

    return FlowObjective(model, text_encoder, config).train(), draw


def _progress(state: TrainingState, config: TrainConfig, accelerator: Accelerator) -> float:
    """Share of the run that is done, by the clock of the main process, so that all end at the same step."""
    seconds = _of_main(state.elapsed, accelerator) if config.minutes else 0.0
    return share_done(state.step, seconds, config.steps, config.minutes)


def _of_main(value: float, accelerator: Accelerator) -> float:
    """The value of the main process, in every process."""
    return float(broadcast(torch.tensor([value], dtype=torch.float32, device=accelerator.device)))
