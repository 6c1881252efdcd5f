"""The formulas that several references share: head norm, rotary embedding, softmax attention."""

from __future__ import annotations

import torch
from torch import Tensor


def head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the head width (last axis), in at least float32: x / sqrt(mean(x^2) + eps) * weight."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def rope_table(angles: Tensor) -> Tensor:
    """Cosines and sines of angles in radians. (N, d / 2) -> (N, d / 2, 2)."""
    return torch.stack((angles.cos(), angles.sin()), -1)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs: (x_2i, x_2i+1) turned by the angle whose cosine and sine are given.

    x (..., N, n, d) with N positions, rope (N, d / 2, 2) from :func:`rope_table`.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    cos, sin = rope.to(wide.dtype)[:, None].unbind(-1)
    even, odd = wide[..., 0::2], wide[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with two matrix products.

    q (..., N, n, d), k and v (..., M, n, d), allowed bool broadcastable to (..., n, N, M). -> (..., N, n, d).
    """
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    width = int(q.shape[-1])  # a constant, also to a compiler that keeps lengths symbolic
    scores = (q * width**-0.5) @ k.transpose(-2, -1)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return (weights.to(v.dtype) @ v).transpose(-3, -2)
