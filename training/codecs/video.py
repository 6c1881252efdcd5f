"""Training of the video codec: windows around what moves, and losses that care for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...engine.codecs.video import VideoCodec
from .fit import CodecRecipe, divergence, fit, noised

VIDEO_RECIPE = CodecRecipe()

WINDOWS = ((16, 32, 32), (16, 32, 32), (16, 64, 32), (16, 64, 64))
MOVING = 0.2
MOTION_WEIGHT = 5.0


def train_video_codec(
    frames: np.ndarray,
    out: str | Path,
    *,
    recipe: CodecRecipe = VIDEO_RECIPE,
    settings: dict[str, Any] | None = None,
    start: VideoCodec | None = None,
) -> VideoCodec:
    """Train on ``frames`` uint8 (N, F, H, W, 3), write the codec to ``out``; goes on from ``<out>-training`` after a
    kill.

    ``settings`` are those of ``AutoencoderKLLTXVideo``, the tiny codec's by default; ``start`` is a codec to train
    further instead of a new one. Raises ``ValueError`` for other frames.
    """
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"frames are {frames.dtype} {frames.shape}; they must be uint8 (clips, frames, height, width, 3)"
        )

    def losses(codec: VideoCodec, rng: np.random.Generator, noise: float) -> dict[str, Tensor]:
        pixels, weight = (x.to(codec.shift.device) for x in video_batch(frames, recipe.batch, rng))
        mean, logvar = codec.posterior(pixels)
        made = codec.pixels(noised(mean, logvar, noise), pixels.shape[2])
        return video_losses(made, pixels, weight) | {"kl": recipe.kl * divergence(mean, logvar)}

    def latents(codec: VideoCodec) -> Tensor:
        chosen = np.linspace(0, len(frames) - 1, min(len(frames), 128)).astype(int)
        parts = [codec.encode(torch.from_numpy(frames[i : i + 1].copy())) for i in chosen]
        return codec.denormalize(torch.cat(parts)).movedim(1, -1).flatten(0, -2)

    torch.manual_seed(recipe.seed)
    if start is None:
        start = VideoCodec.build(settings=settings)
        sample = frames[:: max(1, len(frames) // 16)].astype(np.float32)
        start.centre(torch.from_numpy(sample).mean((0, 1, 2, 3)) / 127.5 - 1)
    return fit(start, Path(out), recipe, losses, latents)


def video_batch(frames: np.ndarray, batch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Windows around what moves: pixels (B, 3, F, H, W) in [-1, 1] and pixel weights (B, 1, F, H, W) from 1 to 6.

    ``batch`` windows of the smallest size, or fewer larger ones. What moves is what differs from the median over time.
    """
    sizes = frames.shape[1:4]
    window = tuple(min(a, b) for a, b in zip(WINDOWS[rng.integers(len(WINDOWS))], sizes, strict=True))
    count = max(1, batch * math.prod(WINDOWS[0]) // math.prod(window))
    pixels, changes = [], []
    for index in rng.integers(len(frames), size=count):
        clip = frames[index].astype(np.float32) / 127.5 - 1
        change = np.abs(clip - np.median(clip[::4], axis=0)).max(axis=-1)
        first = int(rng.integers(sizes[0] - window[0] + 1))
        moving = change[first : first + window[0]] > MOVING
        top = _place(moving.sum((0, 2)), window[1], rng)
        left = _place(moving.sum((0, 1)), window[2], rng)
        cut = (slice(first, first + window[0]), slice(top, top + window[1]), slice(left, left + window[2]))
        pixels.append(clip[cut])
        changes.append(change[cut])
    motion = torch.from_numpy(np.stack(changes))[:, None].clamp(max=0.5).mul(2)
    weight = 1 + MOTION_WEIGHT * F.max_pool3d(motion, (1, 3, 3), 1, (0, 1, 1))
    return torch.from_numpy(np.stack(pixels)).permute(0, 4, 1, 2, 3).contiguous(), weight


def video_losses(made: Tensor, true: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Weighted L1 of pixels, and of their differences along time, height and width."""
    error = made - true
    edges = [
        (error.diff(dim=d).abs() * weight.narrow(d, 1, error.shape[d] - 1)).mean()
        for d in (2, 3, 4)
        if error.shape[d] > 1
    ]
    return {"pixels": (error.abs() * weight).mean(), "edges": 0.5 * torch.stack(edges).mean()}


def _place(profile: np.ndarray, size: int, rng: np.random.Generator) -> int:
    """Where a window of ``size`` starts along one axis: mostly around the centre of ``profile``, seldom anywhere."""
    last = len(profile) - size
    if not profile.any() or rng.random() < 0.1:
        return int(rng.integers(last + 1))
    centre = (profile * np.arange(len(profile))).sum() / profile.sum()
    return int(np.clip(centre - size / 2 + rng.integers(-size // 4, size // 4 + 1), 0, last))
