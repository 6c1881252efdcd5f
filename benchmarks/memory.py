"""Predicted peak memory of requests beside the measured one.

Predicted by ``engine/cost/memory.py`` on the meta device. Measured is what PyTorch's allocator handed out at most: on a
GPU by its own statistics, on a CPU by the allocations that the profiler records, and the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from syncflow.engine.components import Components
from syncflow.engine.cost.memory import MemoryEstimator
from syncflow.engine.engine import Engine, bundled_model
from syncflow.engine.model import DDiT
from syncflow.engine.sampling.loop import sample
from syncflow.engine.types import Latents, Request

from .step import PROMPTS

MODELS = ("tiny", "mid")
MID = {"width": 384, "heads": 12, "audio_heads": 12, "depth": 8}
MID_SIDE = 128  # pixels
DEVIATION = 0.02  # of its weights
STEPS = 2


@dataclass(frozen=True)
class Peak:
    """Bytes of ``batch`` requests of a model: ``weights``, ``predicted`` and ``measured`` peak with the weights."""

    model: str
    batch: int
    weights: int
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """The share by which the prediction is too large."""
        return self.predicted / self.measured - 1

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self) | {"error": self.error}


def engine_of(name: str, quantization: str | None = None) -> Engine:
    """The bundled model, or with ``mid`` one like it that is three times as wide, with random weights.

    ``quantization`` as of ``Engine``. Raises ``ValueError`` for another name.
    """
    if name not in MODELS:
        raise ValueError(f"the model is {name!r}; it must be one of {', '.join(MODELS)}")
    settings: dict[str, Any] = {"runtime": "torch", "precision": "float32", "quantization": quantization}
    if name == "tiny":
        return Engine.from_pretrained(**settings)
    parts = Components.load(bundled_model())
    config = parts.config.replace(ddit=parts.config.ddit.replace(**MID))
    model = DDiT(config.ddit).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # those of a fresh model are partly 0, and so are its velocities
        parameter.normal_(std=DEVIATION, generator=generator)
    return Engine(replace(parts, config=config, ddit=model), "auto", **settings)


def measure(name: str, batch: int, quantization: str | None = None) -> Peak:
    """The peak of sampling ``batch`` requests together, and of decoding them one after the other."""
    engine = engine_of(name, quantization)
    side: dict[str, Any] = {} if name == "tiny" else {"width": MID_SIDE, "height": MID_SIDE}
    asked = [
        Request(PROMPTS[i % len(PROMPTS)], seed=i, guidance=6.0, steps=STEPS, video_lead=0.0, **side)
        for i in range(batch)
    ]
    prepared = [engine.pipeline.prepare(request) for request in asked]
    jobs = [engine.pipeline.encode(one) for one in prepared]

    def clips() -> None:
        found = sample(engine.denoiser, jobs)
        for one, video, audio in zip(prepared, found.video.split(1), found.audio.split(1), strict=True):
            engine.pipeline.decode(one, Latents(video, audio))

    estimator = MemoryEstimator(engine.components)
    predicted = estimator.peak(prepared[0].sequence, prepared[0].plan, batch)
    clips()  # makes what later clips keep
    return Peak(name, batch, estimator.weights, predicted, estimator.weights + allocated(clips, engine.device))


@torch.inference_mode()
def allocated(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that a call of ``work`` has at once of PyTorch's allocator."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    profiler: Any = recorded.profiler
    events: list[Any] = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def table(rows: list[Peak]) -> str:
    """A Markdown line for each model."""
    lines = ["| model | requests | weights, MB | predicted peak, MB | measured, MB | error |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    for one in rows:
        sizes = " | ".join(f"{value / 1e6:.1f}" for value in (one.weights, one.predicted, one.measured))
        lines.append(f"| {one.model} | {one.batch} | {sizes} | {one.error:+.1%} |")
    return "\n".join(lines)
