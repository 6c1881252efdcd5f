"""How each operation of the d-DiT is written in standard ONNX operators.

A translation takes the place of one node ``torch.ops.syncflow.<name>`` and has its parameters. What neighbouring
operations repeat, such as the split of a block's modulation, is merged afterwards (``graph.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from ... import kernels  # noqa: F401 (registers the operations)
from .attention import rope_cross_attention, spatial_attention, temporal_attention, text_cross_attention
from .tensors import Argument, Value, number, ones, op, width


def modulated_layer_norm(x: Argument, table: Argument, rows: Argument, part: int, eps: float) -> Value:
    """x (R, T, S, D), table (P, D), rows (R, T or 1, P, D) -> (R, T, S, D)."""
    return _modulated_norm(x, x, table, rows, part, eps)


def gated_residual(x: Argument, branch: Argument, table: Argument, rows: Argument, part: int) -> Value:
    """x, branch (R, T, S, D) -> (R, T, S, D)."""
    return op.Add(x, op.Mul(_modulation(table, rows)[part + 2], branch))


def gated_residual_norm(
    x: Argument,
    branch: Argument,
    gate_table: Argument | None,
    rows: Argument,
    gate_part: int,
    norm_table: Argument,
    norm_part: int,
    eps: float,
) -> tuple[Value, Value]:
    """x, branch (R, T, S, D) -> the residual and its norm, each (R, T, S, D)."""
    y = op.Add(x, branch) if gate_table is None else gated_residual(x, branch, gate_table, rows, gate_part)
    return y, _modulated_norm(y, x, norm_table, rows, norm_part, eps)


def linear_gelu(x: Argument, weight: Argument, bias: Argument) -> Value:
    """x (..., K), weight (N, K), bias (N,) -> (..., N)."""
    return op.Gelu(_linear(x, weight, bias), approximate="tanh")


def gated_linear(
    x: Argument, weight: Argument, bias: Argument, residual: Argument, table: Argument, rows: Argument, part: int
) -> Value:
    """x (R, T, S, K), weight (N, K), residual (R, T, S, N) -> (R, T, S, N)."""
    return gated_residual(residual, _linear(x, weight, bias), table, rows, part)


def _modulation(table: Argument, rows: Argument) -> list[Value]:
    """The P parts of a block's modulation, each (R, T or 1, 1, D)."""
    return list(op.Split(op.Add(table, rows), num_outputs=width(table, 0), axis=2))


def _modulated_norm(x: Value, argument: Argument, table: Argument, rows: Argument, part: int, eps: float) -> Value:
    """The norm of x, which has the type of ``argument``."""
    shift, scale = _modulation(table, rows)[part : part + 2]
    normed = op.LayerNormalization(x, ones(width(table, 1), argument), axis=-1, epsilon=eps)[0]
    return op.Add(op.Mul(normed, op.Add(scale, number(1, argument))), shift)


def _linear(x: Argument, weight: Argument, bias: Argument) -> Value:
    return op.Add(op.MatMul(x, op.Transpose(weight, perm=[1, 0])), bias)


def unbound(x: Argument, dim: int = 0) -> list[Value]:
    """``torch.unbind``, one node for each of the parts."""
    return [op.Gather(x, i, axis=dim) for i in range(width(x, dim))]


def rounded(x: Value, digits: None = None) -> Value:
    """Python's ``round`` of a number that depends on symbolic lengths, half to even. -> int64 ()."""
    return op.Cast(op.Round(x), to=ir.DataType.INT64)


def _of(*translations: Callable[..., Any]) -> dict[Callable[..., Any], Callable[..., Any]]:
    return {getattr(torch.ops.syncflow, each.__name__).default: each for each in translations}


TRANSLATIONS = _of(
    gated_linear,
    gated_residual,
    gated_residual_norm,
    linear_gelu,
    modulated_layer_norm,
    rope_cross_attention,
    spatial_attention,
    temporal_attention,
    text_cross_attention,
) | {round: rounded, torch.ops.aten.unbind.int: unbound}
"""For ``torch.onnx.export(custom_translation_table=...)``, by operator."""
