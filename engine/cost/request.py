"""The cost of a request before it runs: the rows of every step, their FLOPs, and the saving over the reference loop.

The request is prepared and stepped as for a clip, with a denoiser that counts. The reference loop runs a forward of
both towers (of the audio tower, for a sound alone) for every branch with a weight, at every step and for every take,
and computes text and times each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..config import ModelConfig
from ..pipeline import Pipeline
from ..sampling.batch import Batch
from ..sampling.job import Job, text_of
from ..sampling.sequential import batch_of
from ..sampling.step_plan import JointStepPlan, StepPlan
from ..types import Request
from .counting import CountingDenoiser, meta_components
from .flops import flops


@dataclass(frozen=True)
class LayerRows:
    """Layers ``first`` to ``last`` of a tower, counted from 1, compute ``rows`` rows."""

    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class Phase:
    """Consecutive steps with the same rows: ``first`` to ``last``, counted from 1; ``flops`` of one step.

    ``context_only`` rows of the leading tower compute a context and no velocity, and end within the last layer.
    ``contexts_computed`` at each step, and ``contexts_kept`` from an earlier one, are read by the other tower.
    """

    first: int
    last: int
    video: tuple[LayerRows, ...]
    audio: tuple[LayerRows, ...]
    context_only: int
    contexts_computed: int
    contexts_kept: int
    flops: int

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.last - self.first + 1

    def cells(self, unit: float) -> tuple[str, ...]:
        """Cells of the table: steps, video rows, audio rows, contexts, FLOPs of a step and of all steps in ``unit``."""
        context_only = f" (context-only rows: {self.context_only})" if self.context_only else ""
        contexts = [f"{self.contexts_computed} computed{context_only}"] if self.contexts_computed else []
        contexts += [f"{self.contexts_kept} kept"] if self.contexts_kept else []
        return (
            _format_span(self.first, self.last),
            _format_ranges(self.video),
            _format_ranges(self.audio),
            ", ".join(contexts) or "-",
            _format_number(self.flops / unit),
            _format_number(self.steps * self.flops / unit),
        )


@dataclass(frozen=True)
class RequestCost:
    """The cost of one request.

    ``texts`` prompts and ``times`` flow times are computed once, for ``once`` FLOPs. The reference loop takes
    ``reference`` FLOPs, in ``branches`` forwards of one row for every take.
    """

    model: str
    task: str
    seconds: float
    width: int
    height: int
    takes: int
    texts: int
    times: int
    once: int
    phases: tuple[Phase, ...]
    branches: int
    reference: int

    @property
    def total(self) -> int:
        """FLOPs of the whole request."""
        return self.once + sum(phase.steps * phase.flops for phase in self.phases)

    @property
    def saved(self) -> float:
        """The share of the reference loop's FLOPs that is saved."""
        return 1 - self.total / self.reference

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self) | {"total": self.total, "saved": self.saved}

    def table(self) -> str:
        """A text table: a line for each phase, their sum, and the reference loop."""
        unit, name = (1e12, "TFLOP") if self.reference >= 1e13 else (1e9, "GFLOP")
        each = f" for each of {self.takes} takes" if self.takes > 1 else ""
        towers = "the audio tower" if self.task == "text-to-audio" else "both towers"
        lines = [
            ("steps", "video rows", "audio rows", "contexts", f"{name} a step", name),
            ("once", f"texts: {self.texts}, times: {self.times}", "", "", "", _format_number(self.once / unit)),
            *(phase.cells(unit) for phase in self.phases),
            ("sum", "", "", "", "", _format_number(self.total / unit)),
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join((text.ljust if i < 4 else text.rjust)(widths[i]) for i, text in enumerate(line)).rstrip()
            for line in lines
        ]
        return "\n".join(
            (
                f"{self.model}, {self.task}: {self.seconds:g} s, {self.width}x{self.height}",
                "",
                *aligned,
                "",
                f"The reference loop: {self.branches} forwards of {towers}{each}, "
                f"{_format_number(self.reference / unit)} {name}; saved {100 * self.saved:.1f} %",
            )
        )


def request_cost(config: ModelConfig, request: Request) -> RequestCost:
    """The cost of a request with a model of this configuration; weights are not needed.

    Raises ``ValueError`` for a request that the model does not support and for media that cannot be read.
    """
    denoiser = CountingDenoiser(config.ddit)
    pipeline = Pipeline(meta_components(config, denoiser), denoiser.device)
    prepared = pipeline.prepare(request)
    job, batch = pipeline.encode(prepared), batch_of(denoiser)
    batch.join([job])
    once, texts = denoiser.flops, denoiser.calls["condition"]
    times = denoiser.rows["modulation"] + denoiser.rows["audio_time"]
    branches = 0
    phases: list[Phase] = []
    for step in range(1, len(job.schedule) + 1):
        branches += len(_weighted(batch))
        phase = _phase(step, batch, denoiser)
        if phases and replace(phases[-1], first=step, last=step) == phase:
            phases[-1] = replace(phases[-1], last=step)
        else:
            phases.append(phase)
    return RequestCost(
        config.name,
        prepared.task,
        job.sequence.seconds,
        job.sequence.width,
        job.sequence.height,
        len(job.sounds),
        texts,
        times,
        once,
        tuple(phases),
        branches,
        len(job.sounds) * branches * _reference_forward(denoiser, job, request.sound_only),
    )


def _phase(step: int, batch: Batch, denoiser: CountingDenoiser) -> Phase:
    """Take the next step, and say what it computed."""
    layout, config, before = batch.plan(), denoiser.config, denoiser.flops
    batch.step()
    cost = denoiser.flops - before
    whole = 0, config.depth
    if isinstance(layout, JointStepPlan):
        before_last = len(layout.rows) if layout.bridged or layout.video else 0  # a sound alone passes no video tower
        video = _layer_ranges((0, config.depth - 1, before_last), (config.depth - 1, config.depth, len(layout.video)))
        return Phase(step, step, video, _layer_ranges((*whole, len(layout.rows))), 0, 0, 0, cost)
    assert isinstance(layout, StepPlan)
    leading, split = _layer_ranges((*whole, len(layout.leading))), config.first_block
    following = _layer_ranges((0, split, len(layout.prefixes)), (split, config.depth, len(layout.following)))
    video, audio = (following, leading) if config.bridge == "audio_rope" else (leading, following)
    computed = len(layout.context_rows)
    return Phase(
        step,
        step,
        video,
        audio,
        len(layout.leading) - layout.num_outputs,
        computed,
        len(layout.contexts) - computed,
        cost,
    )


def _layer_ranges(*ranges: tuple[int, int, int]) -> tuple[LayerRows, ...]:
    """Layer ranges for (begin, end, rows), counted from 0, without empty ones; equal neighbours are merged."""
    found: list[LayerRows] = []
    for begin, end, rows in ranges:
        if begin == end or not rows:
            continue
        if found and found[-1].rows == rows:
            found[-1] = replace(found[-1], last=end)
        else:
            found.append(LayerRows(begin + 1, end, rows))
    return tuple(found)


def _weighted(batch: Batch) -> set[object]:
    """Branches with a weight on an advancing modality, at the next step."""
    plan = batch.jobs[0].plan
    moving = [tracks for tracks in (batch.video, batch.audio) if tracks.each[0].moves]
    return {branch for tracks in moving for branch in plan.at(tracks.modality, tracks.each[0].time)}


def _reference_forward(denoiser: CountingDenoiser, job: Job, sound_only: bool) -> int:
    """FLOPs of a forward of the reference loop: one row."""
    model, config = denoiser.model, denoiser.config
    s, row = job.sequence, torch.zeros(1, dtype=torch.long)
    z_v = torch.empty(1, config.video_channels, s.latent_frames, s.latent_height, s.latent_width, device="meta")
    z_a = torch.empty(1, s.audio_tokens, config.audio_channels, device="meta")
    t, states = torch.empty(1, device="meta"), text_of(job, True, model.null_text).states

    def forward() -> object:
        text = model.condition(states[None], torch.ones(1, dtype=torch.long, device="meta"))
        if sound_only:
            return model.audio(z_a, model.audio_time(t), text_tokens=text.text_tokens)
        reference = None if job.reference is None else job.reference[None]
        priors = None if job.prior is None else job.prior.states[None]
        pixels = None if s.whole_patches else torch.empty(1, device="meta")
        return model(z_v, z_a, t, t, t, text, row.to("meta"), reference=reference, pixels=pixels, priors=priors)

    return flops(forward)


def _format_ranges(ranges: Sequence[LayerRows]) -> str:
    """``2``, or ``2 in layers 1-8, 3 in 9-24``."""
    if len(ranges) < 2:
        return str(ranges[0].rows) if ranges else "-"
    first, *others = (f"{one.rows} in {{}}{_format_span(one.first, one.last)}" for one in ranges)
    return ", ".join((first.format("layers "), *(other.format("") for other in others)))


def _format_span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
