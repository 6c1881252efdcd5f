"""What a request will compute, without computing it: the rows of every step, their FLOPs, and what is saved.

The request is made ready and stepped as for a clip, with a d-DiT that only counts. Beside the sum stands the plain
definition: at every step and for every branch that has a weight then, a forward of both towers of its own, for every
take anew, with the text and the times computed each time; for a sound alone, of the audio tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from syncflow.engine.config import ModelConfig
from syncflow.engine.pipeline import Pipeline
from syncflow.engine.sampling.batch import Batch
from syncflow.engine.sampling.job import Job, text_of
from syncflow.engine.sampling.sequential import batch_of
from syncflow.engine.sampling.step_plan import JointStepPlan, StepPlan
from syncflow.engine.types import Request

from .counter import CountingDenoiser, outline
from .flops import flops


@dataclass(frozen=True)
class Rows:
    """``rows`` rows through layers ``first`` to ``last`` of a tower, counted from 1."""

    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class Phase:
    """Steps ``first`` to ``last``, counted from 1, that compute the same.

    ``only_seen`` of the leading tower's rows serve for their contexts alone and end within the last layer. ``contexts``
    are what rows of the other tower read: computed at each step, and kept from an earlier one. ``flops`` are those of
    one step.
    """

    first: int
    last: int
    video: tuple[Rows, ...]
    audio: tuple[Rows, ...]
    only_seen: int
    contexts_computed: int
    contexts_kept: int
    flops: int

    @property
    def steps(self) -> int:
        """How many they are."""
        return self.last - self.first + 1

    def cells(self, unit: float) -> tuple[str, ...]:
        """A line of the table: steps, rows of both towers, contexts, FLOPs of a step and of all, in ``unit``."""
        alone = f" (only-seen rows: {self.only_seen})" if self.only_seen else ""
        contexts = [f"{self.contexts_computed} computed{alone}"] if self.contexts_computed else []
        contexts += [f"{self.contexts_kept} kept"] if self.contexts_kept else []
        return (
            _span(self.first, self.last),
            _listed(self.video),
            _listed(self.audio),
            ", ".join(contexts) or "-",
            _figure(self.flops / unit),
            _figure(self.steps * self.flops / unit),
        )


@dataclass(frozen=True)
class WorkPlan:
    """The work of one request. ``texts`` and ``times`` are computed once, for ``once`` FLOPs; ``plain`` FLOPs are those
    of the plain definition, of ``branches`` forwards of one row each for every take."""

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
    plain: int

    @property
    def total(self) -> int:
        """FLOPs of the whole sample."""
        return self.once + sum(phase.steps * phase.flops for phase in self.phases)

    @property
    def saved(self) -> float:
        """The share of the plain definition's FLOPs that are not computed."""
        return 1 - self.total / self.plain

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self) | {"total": self.total, "saved": self.saved}

    def table(self) -> str:
        """Lines of text: a row for each phase, the sum, and the plain definition beside it."""
        unit, name = (1e12, "TFLOP") if self.plain >= 1e13 else (1e9, "GFLOP")
        each = f" for each of {self.takes} takes" if self.takes > 1 else ""
        towers = "the audio tower" if self.task == "text-to-audio" else "both towers"
        lines = [
            ("steps", "video rows", "audio rows", "contexts", f"{name} a step", name),
            ("once", f"texts: {self.texts}, times: {self.times}", "", "", "", _figure(self.once / unit)),
            *(phase.cells(unit) for phase in self.phases),
            ("sum", "", "", "", "", _figure(self.total / unit)),
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
                f"The plain definition: {self.branches} forwards of {towers}{each}, "
                f"{_figure(self.plain / unit)} {name}; saved {100 * self.saved:.1f} %",
            )
        )


def explain(config: ModelConfig, request: Request) -> WorkPlan:
    """The work of a request with a model of this configuration, whose weights are not needed.

    Raises ``ValueError`` for a request that the model has no way for, and media that cannot be read.
    """
    denoiser = CountingDenoiser(config.ddit)
    pipeline = Pipeline(outline(config, denoiser), denoiser.device)
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
    return WorkPlan(
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
        len(job.sounds) * branches * _forward(denoiser, job, request.sound_only),
    )


def _phase(step: int, batch: Batch, denoiser: CountingDenoiser) -> Phase:
    """What the step that comes next computes; takes it."""
    layout, config, before = batch.plan(), denoiser.config, denoiser.flops
    batch.step()
    cost = denoiser.flops - before
    whole = 0, config.depth
    if isinstance(layout, JointStepPlan):
        before_last = len(layout.rows) if layout.bridged or layout.video else 0  # a sound alone passes no video tower
        video = _through((0, config.depth - 1, before_last), (config.depth - 1, config.depth, len(layout.video)))
        return Phase(step, step, video, _through((*whole, len(layout.rows))), 0, 0, 0, cost)
    assert isinstance(layout, StepPlan)
    leading, split = _through((*whole, len(layout.leading))), config.first_block
    following = _through((0, split, len(layout.prefixes)), (split, config.depth, len(layout.following)))
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


def _through(*ranges: tuple[int, int, int]) -> tuple[Rows, ...]:
    """Rows by layers for (begin, end, rows), counted from 0; neighbours of equally many rows are one."""
    found: list[Rows] = []
    for begin, end, rows in ranges:
        if begin == end or not rows:
            continue
        if found and found[-1].rows == rows:
            found[-1] = replace(found[-1], last=end)
        else:
            found.append(Rows(begin + 1, end, rows))
    return tuple(found)


def _weighted(batch: Batch) -> set[object]:
    """The branches that have a weight, at the step that comes next, on a modality that moves."""
    plan = batch.jobs[0].plan
    moving = [tracks for tracks in (batch.video, batch.audio) if tracks.each[0].moves]
    return {branch for tracks in moving for branch in plan.at(tracks.modality, tracks.each[0].time)}


def _forward(denoiser: CountingDenoiser, job: Job, sound_only: bool) -> int:
    """FLOPs of one row of the plain definition."""
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
        return model(z_v, z_a, t, t, t, text, row.to("meta"), reference=reference)

    return flops(forward)


def _listed(ranges: Sequence[Rows]) -> str:
    """``2``, or ``2 in layers 1-8, 3 in 9-24``."""
    if len(ranges) < 2:
        return str(ranges[0].rows) if ranges else "-"
    first, *others = (f"{one.rows} in {{}}{_span(one.first, one.last)}" for one in ranges)
    return ", ".join((first.format("layers "), *(other.format("") for other in others)))


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
