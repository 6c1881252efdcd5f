"""Rotary self-attention over the T tokens of each spatial position, from the packed projection to token order.

    q, k = rotate(RMSnorm(q) * q_weight, angles), rotate(RMSnorm(k) * k_weight, angles)
    o[r, :, s] = softmax(q[r, :, s] k[r, :, s]^T / sqrt(d)) v[r, :, s]

qkv (R, T, S, 3, n, d), q_weight and k_weight (d,), angles (T, d / 2) radians. -> (R, T, S, n * d).
The audio tower's self-attention is the case S = 1. Source: Open-Sora STDiT3's temporal block (SyncFlow section 3.2).
"""

from __future__ import annotations

from torch import Tensor

from .formulas import attend, head_norm, rotate
from .registry import operation


def reference(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, angles: Tensor, eps: float) -> Tensor:
    """Attention over axis T with head norm and rotary embedding on q and k."""
    q, k, v = qkv.transpose(1, 2).unbind(3)  # (R, S, T, n, d)
    q = rotate(head_norm(q, q_weight, eps), angles)
    k = rotate(head_norm(k, k_weight, eps), angles)
    return attend(q, k, v).flatten(-2).transpose(1, 2)


temporal_attention = operation(reference)
