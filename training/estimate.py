"""What a stage of training takes before it starts, counted on the meta device: parameters, memory, FLOPs, time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..engine.codecs.text import TextEncoder
from ..engine.cost.counting import meta_model
from ..engine.cost.flops import OPERATIONS
from ..engine.cost.live_memory import LiveMemoryMode
from ..engine.cost.memory import tensor_bytes
from ..engine.cost.memory_plan import gigabytes
from .lora import add_branches
from .objectives import Batch, FlowObjective, FlowSample
from .stages import check_stage, freeze_rest, optimisers, trained_modules

if TYPE_CHECKING:
    from ..engine.config import ModelConfig
    from ..engine.model import DDiT
    from .config import TrainConfig

FLOAT = 4  # bytes of a weight, a gradient, a moment


@dataclass(frozen=True)
class StagePlan:
    """A stage on one device: numbers of parameters, bytes of each kind, and FLOPs of a step.

    ``states``: moments of the optimisers and the moving average. ``activations``: what a step holds beside weights,
    gradients and states at its peak.
    """

    stage: str
    trained: int
    frozen: int
    weights: int
    gradients: int
    states: int
    activations: int
    step_flops: int
    steps: int | None

    @property
    def memory(self) -> int:
        """Bytes at the peak of a step."""
        return self.weights + self.gradients + self.states + self.activations

    def seconds(self, tflops: float) -> float:
        """Of a step, at ``tflops`` (1e12 FLOP/s) sustained."""
        return self.step_flops / (tflops * 1e12)

    def describe(self, tflops: float) -> str:
        """Lines for a terminal."""
        step = self.seconds(tflops)
        whole = "" if self.steps is None else f", {self.steps} steps {_duration(self.steps * step)}"
        sizes = (("weights", self.weights), ("gradients", self.gradients), ("optimisers and average", self.states))
        parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in (*sizes, ("activations", self.activations)))
        counts = f"{self.trained / 1e6:.1f} M parameters are trained, {self.frozen / 1e6:.1f} M are frozen"
        return (
            f"stage {self.stage}: {counts}\n"
            f"  memory {gigabytes(self.memory)} a device: {parts}\n"
            f"  {self.step_flops / 1e12:.3g} TFLOP a step: {_duration(step)} at {tflops:g} TFLOP/s{whole}"
        )


def plan_stage(preset: ModelConfig, config: TrainConfig) -> StagePlan:
    """What ``config`` takes of a model of ``preset`` with clips of its own length.

    Raises ``ValueError`` for a stage that the model does not have, and for the stage ``distill``.
    """
    check_stage(config, preset.ddit)
    if config.stage == "distill":
        raise ValueError("there is no plan of the stage distill; one of its steps takes at most a step of joint")
    model = meta_model(preset.ddit)
    with torch.device("meta"):
        text = TextEncoder.build(preset.text_encoder.settings, preset.ddit.text_tokens)
    if config.lora:
        add_branches(model, config.lora)
    freeze_rest(model, text, config)
    trained = [p for module in trained_modules(model, text, config) for p in module.parameters()]
    count, whole = sum(p.numel() for p in trained), _parameters(model) + _parameters(text)
    moments = sum(_moments(optimiser) for optimiser in optimisers(model, text, config))
    weights = tensor_bytes(model) + tensor_bytes(text)
    flops, peak = _step(model, text, preset, config)
    half = config.precision == "bf16"
    if half:  # autocast computes in bfloat16 and keeps weights and gradients in float32
        flops, peak = _step(model.bfloat16(), text.bfloat16(), preset, config)
    gradients = count * (2 if half else FLOAT)  # within the peak
    return StagePlan(
        stage=config.stage,
        trained=count,
        frozen=whole - count,
        weights=weights,
        gradients=count * FLOAT,
        states=(moments + count) * FLOAT,
        activations=max(0, peak - gradients),
        step_flops=flops * config.accumulate,
        steps=None if config.minutes else config.steps,
    )


def _step(model: DDiT, text: TextEncoder, preset: ModelConfig, config: TrainConfig) -> tuple[int, int]:
    """FLOPs of a part of a step forwards and backwards, and the peak of the bytes that it allocates."""
    objective = FlowObjective(model, text, config).train()
    batch, sample = _inputs(preset, config.batch, next(model.parameters()).dtype)

    def step() -> None:
        objective(batch, sample)["loss"].backward()
        objective.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:
        step()
    with LiveMemoryMode() as memory:
        step()
    return counter.get_total_flops(), memory.peak


def _inputs(preset: ModelConfig, rows: int, dtype: torch.dtype) -> tuple[Batch, FlowSample]:
    """Shapes of a batch."""
    sequence, ddit = preset.sequence, preset.ddit
    with torch.device("meta"):
        sides = sequence.latent_height, sequence.latent_width
        video = torch.empty(rows, ddit.video_channels, sequence.latent_frames, *sides, dtype=dtype)
        audio = torch.empty(rows, sequence.audio_tokens, ddit.audio_channels, dtype=dtype)
        ids = torch.ones(rows, ddit.text_tokens, dtype=torch.long)
        each = torch.ones(rows, dtype=dtype)
        batch = Batch(video, audio, ids, ids, each, torch.empty(sequence.latent_frames))
        return batch, FlowSample(video, audio, each, each, each.bool(), each)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _moments(optimiser: torch.optim.Optimizer) -> int:
    """Numbers that an optimiser keeps: Muon one for each weight, AdamW two."""
    each = 2 if isinstance(optimiser, torch.optim.AdamW) else 1
    return each * sum(p.numel() for group in optimiser.param_groups for p in group["params"])


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
