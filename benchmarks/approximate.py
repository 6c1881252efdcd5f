"""Speedup and error of every approximate option: FLOPs and time beside the distance from the exact clip.

Each clip is generated exactly and then with every option, from the same prompt and seed. Fewer steps are the baseline:
an option is of use if its error is smaller than that of fewer steps at the same FLOPs.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from syncflow.engine.cost.request import request_cost
from syncflow.engine.engine import Engine
from syncflow.engine.model.denoiser import Denoiser
from syncflow.engine.runtime.fp8 import with_fp8
from syncflow.engine.runtime.pytorch import DTYPES, cast
from syncflow.engine.sampling.conditioning_cache import ConditioningCache
from syncflow.engine.sampling.loop import sample
from syncflow.engine.types import Clip, Latents, Request
from syncflow.training.evaluation import evaluate_generation

from .step import PROMPTS

INTERVALS = ((0.1, 0.9), (0.2, 0.8))
BRANCH_INTERVALS = (2, 3, 4)
STEPS = (0.75, 0.67, 0.5)  # of the exact clip's
WARM_UP_STEPS = 2  # of every option


@dataclass(frozen=True)
class Option:
    """Settings of a request that differ from the exact clip's, or another ``precision`` of the d-DiT."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "float32"


@dataclass(frozen=True)
class Row:
    """An option over all clips: ``flops`` of a clip and ``ms_p50`` from noise to latents; ``work`` and ``gain`` are the
    exact clip's FLOPs and time over these.

    ``frames_db`` and ``sound_db``: peak signal-to-noise ratios of pixels (peak 255) and samples (peak 1) against the
    exact clips, None where there is no difference; ``video_err`` and ``audio_err``: the difference of their latents as
    a share of them, root of the mean square. ``impact_f1``: impacts in the video against onsets.
    """

    name: str
    flops: int
    work: float
    ms_p50: float
    gain: float
    frames_db: float | None
    sound_db: float | None
    video_err: float
    audio_err: float
    impact_f1: float

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


@dataclass(frozen=True)
class Generated:
    """A clip, its latents and the seconds that sampling took."""

    clip: Clip
    latents: Latents
    seconds: float


def options(steps: int) -> list[Option]:
    """All approximate options, for a clip of ``steps`` steps."""
    fewer = dict.fromkeys(max(1, round(share * steps)) for share in STEPS)
    return [
        *(Option(f"guidance from {low:g} to {high:g}", {"guidance_interval": (low, high)}) for low, high in INTERVALS),
        *(Option(f"branch interval {n}", {"branch_interval": n}) for n in BRANCH_INTERVALS),
        Option("bfloat16", precision="bfloat16"),
        Option("fp8 linears", precision="fp8"),
        *(Option(f"{count} step{'s' * (count > 1)}", {"steps": count}) for count in fewer if count < steps),
    ]


def requests(count: int, steps: int, **settings: Any) -> list[Request]:
    """``count`` requests with known prompts and seeds."""
    return [Request(PROMPTS[i % len(PROMPTS)], seed=i, steps=steps, **settings) for i in range(count)]


def compare(
    engine: Engine,
    asked: Sequence[Request],
    chosen: Sequence[Option],
    progress: Callable[[int], object] = lambda clips: None,
) -> list[Row]:
    """A row for the exact clips and one for each option; ``progress(1)`` is called after every clip."""
    every = [Option("exact"), *chosen]
    denoisers = {name: _denoiser(engine, name) for name in dict.fromkeys(option.precision for option in every)}
    caches = {name: ConditioningCache(denoiser) for name, denoiser in denoisers.items()}
    generated: dict[str, list[Generated]] = {option.name: [] for option in every}
    for option in every:
        _generate(
            engine,
            replace(asked[0], **{**option.settings, "steps": WARM_UP_STEPS}),
            denoisers[option.precision],
            caches[option.precision],
        )
    for request in asked:
        for option in every:
            one = _generate(
                engine, replace(request, **option.settings), denoisers[option.precision], caches[option.precision]
            )
            generated[option.name].append(one)
            progress(1)
    flops = {option.name: request_cost(engine.config, replace(asked[0], **option.settings)).total for option in every}
    ms = {name: 1e3 * statistics.median(one.seconds for one in of_option) for name, of_option in generated.items()}
    prompts = [request.prompt for request in asked]
    return [
        Row(
            option.name,
            flops[option.name],
            round(flops["exact"] / flops[option.name], 3),
            round(ms[option.name], 1),
            round(ms["exact"] / ms[option.name], 3),
            decibels(255.0, ((one.clip.frames, other.clip.frames) for one, other in _pairs(generated, option))),
            decibels(1.0, ((one.clip.waveform, other.clip.waveform) for one, other in _pairs(generated, option))),
            _share((one.latents.video, other.latents.video) for one, other in _pairs(generated, option)),
            _share((one.latents.audio, other.latents.audio) for one, other in _pairs(generated, option)),
            round(evaluate_generation([one.clip for one in generated[option.name]], prompts).impact_f1, 3),
        )
        for option in every
    ]


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    names = "option", "GFLOP", "exact / own", "ms", "exact / own", "frames", "sound", "video latents", "audio latents"
    lines = [f"| {' | '.join((*names, 'impact F1'))} |", f"|---|{'--:|' * len(names)}"]
    for row in rows:
        ratios = ("-" if value is None else f"{value:.1f} dB" for value in (row.frames_db, row.sound_db))
        work = f"{row.flops / 1e9:.1f}", f"{row.work:.2f}", f"{row.ms_p50:.0f}", f"{row.gain:.2f}"
        errors = f"{row.video_err:.1e}", f"{row.audio_err:.1e}", f"{row.impact_f1:.2f}"
        lines.append(f"| {' | '.join((row.name, *work, *ratios, *errors))} |")
    return "\n".join(lines)


def _denoiser(engine: Engine, precision: str) -> Denoiser:
    model = engine.components.ddit
    return with_fp8(model) if precision == "fp8" else cast(model, DTYPES[precision])


def _generate(engine: Engine, request: Request, denoiser: Denoiser, cache: ConditioningCache) -> Generated:
    prepared = engine.pipeline.prepare(request)
    job = engine.pipeline.encode(prepared)
    began = time.perf_counter()
    found = sample(denoiser, [job], cache=cache)
    latents = Latents(found.video.cpu(), found.audio.cpu())  # which waits for the device
    seconds = time.perf_counter() - began
    (clip,) = engine.pipeline.decode(prepared, found)
    return Generated(clip, latents, seconds)


def _pairs(generated: Mapping[str, Sequence[Generated]], option: Option) -> Iterator[tuple[Generated, Generated]]:
    return zip(generated[option.name], generated["exact"], strict=True)


def decibels(peak: float, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """The peak signal-to-noise ratio for the mean square over all pairs; None for none at all."""
    error = float(np.mean([np.mean((one.astype(np.float64) - exact) ** 2) for one, exact in pairs]))
    return round(10 * math.log10(peak**2 / error), 2) if error else None


def _share(pairs: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Root of the mean square of differences over that of the exact values, over all pairs."""
    sums = np.array([(float((one - exact).square().sum()), float(exact.square().sum())) for one, exact in pairs])
    error, power = sums.sum(0)
    return math.sqrt(error / power)
