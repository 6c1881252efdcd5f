"""Times of visible impacts, detected in the frames alone.

What moves towards an impact is a coordinate: the height of an object that falls, its place between left and right where
it swings, or the distance of two bodies. It is segmented into the flights and rests that fit it best, by dynamic
programming. An impact is a boundary at which a coordinate stops approaching; its time is where the curves of both
segments cross, which is finer than the interval between frames. Coordinates are in picture heights, and grow towards
the impact.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .tracking import Track, track_object


@dataclass(frozen=True)
class Pull:
    """What is expected of the acceleration (picture heights/s^2) towards the impact: its mean and its spread."""

    mean: float
    spread: float


GRAVITY, SWINGING = Pull(3.75, 1.0), Pull(6.0, 6.0)
TWO_BODIES = 1.7  # breadth over height of what stands out
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

    Meant for one bright or coloured object that falls or swings, or two that swing against each other, before a quieter
    ground, at any size and length; see :mod:`.motion` for footage of any kind.
    """
    track = track_object(frames)
    breadth, height = _extent(track.salience)
    if np.isfinite(height).any() and np.nanmedian(breadth / height) > TWO_BODIES:
        distance = 2 * np.sqrt(np.maximum(breadth**2 - height**2, 0))
        return impacts(-distance / frames.shape[1], fps, SWINGING)
    return _impacts_of_one(track, frames.shape[1], fps)


def _impacts_of_one(track: Track, height: int, fps: float) -> np.ndarray:
    """Of a single object, along the axis on which it is pulled more."""
    x, y = track.x / height, track.y / height
    if _pulled(x) <= _pulled(y):
        return impacts(y, fps)
    return max((impacts(side * x, fps, SWINGING) for side in (1, -1)), key=len)


def _pulled(path: np.ndarray) -> float:
    """Root of the mean square of the second differences of ``path`` (F,), NaN left out; 0 where there is none."""
    bend = np.diff(path, 2)
    bend = bend[np.isfinite(bend)]
    return float(np.sqrt(np.mean(bend**2))) if len(bend) else 0.0


def _extent(salience: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation (pixels) of what stands out (F, H, W), across and along the height of each frame; NaN where
    nothing does. Two equal discs at a distance d have across^2 = along^2 + (d / 2)^2.
    """
    mass = salience.sum(axis=(1, 2))
    mass = np.where(mass > 0, mass, np.nan)

    def deviation(profile: np.ndarray) -> np.ndarray:
        place = np.arange(profile.shape[1])
        mean = (profile * place).sum(axis=1) / mass
        return np.sqrt(np.maximum((profile * place**2).sum(axis=1) / mass - mean**2, 1e-9))

    return deviation(salience.sum(axis=1)), deviation(salience.sum(axis=2))


def impacts(path: np.ndarray, fps: float, pull: Pull = GRAVITY) -> np.ndarray:
    """Times (s) of impacts along ``path`` (F,), picture heights towards what is struck, NaN where it is not known."""
    if np.isfinite(path).sum() < FEWEST_FRAMES:
        return np.empty(0)
    times = []
    for before, after in pairwise(segments(path, fps, pull)):
        time = _meeting(before, after, fps)
        approach, departure = before.velocity_at(time), after.velocity_at(time)
        if approach > LEAST_APPROACH and approach - departure > LEAST_TURN and departure < RISING:
            times.append(time)
    return np.array(times)


def segments(height: np.ndarray, fps: float, pull: Pull = GRAVITY) -> list[Segment]:
    """The flights and rests that explain ``height`` (F,) at the least cost: squared error over the variance of the
    noise, and ``CUT_COST`` for each. One between two cuts lasts ``SHORTEST_FLIGHT`` seconds at least.
    """
    coefficients, cost = _fit_all(height, fps, pull)
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


def _fit_all(height: np.ndarray, fps: float, pull: Pull) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (F, L, 3) and cost (F, L) of the better of flight and rest for every first frame and length 1 to L.

    A flight is a parabola whose acceleration is drawn towards the pull, a rest is constant. Coefficients are height,
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

    belief = variance / pull.spread**2
    prior = np.diag([1e-9, 1e-9, belief])
    aim = right + np.array([0.0, 0.0, belief * pull.mean])
    flight = np.linalg.solve(gram + prior, aim[..., None])[..., 0]
    flight_cost = square + belief * pull.mean**2 - (aim * flight).sum(axis=-1)
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
