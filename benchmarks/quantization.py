"""The error of weights in 8 bits against float32: of velocities, step by step, and of a whole guided clip."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from syncflow.engine.cost.memory import weight_bytes
from syncflow.engine.engine import Engine
from syncflow.engine.quantization import SCHEMES
from syncflow.engine.sampling.reference import ReferenceLoop
from syncflow.engine.types import Request

from .approximate import decibels
from .memory import engine_of
from .step import PROMPTS


@dataclass(frozen=True)
class QuantizationError:
    """A model with weights of ``weights`` bytes in float32 and ``quantized`` bytes in 8 bits.

    ``video`` and ``audio``: relative error of the guided velocity at the same latents, root of the mean square over all
    steps. ``frames_db`` and ``sound_db``: peak signal-to-noise ratios of a clip, None where there is no difference.
    """

    model: str
    weights: int
    quantized: int
    video: float
    audio: float
    frames_db: float | None
    sound_db: float | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


def measure(name: str, steps: int | None = None) -> QuantizationError:
    """The error in a model of ``memory.engine_of``, with its own guidance; the text is encoded in 8 bits, too."""
    exact, quantized = (engine_of(name, scheme) for scheme in (None, SCHEMES[0]))
    request = Request(PROMPTS[0], seed=0, steps=steps)
    video, audio = velocity_errors(exact, quantized, request)
    one, other = exact.generate([request])[0], quantized.generate([request])[0]
    return QuantizationError(
        name,
        weight_bytes(exact.components),
        weight_bytes(quantized.components),
        video,
        audio,
        decibels(255.0, [(other.frames, one.frames)]),
        decibels(1.0, [(other.waveform, one.waveform)]),
    )


def velocity_errors(exact: Engine, other: Engine, request: Request) -> tuple[float, float]:
    """Relative errors of the video's and the audio's guided velocity, at the latents of the exact loop's steps."""
    loops = [_loop(engine, request) for engine in (exact, other)]
    errors: dict[str, list[tuple[float, float]]] = {"video": [], "audio": []}
    while loops[0].k < len(loops[0].schedule):
        before = loops[1].latents = loops[0].latents
        for loop in loops:
            loop.step()
        for modality, pairs in errors.items():
            moved, found = (getattr(loop.latents, modality) - getattr(before, modality) for loop in loops)
            pairs.append((_square(found - moved), _square(moved)))
    video, audio = (np.sum(pairs, axis=0) for pairs in errors.values())
    return float(np.sqrt(video[0] / video[1])), float(np.sqrt(audio[0] / audio[1]))


def table(rows: list[QuantizationError]) -> str:
    """A Markdown line for each model."""
    lines = ["| model | weights, MB | in 8 bits | video velocity | audio velocity | frames | sound |"]
    lines.append(f"|---|{'--:|' * 6}")
    for one in rows:
        sizes = f"{one.weights / 1e6:.1f} | {one.quantized / 1e6:.1f}"
        ratios = " | ".join("-" if value is None else f"{value:.1f} dB" for value in (one.frames_db, one.sound_db))
        lines.append(f"| {one.model} | {sizes} | {one.video:.1e} | {one.audio:.1e} | {ratios} |")
    return "\n".join(lines)


def _loop(engine: Engine, request: Request) -> ReferenceLoop:
    job = engine.pipeline.encode(engine.pipeline.prepare(request))
    return ReferenceLoop(engine.components.ddit, [job])


def _square(x: Tensor) -> float:
    return float(x.double().square().sum())
