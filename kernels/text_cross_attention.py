"""Cross-attention of all tokens of a row to the text of its prompt, whose keys and values are computed once a prompt.

    o[r] = softmax(q[r] k[p]^T / sqrt(d)) v[p],  p = text_of_row[r], over the first lengths[p] text tokens

q (R, N, n, d); k, v (P, L, n, d); lengths (P,) int, each at least 1; text_of_row (R,) int. -> (R, N, n * d).
Source: Open-Sora STDiT3's cross-attention, cached per prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .formulas import attend
from .registry import operation


def reference(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, text_of_row: Tensor) -> Tensor:
    """Attention over the text of each row, masked by its length."""
    allowed = torch.arange(k.shape[1], device=k.device) < lengths[text_of_row, None]  # (R, L)
    return attend(q, k[text_of_row], v[text_of_row], allowed[:, None, None]).flatten(-2)


text_cross_attention = operation(reference)
