"""Temporal attention: many sequences of T = 8 frames, and the long ones of audio and adaptors.

The baselines norm and rotate with plain PyTorch and bring the frames of every position together, (R * S, n, T, d).
"""

from __future__ import annotations

from torch import Tensor

from syncflow.benchmarks.kernels.baselines import attention_baselines
from syncflow.kernels.reference_ops import head_norm, rotate


def split(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Normed and rotated, one row of a batch for every position."""
    q, k, v = qkv.transpose(1, 2).unbind(3)
    q, k = rotate(head_norm(q, q_weight, eps), rope), rotate(head_norm(k, k_weight, eps), rope)
    return tuple(x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))


def join(mixed: Tensor, qkv: Tensor, *_: object) -> Tensor:
    """Back to token order."""
    rows, _frames, tokens = qkv.shape[:3]
    return mixed.transpose(1, 2).flatten(2).unflatten(0, (rows, tokens)).transpose(1, 2).contiguous()


BASELINES = attention_baselines(split, join)


def test_temporal_attention(race, case, contender) -> None:
    race(case, contender)
