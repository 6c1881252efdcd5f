"""Compare whole clips of several runtimes: from sentences to frames and sound.

Text encoder and codecs are the same in all; the baseline samples in the reference loop.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from syncflow.engine.engine import Engine
from syncflow.engine.runtime.selection.choose import RuntimeChoice
from syncflow.engine.sampling.loop import sample
from syncflow.engine.types import Clip, Latents, Request

from . import instructions
from .alternating import Ratio, Timing, alternate, ratio
from .step import PROMPTS, PlainReferenceLoop, over_fastest

STEPS = 8
ERROR = 0.02  # of frames and sound, in root mean squares, relative to the reference loop's clip


@dataclass(frozen=True)
class ClipRow:
    """``ms_p50`` of a batch of clips, and ``ratio`` of the reference loop's time to it; the rest as in ``step.Row``."""

    name: str
    runtime: str
    instructions: str
    ms_p50: float
    ratio: float
    low: float
    high: float
    fastest_other: str | None = None
    over_fastest: Ratio | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


def makers(
    engine: Engine, chosen: Mapping[str, RuntimeChoice], batch: int, steps: int = STEPS
) -> dict[str, Callable[[], list[Clip]]]:
    """What makes ``batch`` clips in the reference loop and in every runtime; checked to make the same clips.

    Raises ``ValueError`` where a runtime makes others.
    """
    asked = [
        Request(PROMPTS[i % len(PROMPTS)], seed=i, guidance=6.0, steps=steps, video_lead=0.0) for i in range(batch)
    ]
    pipeline, model = engine.pipeline, engine.components.ddit

    @torch.inference_mode()
    def make(latents: Callable[[list[Any]], Latents]) -> list[Clip]:
        prepared = [pipeline.prepare(request) for request in asked]
        found = latents([pipeline.encode(one) for one in prepared])
        rows = zip(prepared, found.video.split(1), found.audio.split(1), strict=True)
        return [pipeline.decode(one, Latents(video, audio))[0] for one, video, audio in rows]

    functions: dict[str, Callable[[], list[Clip]]] = {
        "reference": partial(make, lambda jobs: PlainReferenceLoop(model, jobs).run())
    }
    for name, one in chosen.items():
        functions[name] = partial(make, partial(sample, one.denoiser, overlap=one.overlap))
    expected = functions["reference"]()
    for name, function in list(functions.items())[1:]:
        if (error := max(map(_error, function(), expected))) > ERROR:
            raise ValueError(f"{name} makes other clips than the reference loop: a relative error of {error:.3g}")
    return functions


def compare(
    engine: Engine, chosen: Mapping[str, RuntimeChoice], batch: int, timing: Timing, steps: int = STEPS
) -> list[ClipRow]:
    """Rows for a batch: the reference loop, then every runtime, in alternation."""
    seconds = alternate(makers(engine, chosen, batch, steps), timing, f"clips, batch {batch}")
    rows = []
    for name, times in seconds.items():
        against = ratio(seconds["reference"], times)
        rows.append(
            ClipRow(
                name=f"{name}, batch {batch}",
                runtime=chosen[name].runtime if name in chosen else name,
                instructions=instructions.used(),
                ms_p50=round(1e3 * statistics.median(times), 1),
                ratio=against.median,
                low=against.low,
                high=against.high,
                **(over_fastest(seconds, name) if name.startswith("auto") else {}),
            )
        )
    return rows


def table(rows: list[ClipRow], steps: int = STEPS) -> str:
    """Rows as Markdown, and a sentence on ``auto``."""
    lines = [f"| clips of {steps} steps | ms | reference / own | 95 % interval |", "|---|--:|--:|--:|"]
    lines += [f"| {one.name} | {one.ms_p50:.0f} | {one.ratio:.2f} | {one.low:.2f} to {one.high:.2f} |" for one in rows]
    lines += [
        f"{one.name} is {one.over_fastest} times as fast as {one.fastest_other}, the fastest of the others"
        for one in rows
        if one.over_fastest is not None
    ]
    return "\n".join(lines)


def _error(made: Clip, expected: Clip) -> float:
    found = []
    for name in ("frames", "waveform"):
        own, other = (torch.from_numpy(getattr(clip, name)).float() for clip in (made, expected))
        found.append(float((own - other).norm() / other.norm()))
    return max(found)
