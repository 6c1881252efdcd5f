"""Spatial attention: S tokens of each latent frame. Baselines norm with plain PyTorch and take frames as a batch."""

from __future__ import annotations

from torch import Tensor

from syncflow.benchmarks.kernels.baselines import attention_baselines
from syncflow.kernels.reference_ops import head_norm


def split(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Normed, one row of a batch for every frame."""
    q, k, v = qkv.unbind(3)
    q, k = head_norm(q, q_weight, eps), head_norm(k, k_weight, eps)
    return tuple(x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))


def join(mixed: Tensor, qkv: Tensor, *_: object) -> Tensor:
    """Back to rows and frames."""
    return mixed.transpose(1, 2).flatten(2).unflatten(0, qkv.shape[:2]).contiguous()


BASELINES = attention_baselines(split, join)


def test_spatial_attention(race, case, contender) -> None:
    race(case, contender)
