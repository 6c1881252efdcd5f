"""How each operation of the d-DiT is written in standard ONNX operators.

A translation takes the place of one node ``torch.ops.syncflow.<name>`` and has its parameters. What neighbouring
operations repeat, such as the split of a block's modulation, is merged afterwards (``graph.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from ... import kernels  # noqa: F401 (registers the operations)
from ..recurrence import OF_A_LAYER
from .attention import rope_cross_attention, spatial_attention, temporal_attention, text_cross_attention
from .tensors import Argument, Value, integers, ones, op, reshape, shaped, size, width


def modulated_layer_norm(x: Argument, table: Argument, rows: Argument, part: int, eps: float) -> Value:
    """x (R, T, S, D), table (P, D), rows (R, T or 1, P, D) -> (R, T, S, D)."""
    return shaped(_modulated_norm(_framed(x, x, rows), table, rows, part, eps), x)


def gated_residual(x: Argument, branch: Argument, table: Argument, rows: Argument, part: int) -> Value:
    """x, branch (R, T, S, D) -> (R, T, S, D)."""
    return shaped(_gated(_framed(x, x, rows), _framed(branch, x, rows), table, rows, part), x)


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
    before, added = _framed(x, x, rows), _framed(branch, x, rows)
    y = op.Add(before, added) if gate_table is None else _gated(before, added, gate_table, rows, gate_part)
    return shaped(y, x), shaped(_modulated_norm(y, norm_table, rows, norm_part, eps), x)


def linear(x: Argument, weight: Argument, bias: Argument | None = None) -> Value:
    """``torch.nn.functional.linear``: x (..., K), weight (N, K), bias (N,) -> (..., N)."""
    return shaped(_product(x, weight, bias), x, width(weight, 0))


def linear_gelu(x: Argument, weight: Argument, bias: Argument) -> Value:
    """x (..., K), weight (N, K), bias (N,) -> (..., N)."""
    return shaped(op.Gelu(_product(x, weight, bias), approximate="tanh"), x, width(weight, 0))


def gated_linear(
    x: Argument, weight: Argument, bias: Argument, residual: Argument, table: Argument, rows: Argument, part: int
) -> Value:
    """x (R, T, S, K), weight (N, K), residual (R, T, S, N) -> (R, T, S, N)."""
    added = _framed(_product(x, weight, bias), residual, rows)
    return shaped(_gated(_framed(residual, residual, rows), added, table, rows, part), residual)


def _product(x: Argument, weight: Argument, bias: Argument | None) -> Value:
    """x (..., K) -> (tokens, N): a product with its bias in it, which runtimes have for matrices alone."""
    tokens = reshape(x, -1, width(weight, 1))
    return op.Gemm(tokens, weight, transB=1) if bias is None else op.Gemm(tokens, weight, bias, transB=1)


def _framed(x: Value, like: Argument, rows: Argument) -> Value:
    """x, of the elements of ``like`` (R, T, S, D), as (B, N, D): what shares a row of the modulation has one index.

    OpenVINO has a norm of its own for three axes, and takes that of four apart.
    """
    if rows.shape[1] == 1:
        return reshape(x, size(like, 0), -1, width(like, 3))
    return reshape(x, -1, size(like, 2), width(like, 3))


def _modulation(table: Argument, rows: Argument) -> list[Value]:
    """The P parts (B, 1, D) of a block's modulation: shift, 1 + scale and gate of its attention, and of its MLP."""
    parts, channels = width(table, 0), width(table, 1)
    ones = [[float(part % 3 == 1)] for part in range(parts)]
    shifted = op.Add(table, op.Constant(value=ir.tensor(ones, dtype=table.dtype)))
    return list(op.Split(op.Add(reshape(rows, -1, parts, channels), shifted), num_outputs=parts, axis=1))


def _gated(x: Value, branch: Value, table: Argument, rows: Argument, part: int) -> Value:
    return op.Add(x, op.Mul(branch, _modulation(table, rows)[part + 2]))


def _modulated_norm(x: Value, table: Argument, rows: Argument, part: int, eps: float) -> Value:
    shift, scale = _modulation(table, rows)[part : part + 2]
    normed = op.LayerNormalization(x, ones(width(table, 1), table), axis=-1, epsilon=eps)[0]
    return op.Add(op.Mul(normed, scale), shift)


def lstm(x: Argument, weights: Sequence[Argument]) -> Value:
    """Stacked layers: x (N, B, W), of each layer (4H, W), (4H, H) and two biases (4H,) -> (N, B, H)."""
    y: Value = x
    for first in range(0, len(weights), OF_A_LAYER):
        inputs, states, *biases = weights[first : first + OF_A_LAYER]
        hidden = width(states, 1)
        bias = op.Concat(*(_gates(each) for each in biases), axis=0)
        every = op.LSTM(
            y, *(op.Unsqueeze(one, integers(0)) for one in (_gates(inputs), _gates(states), bias)), hidden_size=hidden
        )
        y = op.Squeeze(every[0], integers(1))  # of one direction
    return y


def _gates(weight: Argument) -> Value:
    """The gates of a weight (4H, ...) in ONNX's order: input, output, forget, cell; PyTorch has the output last."""
    one, forget, cell, out = op.Split(weight, num_outputs=4, axis=0)
    return op.Concat(one, out, forget, cell, axis=0)


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
    lstm,
    modulated_layer_norm,
    rope_cross_attention,
    spatial_attention,
    temporal_attention,
    text_cross_attention,
) | {round: rounded, torch.ops.aten.linear.default: linear, torch.ops.aten.unbind.int: unbound}
"""For ``torch.onnx.export(custom_translation_table=...)``, by operator."""
