"""The gated residual, beside PyTorch's fused multiply-add."""

from __future__ import annotations

import torch
from torch import Tensor

from syncflow.benchmarks.kernels.harness import Baseline


def addcmul(x: Tensor, branch: Tensor, table: Tensor, rows: Tensor, part: int) -> Tensor:
    """The gate as a tensor of its own, then one fused multiply-add."""
    return torch.addcmul(x, (table[part + 2] + rows[:, :, part + 2])[:, :, None].to(x.dtype), branch)


BASELINES = {"torch addcmul": Baseline(addcmul)}


def test_gated_residual(race, case, contender) -> None:
    race(case, contender)
