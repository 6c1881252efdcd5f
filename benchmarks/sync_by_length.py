"""Synchrony of sound and picture by the number of frames: a codec that groups frames must not move the sound.

``python -m syncflow.benchmarks.sync_by_length [--clips N] [--json]`` samples the soundtracks of unseen rendered clips,
and whole clips from their captions, at each length and prints the F1 of impacts against onsets within one frame. A
length that the time stride of the video codec does not divide is padded in front, which moves its latent frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from syncflow.engine.engine import Engine
from syncflow.engine.progress import progress_bar
from syncflow.engine.types import Request
from syncflow.training.data.impacts import sample_clip
from syncflow.training.evaluation import evaluate_generation, evaluate_v2a

FRAMES = (28, 29, 30, 31, 32, 33, 34, 35, 117)
CLIPS = 24
SETTINGS: dict[str, Any] = {"steps": 12, "sync_guidance": 1.0}


@dataclass(frozen=True)
class Row:
    """F1 of both tasks at ``frames`` frames, of which the codec pads ``padding`` in front."""

    frames: int
    padding: int
    v2a_onset_f1: float
    impact_f1: float


def measure(engine: Engine, frames: Sequence[int] = FRAMES, clips: int = CLIPS, seed: int = 0) -> Iterator[Row]:
    """A row for each number of frames, over the same unseen kinds of object."""
    base = engine.config.sequence
    for count in frames:
        seconds = count / base.fps
        rendered = [sample_clip(seed, index, "unseen", seconds=seconds, fps=base.fps) for index in range(clips)]
        given = [Request("", seed=i, video=clip, **SETTINGS) for i, (clip, _, _) in enumerate(rendered)]
        prompts = [text for _, text, _ in rendered]
        free = [Request(text, seed=i, seconds=seconds, **SETTINGS) for i, text in enumerate(prompts)]
        times = [[event.time for event in events] for _, _, events in rendered]
        yield Row(
            count,
            -count % base.time_factor,
            round(evaluate_v2a(engine.generate(given), times).v2a_onset_f1, 3),
            round(evaluate_generation(engine.generate(free), prompts).impact_f1, 3),
        )


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    lines = ["| frames | padded frames | video-to-audio, onset F1 | text to both, impact F1 |", "|--:|--:|--:|--:|"]
    lines += [f"| {row.frames} | {row.padding} | {row.v2a_onset_f1:.3f} | {row.impact_f1:.3f} |" for row in rows]
    return "\n".join(lines)


def main(
    clips: Annotated[int, typer.Option(min=2, help="Clips of each length.")] = CLIPS,
    frames: Annotated[list[int] | None, typer.Option(min=4, help="A length in frames; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the table."""
    lengths = frames or FRAMES
    rows = list(progress_bar(measure(Engine.from_pretrained(), lengths, clips), total=len(lengths), unit="length"))
    print(json.dumps([asdict(row) for row in rows]) if as_json else table(rows))


if __name__ == "__main__":
    typer.run(main)
