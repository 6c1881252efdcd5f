"""Scores of a set of clips: audio-video sync of impacts, and the object's colour against the prompt's.

Every score of synchrony has beside it what sounds score that do not see the clips: the same soundtracks exchanged, the
best metronome and the best fixed track (:mod:`.blind`). Scores have bootstrap intervals over the clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .blind import BlindBaselines, blind_baselines
from .color import object_color, prompt_color
from .events import video_events
from .intervals import Interval, f1_interval, mean_interval, median_interval
from .lag import sound_lag
from .matching import Matches, av_align, av_align_any, cycle_sync, match_times, pool
from .motion import motion_peaks
from .onsets import audio_onsets

if TYPE_CHECKING:
    from ...engine.types import Clip

SHUFFLES = 8
Row = tuple[str, str]  # label in a table, name of a score
Times = Sequence[float] | np.ndarray  # s


@dataclass(frozen=True, kw_only=True)
class _Scores:
    """What both tasks' scores have."""

    precision: float
    recall: float
    events_per_clip: float
    tolerance_frames: float
    clips: int
    by_kind: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)

    ROWS: ClassVar[tuple[Row, ...]]  # of a table; F1 comes first

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``: each score by its name, and its interval under ``…_interval``."""
        values = asdict(self)
        by_kind, intervals = values.pop("by_kind"), values.pop("intervals")
        return values | by_kind | {f"{name}_interval": list(interval) for name, interval in intervals.items()}

    def rows(self) -> list[tuple[str, str, float | None]]:
        """Label, name and value of the scores of a table: F1 of each kind of event is behind that of all."""
        (label, f1), *others = self.ROWS
        kinds = [(f"  {name.removeprefix(f1 + '_')} alone", name, value) for name, value in self.by_kind.items()]
        rest = [(label, name, getattr(self, name)) for label, name in others]
        return [(label, f1, getattr(self, f1)), *kinds, *rest]

    def _table(self, title: str, truth: _Scores | None) -> str:
        """Lines of a score, its interval, and its value on ground truth."""
        lines = [(title, "score", "95 % interval", "ground truth" if truth else "")]
        known = {name: value for _, name, value in truth.rows()} if truth else {}
        for label, name, value in self.rows():
            low, high = self.intervals.get(name, (None, None))
            between = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
            lines.append((label, _number(value), between, _number(known.get(name)) if truth else ""))
        first = max(len(line[0]) for line in lines)
        return "\n".join(f"{a:<{first}}  {b:>6}  {c:>16}  {d:>12}".rstrip() for a, b, c, d in lines)


@dataclass(frozen=True, kw_only=True)
class GenerationScores(_Scores):
    """Scores of clips made from prompts; ratios are pooled over all clips, everything else is a mean over clips.

    ``color_accuracy`` is over the prompts that name a colour, ``None`` without any. ``impact_f1_shuffled``,
    ``impact_f1_metronome`` and ``impact_f1_fixed_track`` are what blind sounds score; ``None`` for a single clip.
    ``count_within_one``: share of clips with as many onsets as visible impacts, give or take one. ``av_align`` and
    ``av_align_any``: onsets against peaks of motion, one to one and as the code that goes round counts them.
    ``cyclesync``: onsets against those of a sound inferred from the video; ``None`` without inferred sounds. ``lag``:
    median lag (s) of the sound behind the motion. ``by_kind``: F1 of each kind of event, as ``impact_f1_hammer``, where
    kinds were given. ``intervals``: by name of a score, 95 % over the clips, where there are two at least.
    """

    onsets_per_clip: float
    impact_f1: float
    impact_f1_shuffled: float | None
    impact_f1_metronome: float | None
    impact_f1_fixed_track: float | None
    color_accuracy: float | None
    count_within_one: float
    cyclesync: float | None
    av_align: float
    av_align_any: float
    lag: float | None

    ROWS: ClassVar[tuple[Row, ...]] = (
        ("impact F1, visible impacts against onsets", "impact_f1"),
        ("  with soundtracks shuffled", "impact_f1_shuffled"),
        ("  by the best metronome", "impact_f1_metronome"),
        ("  by the best fixed track", "impact_f1_fixed_track"),
        ("  precision (onsets with an impact)", "precision"),
        ("  recall (impacts with an onset)", "recall"),
        ("as many onsets as impacts, within one", "count_within_one"),
        ("CycleSync, with sounds inferred from the videos", "cyclesync"),
        ("AV-Align, onsets and peaks of motion one to one", "av_align"),
        ("  counting every onset near a peak", "av_align_any"),
        ("lag of the sound behind the motion, s", "lag"),
        ("colour as in the prompt", "color_accuracy"),
        ("impacts per clip", "events_per_clip"),
        ("onsets per clip", "onsets_per_clip"),
    )

    def table(self, truth: GenerationScores | None = None) -> str:
        """Lines for a terminal; ``truth``: the scores of ground truth, beside them."""
        title = f"{self.clips} clips from prompts, within {self.tolerance_frames:g} frame(s)"
        return self._table(title, truth)


@dataclass(frozen=True, kw_only=True)
class SoundScores(_Scores):
    """Scores of soundtracks generated for given videos against the true times; see :class:`GenerationScores`."""

    onsets_per_clip: float
    v2a_onset_f1: float
    v2a_onset_f1_shuffled: float | None
    v2a_onset_f1_metronome: float | None
    v2a_onset_f1_fixed_track: float | None

    ROWS: ClassVar[tuple[Row, ...]] = (
        ("video-to-audio onset F1, true events against onsets", "v2a_onset_f1"),
        ("  with soundtracks shuffled", "v2a_onset_f1_shuffled"),
        ("  by the best metronome", "v2a_onset_f1_metronome"),
        ("  by the best fixed track", "v2a_onset_f1_fixed_track"),
        ("  precision (onsets with an event)", "precision"),
        ("  recall (events with an onset)", "recall"),
        ("true events per clip", "events_per_clip"),
        ("onsets per clip", "onsets_per_clip"),
    )

    def table(self, truth: SoundScores | None = None) -> str:
        """Lines for a terminal; ``truth``: the scores of the recorded soundtracks, beside them."""
        title = f"{self.clips} soundtracks for given videos, within {self.tolerance_frames:g} frame(s)"
        return self._table(title, truth)


@dataclass(frozen=True, kw_only=True)
class VideoScores(_Scores):
    """Scores of videos generated for given sounds: visible impacts against the true times; see
    :class:`GenerationScores`.
    """

    impacts_per_clip: float
    a2v_impact_f1: float
    a2v_impact_f1_shuffled: float | None
    a2v_impact_f1_metronome: float | None
    a2v_impact_f1_fixed_track: float | None

    ROWS: ClassVar[tuple[Row, ...]] = (
        ("audio-to-video impact F1, true events against visible impacts", "a2v_impact_f1"),
        ("  with videos shuffled", "a2v_impact_f1_shuffled"),
        ("  by the best metronome", "a2v_impact_f1_metronome"),
        ("  by the best fixed track", "a2v_impact_f1_fixed_track"),
        ("  precision (impacts with an event)", "precision"),
        ("  recall (events with an impact)", "recall"),
        ("true events per clip", "events_per_clip"),
        ("impacts per clip", "impacts_per_clip"),
    )

    def table(self, truth: VideoScores | None = None) -> str:
        """Lines for a terminal; ``truth``: the scores of the videos that belong to the sounds, beside them."""
        title = f"{self.clips} videos for given sounds, within {self.tolerance_frames:g} frame(s)"
        return self._table(title, truth)


def evaluate_generation(
    clips: Sequence[Clip],
    prompts: Sequence[str],
    *,
    inferred: Sequence[Clip] = (),
    kinds: Sequence[str] = (),
    tolerance_frames: float = 1.0,
    seed: int = 0,
) -> GenerationScores:
    """Match visible impacts one to one with audio onsets, and the object's colour with the prompt's, in each clip.

    ``inferred``: the first clips' videos with sounds inferred from them, for CycleSync. ``kinds``: the kind of event in
    each clip, for F1 of each; empty: unknown. ``seed`` draws the exchanges of soundtracks and the resamples. Raises
    ``ValueError`` without clips or when the numbers of clips, prompts and kinds differ.
    """
    _check(clips, prompts, "prompts", kinds, tolerance_frames)
    event_times = [video_events(clip.frames, clip.fps) for clip in clips]
    onset_times = [audio_onsets(clip.waveform, clip.sample_rate) for clip in clips]
    matches, shuffled = _synchrony(clips, event_times, onset_times, tolerance_frames, seed)
    pooled, blind = pool(matches), _blind(clips, event_times, tolerance_frames)
    colors = [
        float(object_color(clip.frames) == wanted)
        for clip, p in zip(clips, prompts, strict=True)
        if (wanted := prompt_color(p))
    ]
    counts = [float(abs(m.found - m.reference) <= 1) for m in matches]
    tolerances = [tolerance_frames / clip.fps for clip in clips]
    peaks = [motion_peaks(clip.frames, clip.fps) for clip in clips]
    aligned, aligned_any = (
        [ratio(*sets) for sets in zip(onset_times, peaks, tolerances, strict=True)]
        for ratio in (av_align, av_align_any)
    )
    cycles = [
        cycle_sync(onsets, audio_onsets(clip.waveform, clip.sample_rate), tolerance)
        for onsets, clip, tolerance in zip(onset_times, inferred, tolerances, strict=False)
    ]
    lags = [lag for clip in clips if (lag := sound_lag(clip)) is not None]
    groups = _by_kind("impact_f1", matches, kinds)
    intervals: dict[str, Interval | None] = {
        "impact_f1": f1_interval(matches, seed),
        **{name: f1_interval(part, seed) for name, part in groups.items()},
        "count_within_one": mean_interval(counts, seed),
        "av_align": mean_interval(aligned, seed),
        "av_align_any": mean_interval(aligned_any, seed),
        "color_accuracy": mean_interval(colors, seed),
        "cyclesync": mean_interval(cycles, seed),
        "lag": median_interval(lags, seed),
    }
    return GenerationScores(
        impact_f1=pooled.f1,
        impact_f1_shuffled=shuffled,
        impact_f1_metronome=blind.metronome if blind else None,
        impact_f1_fixed_track=blind.fixed_track if blind else None,
        color_accuracy=_mean(colors),
        precision=pooled.precision,
        recall=pooled.recall,
        count_within_one=float(np.mean(counts)),
        cyclesync=_mean(cycles),
        av_align=float(np.mean(aligned)),
        av_align_any=float(np.mean(aligned_any)),
        lag=float(np.median(lags)) if lags else None,
        events_per_clip=_per_clip(event_times),
        onsets_per_clip=_per_clip(onset_times),
        tolerance_frames=tolerance_frames,
        clips=len(clips),
        by_kind={name: pool(part).f1 for name, part in groups.items()},
        intervals=_known(intervals),
    )


def evaluate_v2a(
    clips: Sequence[Clip],
    true_times: Sequence[Times],
    *,
    kinds: Sequence[str] = (),
    tolerance_frames: float = 1.0,
    seed: int = 0,
) -> SoundScores:
    """Match the audio onsets of each clip one to one with ``true_times`` (s): its known events, or the onsets of the
    sound that its video was recorded with. Raises ``ValueError`` like :func:`evaluate_generation`.
    """
    onsets = [audio_onsets(clip.waveform, clip.sample_rate) for clip in clips]
    scores = _driven("v2a_onset_f1", clips, true_times, onsets, kinds, tolerance_frames, seed)
    return SoundScores(onsets_per_clip=_per_clip(onsets), **scores)


def evaluate_a2v(
    clips: Sequence[Clip],
    true_times: Sequence[Times],
    *,
    kinds: Sequence[str] = (),
    tolerance_frames: float = 1.0,
    seed: int = 0,
) -> VideoScores:
    """Match the visible impacts of each clip one to one with ``true_times`` (s), those of the events in its sound.

    Raises ``ValueError`` like :func:`evaluate_generation`.
    """
    impacts = [video_events(clip.frames, clip.fps) for clip in clips]
    scores = _driven("a2v_impact_f1", clips, true_times, impacts, kinds, tolerance_frames, seed)
    return VideoScores(impacts_per_clip=_per_clip(impacts), **scores)


def _driven(
    name: str,
    clips: Sequence[Clip],
    true_times: Sequence[Times],
    found: list[np.ndarray],
    kinds: Sequence[str],
    tolerance_frames: float,
    seed: int,
) -> dict[str, Any]:
    """Scores of one modality that was made for the other, with ``name`` for F1."""
    _check(clips, true_times, "lists of true times", kinds, tolerance_frames)
    true = [np.asarray(times, dtype=float) for times in true_times]
    matches, shuffled = _synchrony(clips, true, found, tolerance_frames, seed)
    pooled, blind = pool(matches), _blind(clips, true, tolerance_frames)
    groups = {name: matches, **_by_kind(name, matches, kinds)}
    return {
        name: pooled.f1,
        f"{name}_shuffled": shuffled,
        f"{name}_metronome": blind.metronome if blind else None,
        f"{name}_fixed_track": blind.fixed_track if blind else None,
        "precision": pooled.precision,
        "recall": pooled.recall,
        "events_per_clip": _per_clip(true),
        "tolerance_frames": tolerance_frames,
        "clips": len(clips),
        "by_kind": {part: pool(group).f1 for part, group in groups.items() if part != name},
        "intervals": _known({part: f1_interval(group, seed) for part, group in groups.items()}),
    }


def _known(intervals: dict[str, Interval | None]) -> dict[str, Interval]:
    """Those of scores that have one."""
    return {name: interval for name, interval in intervals.items() if interval is not None}


def _by_kind(name: str, matches: Sequence[Matches], kinds: Sequence[str]) -> dict[str, list[Matches]]:
    """The matches of each kind's clips, by the name of their F1."""
    pairs = list(zip(matches, kinds, strict=True)) if kinds else []
    return {f"{name}_{kind}": [m for m, other in pairs if other == kind] for kind in dict.fromkeys(kinds)}


def _check(
    clips: Sequence[Clip], others: Sequence[Any], name: str, kinds: Sequence[str], tolerance_frames: float
) -> None:
    if not clips:
        raise ValueError("there are no clips to evaluate; give at least one")
    if len(clips) != len(others):
        raise ValueError(f"there are {len(clips)} clips and {len(others)} {name}; the numbers must be equal")
    if kinds and len(kinds) != len(clips):
        raise ValueError(f"there are {len(clips)} clips and {len(kinds)} kinds; the numbers must be equal")
    if not tolerance_frames >= 0:
        raise ValueError(f"the tolerance is {tolerance_frames} frames; it must be at least 0")


def _synchrony(
    clips: Sequence[Clip],
    event_times: list[np.ndarray],
    onset_times: list[np.ndarray],
    tolerance_frames: float,
    seed: int,
) -> tuple[list[Matches], float | None]:
    """Matches of every clip with its own sound, and the mean pooled F1 when each has the sound of another."""

    def matched(soundtracks: Sequence[int]) -> list[Matches]:
        return [
            match_times(event_times[i], onset_times[j], tolerance_frames / clip.fps)
            for i, (clip, j) in enumerate(zip(clips, soundtracks, strict=True))
        ]

    own = matched(range(len(clips)))
    if len(clips) == 1:
        return own, None
    return own, float(np.mean([pool(matched(exchange)).f1 for exchange in exchanges(len(clips), SHUFFLES, seed)]))


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


def _per_clip(times: Sequence[np.ndarray]) -> float:
    return sum(map(len, times)) / len(times)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
