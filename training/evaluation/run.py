"""The whole evaluation of an engine: unseen prompts for joint generation, unseen rendered clips for video-to-audio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...engine.types import Clip, Request
from ..data.impacts import sample_clip
from .evaluate import GenerationScores, SoundScores, evaluate_generation, evaluate_v2a

if TYPE_CHECKING:
    from ...engine.engine import Engine

TOLERANCE_FRAMES = 1.0


@dataclass(frozen=True)
class Evaluation:
    """Scores of both tasks; ``sound`` is ``None`` when video-to-audio was left out."""

    generation: GenerationScores
    sound: SoundScores | None

    def to_dict(self) -> dict[str, Any]:
        """One flat object, ready for ``json.dump``; what both tasks have is prefixed by ``v2a_`` for the second."""
        sound = self.sound.to_dict() if self.sound else {}
        return self.generation.to_dict() | {k if k.startswith("v2a_") else f"v2a_{k}": v for k, v in sound.items()}

    def __str__(self) -> str:
        return "\n\n".join(scores.table() for scores in (self.generation, self.sound) if scores)


def run_evaluation(
    engine: Engine,
    prompts: Sequence[str] | None = None,
    *,
    count: int = 64,
    v2a_count: int = 32,
    seed: int = 0,
    batch: int = 16,
    keep: Path | None = None,
    **settings: Any,
) -> Evaluation:
    """Generate ``count`` clips from prompts and the audio of ``v2a_count`` unseen rendered clips, then score them.

    ``prompts`` are taken in turn; without them they describe kinds of object that training never sees. ``keep`` is a
    folder for the clips; ``settings`` are a request's.
    """
    rendered = [sample_clip(seed, index, "unseen") for index in range(max(count if prompts is None else 0, v2a_count))]
    asked = [prompts[i % len(prompts)] for i in range(count)] if prompts else [text for _, text, _ in rendered[:count]]
    joint = [Request(text, seed=seed + i, **settings) for i, text in enumerate(asked)]
    silent = [Request("", seed=seed + i, video=clip, **settings) for i, (clip, _, _) in enumerate(rendered[:v2a_count])]
    clips = list(_generate(engine, joint, batch, "generating clips"))
    dubbed = list(_generate(engine, silent, batch, "generating audio"))
    if keep is not None:
        for name, made in (("clip", clips), ("v2a", dubbed)):
            for i, clip in enumerate(made):
                clip.save(keep / f"{name}_{i:03d}.mp4")
    times = [[event.time for event in events] for _, _, events in rendered[:v2a_count]]
    return Evaluation(
        evaluate_generation(clips, asked, tolerance_frames=TOLERANCE_FRAMES, seed=seed),
        evaluate_v2a(dubbed, times, tolerance_frames=TOLERANCE_FRAMES, seed=seed) if dubbed else None,
    )


def _generate(engine: Engine, requests: Sequence[Request], batch: int, what: str) -> Iterator[Clip]:
    with tqdm(total=len(requests), desc=what, unit="clip", disable=None if requests else True) as bar:
        for first in range(0, len(requests), batch):
            clips = engine.generate(requests[first : first + batch])
            bar.update(len(clips))
            yield from clips
