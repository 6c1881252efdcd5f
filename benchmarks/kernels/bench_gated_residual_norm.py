"""Gated residual and the next norm in one pass, beside the two single operations one after the other."""

from __future__ import annotations

from torch import Tensor

from syncflow.benchmarks.kernels.harness import Baseline
from syncflow.kernels import gated_residual, modulated_layer_norm


def apart(
    x: Tensor,
    branch: Tensor,
    gate_table: Tensor | None,
    rows: Tensor,
    gate_part: int,
    norm_table: Tensor,
    norm_part: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Their kernels, each with a read and a write of its own."""
    y = x + branch if gate_table is None else gated_residual(x, branch, gate_table, rows, gate_part)
    return y, modulated_layer_norm(y, norm_table, rows, norm_part, eps)


BASELINES = {"two kernels": Baseline(apart)}


def test_gated_residual_norm(race, case, contender) -> None:
    race(case, contender)
