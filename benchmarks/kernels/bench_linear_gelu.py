"""The first half of an MLP. Baselines: cuBLASLt's fused epilogue, and a linear and a GELU one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from syncflow.benchmarks.kernels.harness import Baseline


def epilogue(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """cuBLASLt's GELU (tanh form) in the epilogue of the product."""
    flat = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return flat.unflatten(0, x.shape[:-1])


BASELINES = {"cuBLASLt epilogue": Baseline(epilogue)}


def test_linear_gelu(race, case, contender) -> None:
    race(case, contender)
