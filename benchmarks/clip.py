"""Compare whole clips of several runtimes: from sentences to frames and sound.

Text encoder and codecs are the same in all; the baseline samples in the reference loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from syncflow.engine.engine import Engine
from syncflow.engine.runtime.selection.choose import RuntimeChoice
from syncflow.engine.sampling.loop import sample
from syncflow.engine.types import Clip, Latents, Request

from .alternating import Timing, alternate
from .step import PROMPTS, PlainReferenceLoop, RuntimeRow, over_fastest_sentences, runtime_fields

STEPS = 8
ERROR = 0.02  # of frames and sound, in root mean squares, relative to the reference loop's clip


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
) -> list[RuntimeRow]:
    """Rows for a batch: the reference loop, then every runtime, in alternation."""
    seconds = alternate(makers(engine, chosen, batch, steps), timing, f"clips, batch {batch}")
    return [
        RuntimeRow(**runtime_fields(seconds, name, chosen[name].runtime if name in chosen else name, batch, digits=1))
        for name in seconds
    ]


def table(rows: list[RuntimeRow], steps: int = STEPS) -> str:
    """Rows as Markdown, and a sentence on ``auto``."""
    lines = [f"| clips of {steps} steps | ms | reference / own | 95 % interval |", "|---|--:|--:|--:|"]
    lines += [f"| {one.name} | {one.ms_p50:.0f} | {one.ratio:.2f} | {one.low:.2f} to {one.high:.2f} |" for one in rows]
    return "\n".join(lines + over_fastest_sentences(rows))


def _error(made: Clip, expected: Clip) -> float:
    found = []
    for name in ("frames", "waveform"):
        own, other = (torch.from_numpy(getattr(clip, name)).float() for clip in (made, expected))
        found.append(float((own - other).norm() / other.norm()))
    return max(found)
