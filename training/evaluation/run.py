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
from .page import write_page

if TYPE_CHECKING:
    from ...engine.engine import Engine

TOLERANCE_FRAMES = 1.0


@dataclass(frozen=True)
class Evaluation:
    """Scores of both tasks, and those of rendered clips with their own sound, which limit what a model can score.

    ``sound`` is ``None`` when video-to-audio was left out, ``generation_truth`` for prompts of one's own.
    """

    generation: GenerationScores
    sound: SoundScores | None
    generation_truth: GenerationScores | None
    sound_truth: SoundScores | None

    def to_dict(self) -> dict[str, Any]:
        """One flat object, ready for ``json.dump``: scores and their ``…_interval`` and ``…_truth``; what both tasks
        have is prefixed by ``v2a_`` for the second.
        """
        sound = _with_truth(self.sound, self.sound_truth)
        return _with_truth(self.generation, self.generation_truth) | {
            key if key.startswith("v2a_") else f"v2a_{key}": value for key, value in sound.items()
        }

    def __str__(self) -> str:
        tables = [self.generation.table(self.generation_truth)]
        if self.sound:
            tables.append(self.sound.table(self.sound_truth))
        return "\n\n".join(tables)


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

    ``prompts`` are taken in turn; without them they describe kinds of object that training never sees. For CycleSync,
    sounds are inferred from the first ``v2a_count`` generated videos as well. ``keep`` is a folder for the clips and
    ``index.html``, which shows them beside the scores; ``settings`` are a request's.
    """
    rendered = [sample_clip(seed, index, "unseen") for index in range(max(count if prompts is None else 0, v2a_count))]
    asked = [prompts[i % len(prompts)] for i in range(count)] if prompts else [text for _, text, _ in rendered[:count]]
    joint = [Request(text, seed=seed + i, **settings) for i, text in enumerate(asked)]
    clips = list(_generate(engine, joint, batch, "generating clips"))
    known = [clip for clip, _, _ in rendered[:v2a_count]]
    dubbed = list(_generate(engine, _dub(known, seed, settings), batch, "generating audio"))
    # A sound inferred with the noise that the clip's own sound came from would agree by that alone.
    again = _dub(clips[:v2a_count], seed + count, settings)
    inferred = list(_generate(engine, again, batch, "inferring audio"))
    times = [[event.time for event in events] for _, _, events in rendered[:v2a_count]]

    def generation(made: Sequence[Clip], inferred: Sequence[Clip] = ()) -> GenerationScores:
        return evaluate_generation(made, asked, inferred=inferred, tolerance_frames=TOLERANCE_FRAMES, seed=seed)

    def sound(made: Sequence[Clip]) -> SoundScores:
        return evaluate_v2a(made, times, tolerance_frames=TOLERANCE_FRAMES, seed=seed)

    evaluation = Evaluation(
        generation(clips, inferred),
        sound(dubbed) if dubbed else None,
        # The sounds of ``dubbed`` are inferred from these videos.
        generation([clip for clip, _, _ in rendered[:count]], dubbed) if prompts is None else None,
        sound(known) if dubbed else None,
    )
    if keep is not None:
        made = {"clip": clips, "v2a": dubbed}
        files = {name: [keep / f"{name}_{i:03d}.mp4" for i in range(len(group))] for name, group in made.items()}
        for name, group in made.items():
            for file, clip in zip(files[name], group, strict=True):
                clip.save(file)
        write_page(evaluation, made, files, keep / "index.html", title=engine.config.name)
    return evaluation


def _dub(clips: Sequence[Clip], seed: int, settings: dict[str, Any]) -> list[Request]:
    """Requests for sounds of silent videos."""
    return [Request("", seed=seed + i, video=clip, **settings) for i, clip in enumerate(clips)]


def _generate(engine: Engine, requests: Sequence[Request], batch: int, what: str) -> Iterator[Clip]:
    with tqdm(total=len(requests), desc=what, unit="clip", disable=None if requests else True) as bar:
        for first in range(0, len(requests), batch):
            clips = engine.generate(requests[first : first + batch])
            bar.update(len(clips))
            yield from clips


def _with_truth(
    scores: GenerationScores | SoundScores | None, truth: GenerationScores | SoundScores | None
) -> dict[str, Any]:
    if scores is None:
        return {}
    found = scores.to_dict()
    return found | {f"{name}_truth": getattr(truth, name) for _, name in scores.ROWS if truth}
