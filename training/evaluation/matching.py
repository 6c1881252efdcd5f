"""One-to-one matching of two sets of moments, and the ratios that are made of it.

Matching: as many pairs as possible whose moments differ by at most the tolerance, and among those matchings the one
with the least total difference. Empty sets: nothing can be right or wrong about them, so a clip without reference and
without findings adds nothing to pooled counts, and every ratio of counts that are all zero is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-9


@dataclass(frozen=True)
class Matches:
    """Counts of one clip or, added up, of many: ``hits`` pairs among ``reference`` and ``found`` moments.

    Ratios of a sum are micro averages. ``sum(matches, Matches())`` pools a set.
    """

    hits: int = 0
    reference: int = 0
    found: int = 0
    pairs: tuple[tuple[int, int], ...] = ()

    def __add__(self, other: Matches) -> Matches:
        return Matches(self.hits + other.hits, self.reference + other.reference, self.found + other.found)

    @property
    def precision(self) -> float:
        """Share of what was found that is in the reference."""
        return self.hits / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Share of the reference that was found."""
        return self.hits / self.reference if self.reference else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.reference + self.found
        return 2 * self.hits / total if total else 0.0

    @property
    def iou(self) -> float:
        """Pairs over the union of both sets."""
        union = self.reference + self.found - self.hits
        return self.hits / union if union else 0.0


def match_times(
    reference: Sequence[float] | np.ndarray, found: Sequence[float] | np.ndarray, tolerance: float
) -> Matches:
    """Match two sets of moments (s) one to one within ``tolerance`` (s, inclusive); ``pairs`` are indices into both."""
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must be at least 0 seconds")
    a, b = np.asarray(reference, dtype=float), np.asarray(found, dtype=float)
    if not len(a) or not len(b):
        return Matches(0, len(a), len(b))
    from scipy.optimize import linear_sum_assignment

    difference = np.abs(a[:, None] - b[None, :])
    allowed = difference <= tolerance + ROUNDING
    refusal = (tolerance + 1) * (min(len(a), len(b)) + 1)
    rows, columns = linear_sum_assignment(np.where(allowed, difference, refusal))
    pairs = tuple((int(i), int(j)) for i, j in zip(rows, columns, strict=True) if allowed[i, j])
    return Matches(len(pairs), len(a), len(b), pairs)


def count_matches(first: np.ndarray, second: np.ndarray, tolerance: float) -> int:
    """The most pairs of two rising lists of moments (s) that differ by at most the tolerance, each moment used once.

    That is the number of pairs of :func:`match_times`, without saying which: much faster.
    """
    a, b, i, j, pairs = first.tolist(), second.tolist(), 0, 0, 0
    while i < len(a) and j < len(b):
        difference = a[i] - b[j]
        if abs(difference) <= tolerance + ROUNDING:
            i, j, pairs = i + 1, j + 1, pairs + 1
        elif difference < 0:
            i += 1
        else:
            j += 1
    return pairs


def pool(matches: Iterable[Matches]) -> Matches:
    """Add up the counts of a set of clips."""
    return sum(matches, Matches())


def cycle_sync(
    reference_onsets: Sequence[float] | np.ndarray, inferred_onsets: Sequence[float] | np.ndarray, tolerance: float
) -> float:
    """CycleSync of one clip (Syncphony): |I| / (|A| + |A'| - |I|) of the onsets A of its sound and the onsets A' of a
    sound inferred from its video alone, I matched by :func:`match_times`. 0 when neither has an onset.
    """
    return match_times(reference_onsets, inferred_onsets, tolerance).iou


def av_align(
    onsets: Sequence[float] | np.ndarray, motion_peaks: Sequence[float] | np.ndarray, tolerance: float
) -> float:
    """AV-Align of one clip: the same ratio between audio onsets and peaks of motion, one to one. 0 when there is
    neither.
    """
    return match_times(onsets, motion_peaks, tolerance).iou


def av_align_any(
    onsets: Sequence[float] | np.ndarray, motion_peaks: Sequence[float] | np.ndarray, tolerance: float
) -> float:
    """AV-Align as the code that goes round computes it: an onset counts where *any* peak is nearer than ``tolerance``
    (s, exclusive), so several onsets may share one peak. 0 when there is neither.
    """
    a, b = np.asarray(onsets, dtype=float), np.asarray(motion_peaks, dtype=float)
    hits = int((np.abs(a[:, None] - b[None, :]) < tolerance).any(axis=1).sum())
    union = len(a) + len(b) - hits
    return hits / union if union else 0.0
