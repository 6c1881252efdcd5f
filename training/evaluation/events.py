"""Times of visible impacts, detected in the frames alone.

The path of the object (:mod:`.tracking`) is segmented into the flights and rests that fit its height best, by dynamic
programming. An impact is a boundary at which a falling object stops falling; its time is where
the curves of both segments cross, which is finer than the interval between frames. Heights are in picture heights,
downwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .tracking import track_object

GRAVITY, GRAVITY_SPREAD = 3.75, 1.0
LEAST_NOISE = 0.4 / 64
JERK_QUANTILE = 0.524 * 20**0.5
CUT_COST = 10.0
LONGEST, SHORTEST, SHORTEST_FLIGHT = 96, 2, 0.25
LEAST_APPROACH, LEAST_TURN, RISING = 0.3, 0.3, 0.1
FEWEST_FRAMES = 4


@dataclass(frozen=True)
class Segment:
    """Frames ``start`` to ``stop`` (exclusive) explained by height, velocity and acceleration at time 0 of the clip."""

    start: int
    stop: int
    height: float
    velocity: float
    acceleration: float

    def velocity_at(self, time: float) -> float:
        """Downward velocity (picture heights/s) at ``time`` (s)."""
        return self.velocity + self.acceleration * time


def video_events(frames: np.ndarray, fps: float) -> np.ndarray:
    """Times (s) of the visible impacts in ``frames`` uint8 (F, H, W, 3), in order; empty when no object is found.

    Meant for one bright or coloured object under gravity before a quieter ground, at any size and length; see
    :mod:`.motion` for footage of any kind.
    """
    return impacts(track_object(frames).y / frames.shape[1], fps)


def impacts(height: np.ndarray, fps: float) -> np.ndarray:
    """Times (s) of impacts along ``height`` (F,), in picture heights downwards, NaN where it is not known."""
    if np.isfinite(height).sum() < FEWEST_FRAMES:
        return np.empty(0)
    times = []
    for before, after in pairwise(segments(height, fps)):
        time = _meeting(before, after, fps)
        approach, departure = before.velocity_at(time), after.velocity_at(time)
        if approach > LEAST_APPROACH and approach - departure > LEAST_TURN and departure < RISING:
            times.append(time)
    return np.array(times)


def segments(height: np.ndarray, fps: float) -> list[Segment]:
    """The flights and rests that explain ``height`` (F,) at the least cost: squared error over the variance of the
    noise, and ``CUT_COST`` for each. One between two cuts lasts ``SHORTEST_FLIGHT`` seconds at least.
    """
    coefficients, cost = _fit_all(height, fps)
    frames = len(height)
    flight = max(SHORTEST, round(SHORTEST_FLIGHT * fps))
    best = np.concatenate([[0.0], np.full(frames, np.inf)])
    length = np.zeros(frames + 1, dtype=int)
    for stop in range(1, frames + 1):
        lengths = np.arange(min(SHORTEST, stop), min(LONGEST, stop) + 1)
        whole = (lengths >= flight) | (lengths == stop) | (stop == frames)
        totals = np.where(whole, best[stop - lengths] + cost[stop - lengths, lengths - 1] + CUT_COST, np.inf)
        choice = int(np.argmin(totals))
        best[stop], length[stop] = totals[choice], lengths[choice]
    cuts = [frames]
    while cuts[-1]:
        cuts.append(cuts[-1] - int(length[cuts[-1]]))
    return [_segment(start, stop, coefficients[start, stop - start - 1], fps) for start, stop in pairwise(cuts[::-1])]


def _fit_all(height: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (F, L, 3) and cost (F, L) of the better of flight and rest for every first frame and length 1 to L.

    A flight is a parabola whose acceleration is drawn towards gravity, a rest is constant. Coefficients are height,
    velocity and acceleration at the first frame.
    """
    visible = np.isfinite(height)
    longest = min(LONGEST, len(height))
    variance = _noise(height) ** 2
    weight, value = (
        np.lib.stride_tricks.sliding_window_view(np.pad(values, (0, longest - 1)), longest)
        for values in (visible.astype(float), np.where(visible, height, 0.0))
    )
    t = np.arange(longest) / fps
    basis = np.stack([np.ones_like(t), t, t**2 / 2], axis=-1)
    gram = np.cumsum(weight[..., None, None] * (basis[:, :, None] * basis[:, None, :]), axis=1)
    right = np.cumsum((weight * value)[..., None] * basis, axis=1)
    square = np.cumsum(weight * value**2, axis=1)

    belief = variance / GRAVITY_SPREAD**2
    prior = np.diag([1e-9, 1e-9, belief])
    aim = right + np.array([0.0, 0.0, belief * GRAVITY])
    flight = np.linalg.solve(gram + prior, aim[..., None])[..., 0]
    flight_cost = square + belief * GRAVITY**2 - (aim * flight).sum(axis=-1)
    mean = right[..., 0] / np.maximum(gram[..., 0, 0], 1)
    rest_cost = square - right[..., 0] * mean
    rest = np.stack([mean, np.zeros_like(mean), np.zeros_like(mean)], axis=-1)
    resting = rest_cost <= flight_cost
    return np.where(resting[..., None], rest, flight), np.minimum(rest_cost, flight_cost) / variance


def _noise(height: np.ndarray) -> float:
    """Standard deviation of what no smooth path explains, from third differences, most of which contain no impact."""
    jerk = np.abs(np.diff(height, 3))
    jerk = jerk[np.isfinite(jerk)]
    return max(LEAST_NOISE, float(np.quantile(jerk, 0.4)) / JERK_QUANTILE) if len(jerk) else LEAST_NOISE


def _segment(start: int, stop: int, coefficients: np.ndarray, fps: float) -> Segment:
    height, velocity, acceleration = (float(c) for c in coefficients)
    begin = start / fps
    return Segment(
        start,
        stop,
        height - velocity * begin + acceleration * begin**2 / 2,
        velocity - acceleration * begin,
        acceleration,
    )


def _meeting(before: Segment, after: Segment, fps: float) -> float:
    """When the curves cross nearest to the cut, within a frame of it; where they come closest if they do not cross."""
    middle = (before.stop + after.start - 1) / 2 / fps
    low, high = middle - 1 / fps, middle + 1 / fps
    gap = np.polynomial.Polynomial(
        [before.height - after.height, before.velocity - after.velocity, (before.acceleration - after.acceleration) / 2]
    ).trim(1e-9)

    def within(roots: np.ndarray) -> list[float]:
        return [float(root.real) for root in roots if abs(root.imag) < 1e-9 and low <= root.real <= high]

    if crossings := within(gap.roots()):
        return min(crossings, key=lambda time: abs(time - middle))
    return min((low, high, *within(gap.deriv().roots())), key=lambda time: abs(gap(time)))
