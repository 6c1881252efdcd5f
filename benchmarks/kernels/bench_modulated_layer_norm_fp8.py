"""Norm, modulation and quantisation in one pass, beside the norm's kernel and a quantisation in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from syncflow.benchmarks.kernels.harness import Baseline
from syncflow.kernels import modulated_layer_norm


def apart(x: Tensor, table: Tensor, rows: Tensor, part: int, eps: float) -> tuple[Tensor, Tensor]:
    """The row's largest magnitude is 448."""
    y = modulated_layer_norm(x, table, rows, part, eps).float()
    scales = y.abs().amax(-1).clamp_min(1e-12) / 448
    return (y / scales[..., None]).to(torch.float8_e4m3fn), scales


BASELINES = {"norm, then quantise": Baseline(apart), "norm, then quantise, compiled": Baseline(apart, compiled=True)}


def test_modulated_layer_norm_fp8(race, case, contender) -> None:
    race(case, contender)
