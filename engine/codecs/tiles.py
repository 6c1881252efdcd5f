"""Decoding less than a clip at once: fewer images, and overlapping tiles of every frame that are blended.

Images of an autoencoder of single frames are independent of each other, so their number changes no value. A tile lacks
what lies beyond its edge; the weight of a tile falls linearly to 0 within the overlap with its neighbour.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..types import WHOLE, DecodeTiles

OVERLAP = 4  # a tile shares 1 / OVERLAP of its side with each neighbour
# From whole frames to less and less memory.
CHOICES = (WHOLE, DecodeTiles(1), *(DecodeTiles(1, side) for side in (1024, 768, 512, 384, 256, 192, 128)))


def starts(length: int, side: int) -> list[int]:
    """Where tiles of ``side`` begin, evenly, so that neighbours share at least 1 / ``OVERLAP`` of it."""
    if length <= side:
        return [0]
    gaps = -(-(length - side) // max(1, side - side // OVERLAP))
    return [round(i * (length - side) / gaps) for i in range(gaps + 1)]


def decode_tiles(decode: Callable[[Tensor], Tensor], latents: Tensor, side: int, space: int) -> Tensor:
    """Pixels (B, 3, F, space H, space W) of latents (B, C, T, H, W) by tiles of ``side`` x ``side`` latents.

    ``decode`` gives the pixels of a tile.
    """
    height, width = latents.shape[3:]
    rows, columns = starts(height, side), starts(width, side)
    if len(rows) == len(columns) == 1:
        return decode(latents)
    tall, wide = min(side, height), min(side, width)
    total: Tensor | None = None
    weights = latents.new_zeros(height * space, width * space)
    for top in rows:
        of_rows = _ramp(top, tall, height, space, latents)
        for left in columns:
            weight = of_rows[:, None] * _ramp(left, wide, width, space, latents)
            pixels = decode(latents[..., top : top + tall, left : left + wide])
            if total is None:
                total = pixels.new_zeros(*pixels.shape[:3], height * space, width * space)
            place = (
                ...,
                slice(top * space, (top + tall) * space),
                slice(left * space, (left + wide) * space),
            )
            total[place] += pixels * weight.to(pixels.dtype)
            weights[place] += weight
    assert total is not None
    return total.div_(weights.to(total.dtype))


def _ramp(start: int, count: int, length: int, space: int, like: Tensor) -> Tensor:
    """Weights (count * space,) of the pixels of a tile along one side: 1, and less towards an edge with a neighbour."""
    size, overlap = count * space, max(1, count // OVERLAP) * space
    near = (torch.arange(size, device=like.device) + 0.5) / overlap
    ramp = torch.ones_like(near)
    if start > 0:
        ramp = torch.minimum(ramp, near)
    if start + count < length:
        ramp = torch.minimum(ramp, near.flip(0))
    return ramp.to(like.dtype)
