"""Cross-attention between two clocks: queries and keys carry rotary positions of their own.

    o = softmax(rotate(q, q_angles) rotate(k, k_angles)^T / sqrt(d)) v

q (R, N, n, d); k, v (R, M, n, d); q_angles (N, d / 2), k_angles (M, d / 2) radians. -> (R, N, n * d).
Source: audio positions in seconds on both sides (SyncFlow's audio tower; Syncphony's Audio RoPE).
"""

from __future__ import annotations

from torch import Tensor

from .formulas import attend, rotate
from .registry import operation


def reference(q: Tensor, k: Tensor, v: Tensor, q_angles: Tensor, k_angles: Tensor) -> Tensor:
    """Attention with both sides rotated to their own positions."""
    return attend(rotate(q, q_angles), rotate(k, k_angles), v).flatten(-2)


rope_cross_attention = operation(reference)
