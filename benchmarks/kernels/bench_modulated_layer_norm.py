"""Layer norm with the shift and scale of a block, beside a norm that is told its shift and scale as new tensors."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from syncflow.benchmarks.kernels.harness import Baseline


def torch_norm(x: Tensor, table: Tensor, rows: Tensor, part: int, eps: float) -> Tensor:
    """PyTorch's layer norm without affine, then one fused multiply-add."""
    shift, scale = ((table[part + i] + rows[:, :, part + i])[:, :, None].to(x.dtype) for i in range(2))
    return torch.addcmul(shift, layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)


def liger_norm(x: Tensor, table: Tensor, rows: Tensor, part: int, eps: float) -> Tensor:
    """Liger's layer norm with weight 1 and bias 0, then one fused multiply-add."""
    liger: Any = importlib.import_module("liger_kernel.ops.layer_norm")
    shift, scale = ((table[part + i] + rows[:, :, part + i])[:, :, None].to(x.dtype) for i in range(2))
    one, zero = x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1])
    return torch.addcmul(shift, liger.LigerLayerNormFunction.apply(x, one, zero, eps), 1 + scale)


BASELINES = {"torch layer norm": Baseline(torch_norm), "Liger layer norm": Baseline(liger_norm)}


def test_modulated_layer_norm(race, case, contender) -> None:
    race(case, contender)
