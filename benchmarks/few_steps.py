"""Quality against sampling steps: a teacher at several numbers of steps, and its few-step students at their own.

``python -m syncflow.benchmarks.few_steps [--student FOLDER]... [--steps N]... [--clips N] [--v2a-clips N] [--json]``
generates clips of unseen kinds of object, and the sounds of rendered ones, with the same prompts and seeds for every
row. The first row is the reference: the teacher at ``--reference`` steps. Intervals hold 95 % of 2000 bootstrap samples
of the clips.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from syncflow.engine.cost.request import request_cost
from syncflow.engine.engine import Engine
from syncflow.engine.progress import progress_bar
from syncflow.engine.types import Clip, Request
from syncflow.training.data.impacts import sample_clip
from syncflow.training.evaluation import Matches, audio_onsets, match_times, video_events

TEACHER_STEPS = (1, 2, 4, 8, 16)
SAMPLES, BATCH = 2000, 16
Interval = tuple[float, float]


@dataclass(frozen=True)
class Result:
    """What one model makes in so many steps: matches of each clip and of each sound, video latents, FLOPs of a clip."""

    model: str
    steps: int
    flops: int
    impacts: list[Matches]
    onsets: list[Matches]
    latents: list[np.ndarray]


@dataclass(frozen=True)
class Row:
    """``cost``: FLOPs of a clip as a share of the reference's. ``impact_f1`` and ``v2a_onset_f1`` with their intervals;
    ``kept``: the ratio to the reference's, by resampling the same clips of both. ``video_err``: the difference from the
    video latents of the reference as a share of them, root of the mean square.
    """

    model: str
    steps: int
    cost: float
    impact_f1: float
    impact_f1_interval: Interval
    impact_f1_kept: float
    impact_f1_kept_interval: Interval
    v2a_onset_f1: float
    v2a_onset_f1_interval: Interval
    v2a_onset_f1_kept: float
    v2a_onset_f1_kept_interval: Interval
    video_err: float


def run(engine: Engine, clips: int, v2a_clips: int, seed: int = 0, **settings: Any) -> Result:
    """Generate with the engine's defaults but for ``settings``, which are a request's."""
    rendered = [sample_clip(seed, index, "unseen") for index in range(max(clips, v2a_clips))]
    joint = [Request(text, seed=seed + i, **settings) for i, (_, text, _) in enumerate(rendered[:clips])]
    silent = [Request("", seed=seed + i, video=clip, **settings) for i, (clip, _, _) in enumerate(rendered[:v2a_clips])]
    impacts, onsets, latents = [], [], []
    for clip in _generate(engine, joint):
        impacts.append(_match(video_events(clip.frames, clip.fps), clip))
        latents.append(np.empty(0) if clip.latents is None else clip.latents)
    for clip, (_, _, events) in zip(_generate(engine, silent), rendered, strict=False):
        onsets.append(_match([event.time for event in events], clip))
    steps = joint[0].steps or engine.config.sampling.steps
    return Result(engine.config.name, steps, request_cost(engine.config, joint[0]).total, impacts, onsets, latents)


def compare(result: Result, reference: Result) -> Row:
    """A result beside the reference, which has the same prompts and seeds."""
    scores: dict[str, Any] = {}
    for name, own, other in (
        ("impact_f1", result.impacts, reference.impacts),
        ("v2a_onset_f1", result.onsets, reference.onsets),
    ):
        mine, theirs = _resampled_f1(own), _resampled_f1(other)
        scores[name], scores[f"{name}_interval"] = round(float(mine[0]), 3), _interval(mine[1:])
        ratio = mine / np.maximum(theirs, 1e-9)
        scores[f"{name}_kept"], scores[f"{name}_kept_interval"] = round(float(ratio[0]), 3), _interval(ratio[1:])
    error = sum(float(np.square(a - b).sum()) for a, b in zip(result.latents, reference.latents, strict=True))
    power = sum(float(np.square(b).sum()) for b in reference.latents)
    cost = round(result.flops / reference.flops, 4)
    return Row(result.model, result.steps, cost, video_err=round(math.sqrt(error / power), 3), **scores)


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    names = "model", "steps", "FLOPs", "impact F1", "kept", "V2A onset F1", "kept", "video latents"
    lines = [f"| {' | '.join(names)} |", "|---|" + "--:|" * (len(names) - 1)]
    for row in rows:
        scores = [
            part
            for name in ("impact_f1", "v2a_onset_f1")
            for part in (
                _shown(getattr(row, name), getattr(row, f"{name}_interval"), 3),
                _shown(getattr(row, f"{name}_kept"), getattr(row, f"{name}_kept_interval"), 2),
            )
        ]
        cells = row.model, str(row.steps), f"{row.cost:.1%}", *scores, f"{row.video_err:.2f}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _generate(engine: Engine, requests: Sequence[Request]) -> Iterator[Clip]:
    for first in range(0, len(requests), BATCH):
        yield from engine.generate(requests[first : first + BATCH])


def _match(times: Sequence[float] | np.ndarray, clip: Clip) -> Matches:
    return match_times(times, audio_onsets(clip.waveform, clip.sample_rate), 1 / clip.fps)


def _resampled_f1(matches: Sequence[Matches]) -> np.ndarray:
    """F1 of all clips, and then of bootstrap samples of them: (1 + SAMPLES,), always of the same clips."""
    counts = np.array([(2 * one.hits, one.reference + one.found) for one in matches])
    picks = np.random.default_rng(0).integers(len(counts), size=(SAMPLES, len(counts)))
    sums = np.concatenate((counts.sum(0)[None], counts[picks].sum(1)))
    return sums[:, 0] / np.maximum(sums[:, 1], 1)


def _interval(samples: np.ndarray) -> Interval:
    low, high = np.quantile(samples, (0.025, 0.975)).round(3).tolist()
    return low, high


def _shown(value: float, interval: Interval, digits: int) -> str:
    low, high = interval
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main(
    model: Annotated[str, typer.Option(help="Package of the teacher, or syncflow-tiny.")] = "syncflow-tiny",
    student: Annotated[list[Path] | None, typer.Option(help="Package of a student; repeatable.")] = None,
    steps: Annotated[
        list[int] | None, typer.Option(min=1, help="Steps of the teacher, repeatable; default: 1, 2, 4, 8, 16.")
    ] = None,
    reference: Annotated[
        int | None, typer.Option(min=1, help="Steps of the first row; default: the teacher's own.")
    ] = None,
    sync_guidance: Annotated[
        float | None, typer.Option(help="Scale of the teacher's sync guidance; default: the model's.")
    ] = None,
    clips: Annotated[int, typer.Option(min=2, help="Clips from prompts.")] = 64,
    v2a_clips: Annotated[int, typer.Option(min=2, help="Rendered clips for video-to-audio.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the table."""
    teacher = Engine.from_pretrained(model)
    runs: list[tuple[str | Path, int | None, float | None]] = [
        *((model, count, sync_guidance) for count in (reference, *(steps or TEACHER_STEPS))),
        *((folder, None, None) for folder in student or ()),
    ]
    rows: list[Row] = []
    first: Result | None = None
    for folder, count, guidance in progress_bar(runs, unit="row"):
        engine = teacher if folder == model else Engine.from_pretrained(folder)
        result = run(engine, clips, v2a_clips, steps=count, sync_guidance=guidance)
        first = first or result
        rows.append(compare(result, first))
    print(json.dumps([asdict(row) for row in rows]) if as_json else table(rows))


if __name__ == "__main__":
    typer.run(main)
