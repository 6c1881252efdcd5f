"""Self-attention over the S tokens of each latent frame, from the packed projection to token order.

    q, k = RMSnorm(q) * q_weight, RMSnorm(k) * k_weight
    o[r, t] = softmax(q[r, t] k[r, t]^T / sqrt(d)) v[r, t]

qkv (R, T, S, 3, n, d), q_weight and k_weight (d,). -> (R, T, S, n * d).
Source: Open-Sora STDiT3's spatial block (SyncFlow section 3.2).
"""

from __future__ import annotations

from torch import Tensor

from . import native
from .fake_shapes import fake_self_attention
from .flash import flash_launches
from .launch import Launch, head_tiles, operation, supported
from .reference_ops import attend, head_norm


def reference(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Tensor:
    """Attention over axis S with head norm on q and k."""
    q, k, v = qkv.unbind(3)
    return attend(head_norm(q, q_weight, eps), head_norm(k, k_weight, eps), v).flatten(-2)


def cpu(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Tensor:
    """The same in one pass over every frame."""
    found = native.self_attention(qkv, q_weight, k_weight, None, eps, 2)
    return reference(qkv, q_weight, k_weight, eps) if found is None else found


def plan_launches(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, list[Launch]] | None:
    """One launch over all heads and frames (``flash.py``)."""
    rows, frames, tokens, _, heads, width = qkv.shape
    if head_tiles(int(width)) is None or not supported(qkv) or qkv.stride(-1) != 1:
        return None
    out = qkv.new_empty(rows, frames, tokens, heads * width)
    q_weight, k_weight = q_weight.contiguous(), k_weight.contiguous()
    return out, flash_launches("spatial_attention", qkv, out, q_weight, k_weight, None, eps, axis=2)


spatial_attention = operation(reference, plan_launches, cpu, fake_self_attention)
