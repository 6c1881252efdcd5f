"""The linear in e4m3 with a scale for every row and output, beside cuBLASLt's and the same linear in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu as activation
from torch.nn.functional import linear

from syncflow.benchmarks.kernels.harness import Baseline


def scaled(
    codes: Tensor, scales: Tensor, weight_codes: Tensor, weight_scales: Tensor, bias: Tensor, gelu: bool
) -> Tensor:
    """PyTorch's row-wise scaled product."""
    y = torch._scaled_mm(
        codes.flatten(0, -2),
        weight_codes.t(),
        scale_a=scales.flatten()[:, None],
        scale_b=weight_scales[None],
        bias=bias,
        out_dtype=bias.dtype,
    ).unflatten(0, codes.shape[:-1])
    return activation(y, approximate="tanh") if gelu else y


def widened(
    codes: Tensor, scales: Tensor, weight_codes: Tensor, weight_scales: Tensor, bias: Tensor, gelu: bool
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """The numbers that the codes stand for, in the type of the bias."""
    x, weight = (c.float() * s[..., None] for c, s in ((codes, scales), (weight_codes, weight_scales)))
    return x.to(bias.dtype), weight.to(bias.dtype), bias, gelu


def plain(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
    """The linear that fp8 takes the place of."""
    y = linear(x, weight, bias)
    return activation(y, approximate="tanh") if gelu else y


BASELINES = {"torch scaled product": Baseline(scaled), "the bias's own type": Baseline(plain, setup=widened)}


def test_fp8_linear(race, case, contender) -> None:
    race(case, contender)
