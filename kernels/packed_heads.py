"""Attention over many short sequences on a CPU: few passes over memory, long inner loops, no softmax of short rows.

The batch of a product is every head of every sequence. With few keys a softmax over the last axis takes ten times as
long as the products around it: a row does not fill a vector of the processor. There scores stand keys by queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDE = 32  # keys from which a softmax over the last axis is the faster


def takes(x: Tensor) -> bool:
    """Whether the sums may be made in the type of these numbers, and there are any."""
    return x.dtype in (torch.float32, torch.float64) and x.numel() > 0


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T + bias) v of every entry of a batch; q, or k, already divided by sqrt(d).

    q (B, N, d), k and v (B, M, d), bias broadcastable to (B, N, M), its last two axes as they are or 1. -> (B, N, d).
    """
    if k.shape[1] >= WIDE:
        return _weights(q, k, bias, -1) @ v
    return _weights(k, q, None if bias is None else bias.mT, 1).mT @ v


def _weights(a: Tensor, b: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    scores = torch.bmm(a, b.mT) if bias is None else torch.baddbmm(bias, a, b.mT)
    return torch.softmax(scores, axis)


def normalize(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, out: Tensor, turns: Tensor | None = None
) -> None:
    """Head norm and rotation of q and k, and the scale 1 / sqrt(d) of q.

    qkv (R, T, ..., 3, n, d); weights (d,); turns (T, d / 2, 2) cosine and sine of every frame; filled: ``out``
    (R, T, ..., 2, n, d), of any strides.
    """
    heads, width = qkv.shape[-2:]
    both = qkv[..., :2, :, :]
    scale = torch.rsqrt(both.square().mean(-1, keepdim=True) + eps)
    weights = torch.stack((q_weight * width**-0.5, k_weight)).to(qkv.dtype)
    weighted = both * weights[:, None].repeat(1, heads, 1)  # whole tokens, for long inner loops
    if turns is not None:
        spun = torch.view_as_complex(turns.to(qkv.dtype).contiguous()).repeat(1, 2 * heads)
        spun = spun.view(-1, *[1] * (qkv.ndim - 5), 2, heads, width // 2)
        torch.view_as_complex(weighted.unflatten(-1, (-1, 2))).mul_(spun)
    torch.mul(weighted, scale, out=out)
