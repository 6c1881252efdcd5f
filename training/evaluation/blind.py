"""Baselines that ignore the video: the best metronome and the best fixed track, the same onsets for every clip.

Both are fitted to the events that they are scored against, by a search that need not find the best of their kind.
Shuffled soundtracks score lower: number and times of their onsets come from other clips, and are not optimised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .matching import count_matches

PERIODS_S = np.geomspace(0.1, 4.0, 60)
PHASES = 16
GRID_S = 1 / 64
MOST_ONSETS = 64


@dataclass(frozen=True)
class BlindBaselines:
    """F1 of the best metronome, with its ``period`` (s) and its first tick ``phase`` (s), and of the best track."""

    metronome: float
    period: float
    phase: float
    fixed_track: float
    track: tuple[float, ...]


def blind_baselines(
    events: Sequence[np.ndarray], seconds: Sequence[float], tolerances: Sequence[float]
) -> BlindBaselines | None:
    """Fit both to the ``events`` (s) of clips of ``seconds``, matched one to one within ``tolerances`` (s).

    None for a single clip, whose own events would be the best track, and where nothing happens. The track is made of
    moments of a grid of 1/64 s, each added as long as one raises the score.
    """
    count = sum(map(len, events))
    if len(events) < 2 or not count:
        return None
    clips = list(zip(map(np.sort, events), seconds, tolerances, strict=True))

    def f1(onsets: np.ndarray) -> float:
        hits, onset_count = 0, 0
        for times, length, tolerance in clips:
            within = onsets[: np.searchsorted(onsets, length)]
            onset_count += len(within)
            hits += count_matches(times, within, tolerance)
        return 2 * hits / (count + onset_count)

    longest = max(seconds)
    ticks = [(p, p * k / PHASES) for p in PERIODS_S for k in range(PHASES)]
    period, phase = max(ticks, key=lambda tick: f1(np.arange(tick[1], longest, tick[0])))
    track = _grow(f1, np.arange(0, longest, GRID_S))
    metronome = f1(np.arange(phase, longest, period))
    return BlindBaselines(metronome, float(period), float(phase), f1(track), tuple(track.tolist()))


def _grow(f1: Callable[[np.ndarray], float], grid: np.ndarray) -> np.ndarray:
    """The track from nothing, by the moment that raises the score most, one at a time."""
    track, best = np.empty(0), 0.0
    while len(track) < MOST_ONSETS:
        candidates = [np.sort(np.append(track, moment)) for moment in grid]
        scores = [f1(candidate) for candidate in candidates]
        if max(scores) <= best:
            break
        best = max(scores)
        track = candidates[int(np.argmax(scores))]
    return track
