"""The whole evaluation of an engine: unseen prompts, and unseen rendered clips for one modality from the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.progress import progress_bar
from ...engine.types import Clip, Request
from ..data.impacts import Kind, sample_clip
from .embeddings import Networks
from .evaluate import (
    GenerationScores,
    SoundScores,
    VideoScores,
    evaluate_a2v,
    evaluate_generation,
    evaluate_v2a,
)
from .page import write_page

if TYPE_CHECKING:
    from ...engine.engine import Engine

TOLERANCE_FRAMES = 1.0
TRUTH = "_truth"  # ends the name of a score of ground truth
Scores = GenerationScores | SoundScores | VideoScores


@dataclass(frozen=True)
class TaskScores:
    """Scores of one task, and those of rendered clips themselves, which limit what a model can score."""

    scores: Scores
    truth: Scores | None

    def to_dict(self) -> dict[str, Any]:
        """Scores, and by name their ``…_interval`` and ``…_truth``."""
        truth = {name + TRUTH: value for _, name, value in self.truth.rows()} if self.truth else {}
        return self.scores.to_dict() | truth

    def __str__(self) -> str:
        return self.scores.table(self.truth)  # type: ignore[arg-type]  # the same kind


@dataclass(frozen=True)
class Evaluation:
    """The tasks that were scored, by name: ``""`` generation from prompts, ``v2a_`` and ``a2v_``; and the scores of
    pretrained networks.
    """

    tasks: dict[str, TaskScores]
    networks: dict[str, float] = field(default_factory=dict)

    def network_rows(self) -> list[tuple[str, float, float | None]]:
        """Name, value and, where there is one, value on ground truth of the scores of pretrained networks."""
        scores = {name: value for name, value in self.networks.items() if not name.endswith(TRUTH)}
        return [(name, value, self.networks.get(name + TRUTH)) for name, value in scores.items()]

    def to_dict(self) -> dict[str, Any]:
        """One flat object, ready for ``json.dump``; what all tasks have is prefixed by the task's name."""
        named = {
            key if key.startswith(task) else task + key: value
            for task, scores in self.tasks.items()
            for key, value in scores.to_dict().items()
        }
        return named | self.networks

    def __str__(self) -> str:
        tables = [str(scores) for scores in self.tasks.values()]
        if self.networks:
            title, rows = "by pretrained networks", self.network_rows()
            lines = [(title, "score", "ground truth" if any(truth is not None for *_, truth in rows) else "")]
            lines += [(name, f"{x:.3f}", "" if truth is None else f"{truth:.3f}") for name, x, truth in rows]
            tables.append("\n".join(f"{a:<{len(title)}}  {b:>8}  {c:>12}".rstrip() for a, b, c in lines))
        return "\n\n".join(tables)


def run_evaluation(
    engine: Engine,
    prompts: Sequence[str] | None = None,
    *,
    count: int = 64,
    v2a_count: int = 32,
    a2v_count: int = 0,
    kinds: Sequence[Kind] = ("bounce",),
    seed: int = 0,
    batch: int = 16,
    keep: Path | None = None,
    networks: Networks | None = None,
    **settings: Any,
) -> Evaluation:
    """Generate ``count`` clips from prompts, the audio of ``v2a_count`` unseen rendered clips and the video of
    ``a2v_count``, then score them.

    The rendered clips are of ``kinds`` of events in turn, and of kinds of object that training never sees; ``prompts``
    are taken in turn, and without them they describe such clips. Each of several kinds has an F1 of its own. For
    CycleSync, sounds are inferred from the first ``v2a_count`` generated videos as well. ``keep`` is a folder for the
    clips and ``index.html``, which shows them beside the scores; ``networks`` score the clips too, against the rendered
    ones; ``settings`` are a request's. Raises ``ValueError``, before anything is generated, where nothing is to be
    scored, for a task that the model does not have and for too few clips for the networks.
    """
    if not (count or v2a_count or a2v_count):
        raise ValueError("there is nothing to score; count, v2a_count and a2v_count are 0")
    number = max(count if prompts is None else 0, v2a_count, a2v_count)
    rendered = [sample_clip(seed, index, "unseen", kinds=kinds) for index in range(number)]
    known, texts = [clip for clip, _, _ in rendered], [text for _, text, _ in rendered]
    times = [[event.time for event in events] for _, _, events in rendered]
    asked = [prompts[i % len(prompts)] for i in range(count)] if prompts else texts[:count]
    common: dict[str, Any] = {"tolerance_frames": TOLERANCE_FRAMES, "seed": seed}
    kind_of = [kinds[index % len(kinds)] for index in range(number)] if len(kinds) > 1 else []
    joint = [Request(text, seed=seed + i, **settings) for i, text in enumerate(asked)]
    dubs = _dub(known[:v2a_count], seed, settings)
    sounds = [Request(texts[i], seed=seed + i, audio=known[i], **settings) for i in range(a2v_count)]
    for first in (*joint[:1], *dubs[:1], *sounds[:1]):
        engine.pipeline.prepare(first)
    if networks is not None:
        networks.check(count, against_rendered=prompts is None)
    made: dict[str, list[Clip]] = {}
    tasks: dict[str, TaskScores] = {}

    def generate(requests: Sequence[Request], what: str) -> list[Clip]:
        return list(_generate(engine, requests, batch, what))

    if v2a_count:
        made["v2a"] = generate(dubs, "generating audio")
        true, own = times[:v2a_count], {"kinds": kind_of[:v2a_count], **common}
        tasks["v2a_"] = TaskScores(evaluate_v2a(made["v2a"], true, **own), evaluate_v2a(known[:v2a_count], true, **own))
    if count:
        clips = made["clip"] = generate(joint, "generating clips")
        # A sound inferred with the noise that the clip's own sound came from would agree by that alone.
        inferred = generate(_dub(clips[:v2a_count], seed + count, settings), "inferring audio")
        own = {"kinds": kind_of[:count] if prompts is None else [], **common}
        scores = evaluate_generation(clips, asked, inferred=inferred, **own)
        truth = None
        if prompts is None:
            truth = evaluate_generation(known[:count], asked, inferred=made.get("v2a", []), **own)
        tasks = {"": TaskScores(scores, truth), **tasks}
    if a2v_count:
        made["a2v"] = generate(sounds, "generating video")
        true, own = times[:a2v_count], {"kinds": kind_of[:a2v_count], **common}
        tasks["a2v_"] = TaskScores(evaluate_a2v(made["a2v"], true, **own), evaluate_a2v(known[:a2v_count], true, **own))
    by_networks: dict[str, float] = {}
    if networks is not None:
        reference = known[:count] if prompts is None else []
        by_networks = networks.scores(made.get("clip", []), asked, reference, made.get("v2a", []), known[:v2a_count])
    evaluation = Evaluation(tasks, by_networks)
    if keep is not None:
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
    with progress_bar(total=len(requests), desc=what, unit="clip", disable=not requests) as bar:
        for first in range(0, len(requests), batch):
            clips = engine.generate(requests[first : first + batch])
            bar.update(len(clips))
            yield from clips
