"""A linear with the block's gate and residual, beside cuBLAS and the gated residual's own kernel."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from syncflow.benchmarks.kernels.harness import Baseline
from syncflow.kernels import gated_residual


def apart(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, table: Tensor, rows: Tensor, part: int) -> Tensor:
    """The product is written and read again."""
    return gated_residual(residual, linear(x, weight, bias), table, rows, part)


BASELINES = {"cuBLAS, then the gate's kernel": Baseline(apart)}


def test_gated_linear(race, case, contender) -> None:
    race(case, contender)
