"""The modulated layer norm, quantised token by token for an fp8 matrix product.

    y = modulated_layer_norm(x, table, modulation, part, eps)  in float32
    scale = max(max |y| / 448, 1e-12),   code = round(y / scale)  to the nearest float8_e4m3fn, ties to even

with the maximum over D; 448 is the largest number of float8_e4m3fn, so ``code * scale`` differs from y by at most 1/16
of itself, or 2^-10 of a scale near zero; a token of zeros has codes of zero. Arguments as ``modulated_layer_norm``.
-> codes (R, T, S, D) float8_e4m3fn, scales (R, T, S) float32; neither has a derivative.
Source: per-token dynamic quantisation as in vLLM and torchao, inside the norm so that the codes are all it writes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_ops import INTERPRETED, load_head, store_head
from .launch import Launch, has_fp8, operation, tl, triton
from .modulated_layer_norm import reference as modulated_layer_norm
from .token_ops import (
    inner_contiguous,
    load_modulation,
    modulate,
    normalize,
    supported_tokens,
    token_launch,
    token_offsets,
)

LARGEST = tl.constexpr(448.0)
SMALLEST = tl.constexpr(1e-12)  # a scale; its inverse is a normal float32


def reference(x: Tensor, table: Tensor, modulation: Tensor, part: int, eps: float) -> tuple[Tensor, Tensor]:
    """The float32 modulated layer norm as codes of float8_e4m3fn and one scale a token."""
    x, table, modulation = (tensor.detach().float() for tensor in (x, table, modulation))
    y = modulated_layer_norm(x, table, modulation, part, eps)
    scales = (y.abs().amax(-1) / 448).clamp(min=1e-12)
    return (y * scales.reciprocal()[..., None]).to(torch.float8_e4m3fn), scales


@triton.jit
def to_e4m3(x):
    """The nearest float8_e4m3fn, ties to even, of float32 numbers up to 448 in size."""
    if INTERPRETED:  # the interpreter's cast rounds ties away from zero and loses carries; on the grid it is right
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000
        fine = (x + 24576.0) - 24576.0  # 1.5 * 2^14: float32 near it has steps of 2^-9, those of subnormal codes
        x = tl.where(tl.abs(x) < 0.015625, fine, bits.to(tl.float32, bitcast=True))
    return x.to(tl.float8e4nv)


@triton.jit
def modulated_layer_norm_fp8_kernel(
    x,
    table,
    modulation,
    codes,
    scales,
    frames,
    tokens,
    s_row,
    s_frame,
    s_token,
    s_mod_row,
    s_mod_frame,
    PART: tl.constexpr,
    EPS: tl.constexpr,
    S_PART: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """TOKENS tokens of one row and frame, held in registers from load to store."""
    o_x, o_out, m_token = token_offsets(frames, tokens, s_row, s_frame, s_token, WIDTH, CONTIGUOUS, TOKENS)
    y, y_tail = load_head(x + o_x, m_token, WIDTH, MAIN, TAIL)
    shift, shift_tail = load_modulation(table, modulation, s_mod_row, s_mod_frame, S_PART, PART, WIDTH, MAIN, TAIL)
    gain, gain_tail = load_modulation(table, modulation, s_mod_row, s_mod_frame, S_PART, PART + 1, WIDTH, MAIN, TAIL)
    y, y_tail = normalize(y, y_tail, EPS, WIDTH, MAIN, TAIL)
    y, y_tail = modulate(y, y_tail, shift, shift_tail, gain, gain_tail, TAIL)
    top = tl.max(tl.abs(y), 1)
    if TAIL > 0:
        top = tl.maximum(top, tl.max(tl.abs(y_tail), 1))
    scale = tl.maximum(tl.div_rn(top, LARGEST), SMALLEST)
    inverse = tl.div_rn(1.0, scale)[:, None]
    y = to_e4m3(y * inverse)
    if TAIL > 0:
        y_tail = to_e4m3(y_tail * inverse)
    store_head(codes + o_out, m_token, y, y_tail, WIDTH, MAIN, TAIL)
    tl.store(scales + o_out // WIDTH, scale, mask=m_token)


def plan_launches(
    x: Tensor, table: Tensor, modulation: Tensor, part: int, eps: float
) -> tuple[tuple[Tensor, Tensor], list[Launch]] | None:
    """One launch; what a program takes is chosen in :func:`~syncflow.kernels.token_ops.token_launch`."""
    if not supported_tokens(x, table, modulation) or not has_fp8(x.device):
        return None
    codes = x.new_empty(x.shape, dtype=torch.float8_e4m3fn)
    scales = x.new_empty(x.shape[:-1], dtype=torch.float32)
    tensors = {"table": table.contiguous(), "codes": codes, "scales": scales}
    constants = {"PART": part, "EPS": eps}
    x, modulation = inner_contiguous(x), inner_contiguous(modulation)
    launch = token_launch(
        "modulated_layer_norm_fp8", modulated_layer_norm_fp8_kernel, x, modulation, tensors, constants
    )
    return (codes, scales), [launch]


modulated_layer_norm_fp8 = operation(reference, plan_launches)
