"""Intervals of scores, by bootstrap over the clips: how far a score would move with other clips of the same kind."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from .matching import Matches

CONFIDENCE, RESAMPLES = 0.95, 2000
Interval = tuple[float, float]


def f1_interval(matches: Sequence[Matches], seed: int) -> Interval | None:
    """Of the F1 pooled over clips."""

    def f1(hits: np.ndarray, total: np.ndarray, axis: int = -1) -> np.ndarray:
        return 2 * hits.sum(axis) / np.maximum(total.sum(axis), 1)

    return _interval(f1, [[m.hits for m in matches], [m.reference + m.found for m in matches]], seed)


def mean_interval(values: Sequence[float], seed: int) -> Interval | None:
    """Of a mean over clips."""
    return _interval(np.mean, [values], seed)


def median_interval(values: Sequence[float], seed: int) -> Interval | None:
    """Of a median over clips."""
    return _interval(np.median, [values], seed)


def _interval(statistic: object, samples: Sequence[Sequence[float]], seed: int) -> Interval | None:
    """Percentiles of the statistic over resamples of the clips, each of which keeps its own counts together; None for
    fewer than two clips.
    """
    from scipy.stats import bootstrap

    arrays = tuple(np.asarray(sample, dtype=float) for sample in samples)
    if len(arrays[0]) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all clips alike: the interval is the score
        found = bootstrap(
            arrays,
            statistic,
            paired=True,
            vectorized=True,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)
