"""A linear layer on 8-bit codes: one scale for every token, one for every output channel.

    y = (codes * scales) (weight_codes * weight_scales)^T + bias, then its GELU (tanh form) where ``gelu``

codes (..., K) and weight_codes (N, K) float8_e4m3fn; scales (...,) and weight_scales (N,) float32, the size of one unit
of a code; bias (N,). -> (..., N) in the type of ``bias``. The codes of a token come from ``modulated_layer_norm_fp8``.
``fast_accum``: a GPU may keep the running sum in its matrix units, which on Hopper hold about 14 bits of it (an error
of up to K / 32 * 2^-13 of the largest sum); else every 128 products go to a sum in float32.
Source: row-wise scaled matrix products as in ``torch._scaled_mm``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .launch import Launch, has_fp8, operation, supported
from .matmul import choose_tiles, flat, matmul_launch


def reference(
    codes: Tensor,
    scales: Tensor,
    weight_codes: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    gelu: bool,
    fast_accum: bool = True,
) -> Tensor:
    """The layer on the numbers that the codes stand for, in the type of the scales."""
    x = codes.to(scales.dtype) * scales[..., None]
    weight = weight_codes.to(weight_scales.dtype) * weight_scales[:, None]
    y = functional.linear(x, weight, bias.to(weight.dtype))
    return (functional.gelu(y, approximate="tanh") if gelu else y).to(bias.dtype)


def plan_launches(
    codes: Tensor,
    scales: Tensor,
    weight_codes: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    gelu: bool,
    fast_accum: bool = True,
) -> tuple[Tensor, list[Launch]] | None:
    """On a GPU cuBLASLt's or CUTLASS's row-wise product where it takes the shapes, else the Triton kernel.

    The library's needs widths that are multiples of 16 and gives bfloat16; its GELU is a pass of its own.
    """
    if {codes.dtype, weight_codes.dtype} != {torch.float8_e4m3fn} or not supported(bias) or not codes.shape[-1]:
        return None
    if {scales.dtype, weight_scales.dtype} != {torch.float32}:
        return None
    if not has_fp8(codes.device):
        return None
    x, weight, bias = flat(codes), flat(weight_codes), bias.contiguous()
    token_scales, weight_scales = scales.reshape(-1).contiguous(), weight_scales.contiguous()
    library = bias.dtype == torch.bfloat16 and x.shape[1] % 16 == 0 and weight.shape[0] % 16 == 0
    choice, with_triton = choose_tiles("fp8_linear", x, weight, library=library)
    if not with_triton:
        y = torch._scaled_mm(
            x,
            weight.t(),
            token_scales.unsqueeze(1),
            weight_scales.unsqueeze(0),
            bias,
            out_dtype=bias.dtype,
            use_fast_accum=fast_accum,
        )
        y = functional.gelu(y, approximate="tanh") if gelu else y
        return y.unflatten(0, codes.shape[:-1]), []
    out = bias.new_empty(*codes.shape[:-1], weight.shape[0])
    pair = (token_scales, weight_scales)
    return out, [matmul_launch(x, weight, bias, out, choice, gelu=gelu, scales=pair, fast_accum=fast_accum)]


fp8_linear = operation(reference, plan_launches)
