"""Cross-attention between two clocks: the audio reads the video and its own time.

The baselines rotate both sides, gather the context of every row and append its tail with plain PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncflow.benchmarks.kernels.baselines import attention_baselines
from syncflow.kernels.reference_ops import rope_table, rotate


def split(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    frequencies: Tensor,
    _window: float,
    context_of_row: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
) -> tuple[Tensor, ...]:
    """Both sides rotated to their positions; every row with keys and values of its own."""
    q, k = (
        rotate(x, rope_table(positions[:, None] * frequencies)) for x, positions in ((q, q_positions), (k, k_positions))
    )
    k, v = (torch.cat((x[context_of_row], tail), 1) for x, tail in ((k, tail_k), (v, tail_v)))
    return tuple(x.transpose(1, 2) for x in (q, k, v))


def join(mixed: Tensor, *_: object) -> Tensor:
    """Back to token order."""
    return mixed.transpose(1, 2).flatten(2)


BASELINES = attention_baselines(split, join)


def test_rope_cross_attention(race, case, contender) -> None:
    race(case, contender)
