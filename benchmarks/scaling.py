"""Scaling: the time of sampling against frames, size, steps, batch, takes and branches, beside the counted FLOPs.

Every axis is measured in alternation over its values, from noise to latents. The exponent is the slope of a line
through the logarithms: 1 where twice as much takes twice as long. What the loop pays once, however much it does, makes
the exponent of the time smaller than that of the FLOPs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from syncflow.engine.cost.counting import CountingDenoiser, meta_components
from syncflow.engine.engine import Engine
from syncflow.engine.media.destinations import destination
from syncflow.engine.pipeline import Pipeline
from syncflow.engine.runtime.selection.choose import RuntimeChoice
from syncflow.engine.sampling.loop import sample
from syncflow.engine.types import Request

from .alternating import Timing, alternate
from .step import PROMPTS

STEPS = 4
BRANCHES: tuple[dict[str, Any], ...] = (
    {"guidance": 1.0},
    {"guidance": 6.0},
    {"guidance": 6.0, "sync_cfg_audio": 2.0},
)


@dataclass(frozen=True)
class Axis:
    """What varies: ``values``, and ``requests`` that are sampled together at one of them."""

    name: str
    values: tuple[int, ...]
    requests: Callable[[int], list[Request]]


@dataclass(frozen=True)
class Curve:
    """Milliseconds and FLOPs at every value of an axis, and the exponents that fit them."""

    axis: str
    values: tuple[int, ...]
    ms: tuple[float, ...]
    flops: tuple[int, ...]
    exponent: float
    formula: float

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


def axes(engine: Engine) -> list[Axis]:
    """The axes that a model has."""
    sequence, config = engine.config.sequence, engine.config.ddit

    def one(**settings: Any) -> list[Request]:
        return [Request(PROMPTS[0], **{"steps": STEPS, "guidance": 6.0, "video_lead": 0.0} | settings)]

    def branches(count: int) -> list[Request]:
        return one(**BRANCHES[count - 1])

    many = 3 if config.audio_reads_video else 2
    found = [
        Axis("frames", tuple(int(sequence.fps * s) for s in (1, 2, 4)), lambda n: one(seconds=n / sequence.fps)),
        Axis("side, pixels", tuple(sequence.width * k // 2 for k in (1, 2, 3)), lambda n: one(width=n, height=n)),
        Axis("steps", (2, 4, 8, 16), lambda n: one(steps=n)),
        Axis("batch", (1, 2, 4, 8), lambda n: one() * n),
        Axis("branches", tuple(range(1, many + 1)), branches),
    ]
    if not config.video_reads_audio:
        found.append(Axis("takes", (1, 2, 4, 8), lambda n: one(takes=n)))
    return found


def measure(engine: Engine, runtime: RuntimeChoice, axis: Axis, timing: Timing) -> Curve:
    """The curve of one axis."""
    works: dict[str, Callable[[], object]] = {}
    for value in axis.values:
        asked = axis.requests(value)
        jobs = [engine.pipeline.encode(engine.pipeline.prepare(request)) for request in asked]
        works[str(value)] = partial(sample, runtime.denoiser, jobs, overlap=runtime.overlap)
    seconds = alternate(works, timing, axis.name)
    times = [statistics.median(seconds[str(value)]) for value in axis.values]
    counts = [_flops(engine, axis.requests(value)) for value in axis.values]
    return Curve(
        axis=axis.name,
        values=axis.values,
        ms=tuple(round(1e3 * one, 3) for one in times),
        flops=tuple(counts),
        exponent=round(exponent(axis.values, times), 3),
        formula=round(exponent(axis.values, counts), 3),
    )


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of the line through (log value, log cost), by least squares."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def _flops(engine: Engine, asked: list[Request]) -> int:
    """FLOPs of sampling these requests together."""
    denoiser = CountingDenoiser(engine.config.ddit)
    pipeline = Pipeline(meta_components(engine.config, denoiser), denoiser.device)
    sample(denoiser, [pipeline.encode(pipeline.prepare(request)) for request in asked])
    return denoiser.flops


def table(curves: Sequence[Curve]) -> str:
    """A Markdown line for each axis."""
    lines = [
        "| against | values | ms | GFLOP | exponent measured | exponent of the FLOPs |",
        "|---|---|---|---|--:|--:|",
    ]
    for one in curves:
        values, ms = ", ".join(map(str, one.values)), ", ".join(f"{value:.1f}" for value in one.ms)
        gflop = ", ".join(f"{count / 1e9:.3g}" for count in one.flops)
        lines.append(f"| {one.axis} | {values} | {ms} | {gflop} | {one.exponent:.2f} | {one.formula:.2f} |")
    return "\n".join(lines)


def plot(curves: Sequence[Curve], path: Path) -> None:
    """Draw every axis, measured and as the FLOPs grow from its first value, to a ``.png`` or ``.svg`` file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    columns = 3
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for panel in grid.flat[len(curves) :]:
        panel.set_visible(False)
    for one, panel in zip(curves, grid.flat, strict=False):
        expected = [one.ms[0] * count / one.flops[0] for count in one.flops]
        panel.loglog(one.values, one.ms, "o-", label=f"measured: {one.exponent:.2f}")
        panel.loglog(one.values, expected, "--", label=f"as the FLOPs: {one.formula:.2f}")
        panel.xaxis.set_major_locator(FixedLocator(list(one.values)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(one.values, [str(value) for value in one.values])
        panel.set(xlabel=one.axis, ylabel="ms")
        panel.legend()
    with destination(path) as beside:
        figure.savefig(beside, format=path.suffix.removeprefix("."))
