"""Scores of a set of clips: audio-video sync of impacts, and the object's colour against the prompt's.

Every score of synchrony has beside it what sounds score that do not see the clips: the same soundtracks exchanged, the
best metronome and the best fixed track (:mod:`.blind`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .blind import BlindBaselines, blind_baselines
from .color import object_color, prompt_color
from .events import video_events
from .matching import Matches, match_times, pool
from .onsets import audio_onsets

if TYPE_CHECKING:
    from ...engine.types import Clip

SHUFFLES = 8


@dataclass(frozen=True)
class GenerationScores:
    """Scores of clips made from prompts; ratios are pooled over all clips, events and onsets are means per clip.

    ``color_accuracy`` is over the prompts that name a colour, ``None`` without any. ``impact_f1_shuffled``,
    ``impact_f1_metronome`` and ``impact_f1_fixed_track`` are what blind sounds score; ``None`` for a single clip.
    """

    impact_f1: float
    impact_f1_shuffled: float | None
    impact_f1_metronome: float | None
    impact_f1_fixed_track: float | None
    color_accuracy: float | None
    precision: float
    recall: float
    events_per_clip: float
    onsets_per_clip: float
    tolerance_frames: float
    clips: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)

    def table(self) -> str:
        """Lines for a terminal."""
        return _table(
            f"{self.clips} clips from prompts, within {self.tolerance_frames:g} frame(s)",
            ("impact F1, visible impacts against onsets", self.impact_f1),
            ("  with soundtracks shuffled", self.impact_f1_shuffled),
            ("  by the best metronome", self.impact_f1_metronome),
            ("  by the best fixed track", self.impact_f1_fixed_track),
            ("  precision (onsets with an impact)", self.precision),
            ("  recall (impacts with an onset)", self.recall),
            ("colour as in the prompt", self.color_accuracy),
            ("impacts per clip", self.events_per_clip),
            ("onsets per clip", self.onsets_per_clip),
        )


@dataclass(frozen=True)
class SoundScores:
    """Scores of soundtracks generated for given videos against the true times; see :class:`GenerationScores`."""

    v2a_onset_f1: float
    v2a_onset_f1_shuffled: float | None
    v2a_onset_f1_metronome: float | None
    v2a_onset_f1_fixed_track: float | None
    precision: float
    recall: float
    events_per_clip: float
    onsets_per_clip: float
    tolerance_frames: float
    clips: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)

    def table(self) -> str:
        """Lines for a terminal."""
        return _table(
            f"{self.clips} soundtracks for given videos, within {self.tolerance_frames:g} frame(s)",
            ("video-to-audio onset F1, true events against onsets", self.v2a_onset_f1),
            ("  with soundtracks shuffled", self.v2a_onset_f1_shuffled),
            ("  by the best metronome", self.v2a_onset_f1_metronome),
            ("  by the best fixed track", self.v2a_onset_f1_fixed_track),
            ("  precision (onsets with an event)", self.precision),
            ("  recall (events with an onset)", self.recall),
            ("true events per clip", self.events_per_clip),
            ("onsets per clip", self.onsets_per_clip),
        )


def evaluate_generation(
    clips: Sequence[Clip], prompts: Sequence[str], *, tolerance_frames: float = 1.0, seed: int = 0
) -> GenerationScores:
    """Match visible impacts one to one with audio onsets, and the object's colour with the prompt's, in each clip.

    ``seed`` draws the exchanges of soundtracks. Raises ``ValueError`` without clips or when the numbers of clips and
    prompts differ.
    """
    _check(clips, prompts, "prompts", tolerance_frames)
    event_times = [video_events(clip.frames, clip.fps) for clip in clips]
    onset_times = [audio_onsets(clip.waveform, clip.sample_rate) for clip in clips]
    matches, shuffled = _synchrony(clips, event_times, onset_times, tolerance_frames, seed)
    blind = _blind(clips, event_times, tolerance_frames)
    colors = [
        (object_color(clip.frames), wanted)
        for clip, p in zip(clips, prompts, strict=True)
        if (wanted := prompt_color(p))
    ]
    return GenerationScores(
        impact_f1=matches.f1,
        impact_f1_shuffled=shuffled,
        impact_f1_metronome=blind.metronome if blind else None,
        impact_f1_fixed_track=blind.fixed_track if blind else None,
        color_accuracy=float(np.mean([found == wanted for found, wanted in colors])) if colors else None,
        precision=matches.precision,
        recall=matches.recall,
        events_per_clip=matches.reference / len(clips),
        onsets_per_clip=matches.found / len(clips),
        tolerance_frames=tolerance_frames,
        clips=len(clips),
    )


def evaluate_v2a(
    clips: Sequence[Clip],
    true_times: Sequence[Sequence[float]] | Sequence[np.ndarray],
    *,
    tolerance_frames: float = 1.0,
    seed: int = 0,
) -> SoundScores:
    """Match the audio onsets of each clip one to one with ``true_times`` (s): its known events, or the onsets of the
    sound that its video was recorded with. Raises ``ValueError`` like :func:`evaluate_generation`.
    """
    _check(clips, true_times, "lists of true times", tolerance_frames)
    true = [np.asarray(times, dtype=float) for times in true_times]
    onset_times = [audio_onsets(clip.waveform, clip.sample_rate) for clip in clips]
    matches, shuffled = _synchrony(clips, true, onset_times, tolerance_frames, seed)
    blind = _blind(clips, true, tolerance_frames)
    return SoundScores(
        v2a_onset_f1=matches.f1,
        v2a_onset_f1_shuffled=shuffled,
        v2a_onset_f1_metronome=blind.metronome if blind else None,
        v2a_onset_f1_fixed_track=blind.fixed_track if blind else None,
        precision=matches.precision,
        recall=matches.recall,
        events_per_clip=matches.reference / len(clips),
        onsets_per_clip=matches.found / len(clips),
        tolerance_frames=tolerance_frames,
        clips=len(clips),
    )


def _check(clips: Sequence[Clip], others: Sequence[Any], name: str, tolerance_frames: float) -> None:
    if not clips:
        raise ValueError("there are no clips to evaluate; give at least one")
    if len(clips) != len(others):
        raise ValueError(f"there are {len(clips)} clips and {len(others)} {name}; the numbers must be equal")
    if not tolerance_frames >= 0:
        raise ValueError(f"the tolerance is {tolerance_frames} frames; it must be at least 0")


def _synchrony(
    clips: Sequence[Clip],
    event_times: list[np.ndarray],
    onset_times: list[np.ndarray],
    tolerance_frames: float,
    seed: int,
) -> tuple[Matches, float | None]:
    """Pooled matches of every clip with its own sound, and the mean F1 when each has the sound of another."""

    def matched(soundtracks: Sequence[int]) -> Matches:
        return pool(
            match_times(event_times[i], onset_times[j], tolerance_frames / clip.fps)
            for i, (clip, j) in enumerate(zip(clips, soundtracks, strict=True))
        )

    own = matched(range(len(clips)))
    if len(clips) == 1:
        return own, None
    return own, float(np.mean([matched(exchange).f1 for exchange in exchanges(len(clips), SHUFFLES, seed)]))


def _blind(clips: Sequence[Clip], events: list[np.ndarray], tolerance_frames: float) -> BlindBaselines | None:
    """What blind sounds score on these clips."""
    tolerances = [tolerance_frames / clip.fps for clip in clips]
    return blind_baselines(events, [clip.seconds for clip in clips], tolerances)


def exchanges(count: int, rounds: int, seed: int) -> Iterator[list[int]]:
    """``rounds`` random permutations of ``count`` >= 2 things that leave none in place: each hands on along one
    random ring.
    """
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        ring = rng.permutation(count)
        following = dict(zip(ring.tolist(), np.roll(ring, 1).tolist(), strict=True))
        yield [following[i] for i in range(count)]


def _table(title: str, *rows: tuple[str, float | None]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"{name:<{width}}  {'-' if value is None else f'{value:.3f}'}" for name, value in rows)])
