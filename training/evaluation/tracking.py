"""Where the object is: one bright or coloured thing before a quieter ground, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GROUND_SPREAD = 40.0
FAINT, CLEAR = 30.0, 70.0
SMALLEST, LARGEST = 0.002, 0.4
LEAST_SHARE = 0.4
CANDIDATES, LONGEST_GAP = 3, 8
REACH = 0.25


@dataclass(frozen=True)
class Track:
    """``x``, ``y`` (F,) centre of the object in pixels, y downwards, NaN in frames where it is not seen; ``mask`` (F,
    H, W) how much of each pixel is taken for the object, ``salience`` (F, H, W) how much of it stands out from the
    ground (:func:`stand_out`), 0 to 1.
    """

    x: np.ndarray
    y: np.ndarray
    mask: np.ndarray
    salience: np.ndarray


@dataclass(frozen=True)
class Spot:
    """A connected region of a frame that may be the object; ``mass`` is its area in pixels."""

    frame: int
    label: int
    x: float
    y: float
    mass: float


def track_object(frames: np.ndarray) -> Track:
    """Follow the object of ``frames`` uint8 (F, H, W, 3) by the weighted centroid of its pixels.

    Among the regions that stand out from the ground, the chain that is largest over all frames and does not jump is
    the object; what appears beside it, or for a moment elsewhere, is left out. Raises ``ValueError`` for an array of
    another kind.
    """
    check_frames(frames)
    salience = stand_out(frames)
    labels, spots = _spots(salience)
    chain = _best_chain(spots, salience.shape[1])
    x, y = np.full(len(frames), np.nan), np.full(len(frames), np.nan)
    mask = np.zeros_like(salience)
    for spot in chain:
        x[spot.frame], y[spot.frame] = spot.x, spot.y
        mask[spot.frame] = np.where(labels[spot.frame] == spot.label, salience[spot.frame], 0)
    return Track(x, y, mask, salience)


def check_frames(frames: np.ndarray) -> None:
    """Raise ``ValueError`` unless ``frames`` is uint8 (F, H, W, 3) with at least one frame."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size or frames.dtype != np.uint8:
        raise ValueError(
            f"frames are {frames.dtype} of shape {frames.shape}; they must be uint8 (F, H, W, 3), not empty"
        )


def stand_out(frames: np.ndarray) -> np.ndarray:
    """How clearly each pixel differs from the ground, (F, H, W) from 0 to 1. Shadows do not count.

    The ground is the median over time, or over the whole row where something stands still for most of the clip.
    """
    picture = frames.astype(np.float32)
    over_time = np.median(picture, axis=0)
    over_rows = np.median(picture, axis=(0, 2))[:, None]
    covered = np.abs(over_time - over_rows).max(axis=-1, keepdims=True) > GROUND_SPREAD
    ground = np.where(covered, over_rows, over_time)
    direction = ground / np.maximum(np.linalg.norm(ground, axis=-1, keepdims=True), 1e-6)
    change = picture - ground
    shadow = np.minimum((change * direction).sum(axis=-1, keepdims=True), 0) * direction
    return np.clip((np.linalg.norm(change - shadow, axis=-1) - FAINT) / (CLEAR - FAINT), 0, 1)


def _spots(salience: np.ndarray) -> tuple[np.ndarray, list[Spot]]:
    """Connected regions of every frame: their labels (F, H, W) and the few largest of each, largest first."""
    from scipy import ndimage

    labels = np.zeros(salience.shape, dtype=np.int32)
    spots: list[Spot] = []
    for frame, picture in enumerate(salience):
        labels[frame], count = ndimage.label(picture > 0)
        index = np.arange(1, count + 1)
        masses = ndimage.sum_labels(picture, labels[frame], index)
        centres = ndimage.center_of_mass(picture, labels[frame], index)
        for i in np.argsort(-masses)[:CANDIDATES]:
            if SMALLEST <= masses[i] / picture.size <= LARGEST:
                y, x = centres[i]
                spots.append(Spot(frame, int(index[i]), float(x), float(y), float(masses[i])))
    return labels, spots


def _best_chain(spots: list[Spot], height: int) -> list[Spot]:
    """The chain of spots, one a frame at most, that gathers most area at least haste, by dynamic programming.

    A spot gains its area over the usual one, at most 1; a step beyond ``REACH`` picture heights a frame costs its
    excess.
    """
    if not spots:
        return []
    largest = {spot.frame: spot.mass for spot in reversed(spots)}
    usual = float(np.median(list(largest.values())))
    score: list[float] = []
    link: list[int | None] = []
    for i, spot in enumerate(spots):
        options = [
            (score[j] - _haste(spots[j], spot, height), j)
            for j in range(max(0, i - CANDIDATES * (LONGEST_GAP + 1)), i)
            if 0 < spot.frame - spots[j].frame <= LONGEST_GAP
        ]
        before, j = max(options, default=(0.0, None), key=lambda option: option[0])
        score.append(min(1.0, spot.mass / usual) + max(0.0, before))
        link.append(j if before > 0 else None)
    chain: list[Spot] = []
    at: int | None = int(np.argmax(score))
    while at is not None:
        chain.append(spots[at])
        at = link[at]
    return [spot for spot in reversed(chain) if spot.mass >= LEAST_SHARE * usual]


def _haste(a: Spot, b: Spot, height: int) -> float:
    reach = REACH * height * (b.frame - a.frame)
    return max(0.0, float(np.hypot(a.x - b.x, a.y - b.y)) / reach - 1)
