"""Baselines of norms, gates and linears: PyTorch, cuBLASLt, Liger, and kernels of this package one after the other."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from ...kernels import gated_residual, modulated_layer_norm
from .harness import Variant


def _torch_norm(x: Tensor, table: Tensor, rows: Tensor, part: int, eps: float) -> Tensor:
    """Layer norm without affine, then one fused multiply-add."""
    shift, scale = ((table[part + i] + rows[:, :, part + i])[:, :, None].to(x.dtype) for i in range(2))
    return torch.addcmul(shift, layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)


def _liger_norm(x: Tensor, table: Tensor, rows: Tensor, part: int, eps: float) -> Tensor:
    """Liger's layer norm with weight 1 and bias 0, then one fused multiply-add."""
    liger: Any = importlib.import_module("liger_kernel.ops.layer_norm")
    shift, scale = ((table[part + i] + rows[:, :, part + i])[:, :, None].to(x.dtype) for i in range(2))
    one, zero = x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1])
    return torch.addcmul(shift, liger.LigerLayerNormFunction.apply(x, one, zero, eps), 1 + scale)


def _norm_then_quantise(x: Tensor, table: Tensor, rows: Tensor, part: int, eps: float) -> tuple[Tensor, Tensor]:
    """The norm's kernel, then plain PyTorch: the largest magnitude of a row becomes 448."""
    y = modulated_layer_norm(x, table, rows, part, eps).float()
    scales = y.abs().amax(-1).clamp_min(1e-12) / 448
    return (y / scales[..., None]).to(torch.float8_e4m3fn), scales


def _addcmul(x: Tensor, branch: Tensor, table: Tensor, rows: Tensor, part: int) -> Tensor:
    """The gate as a tensor, then one fused multiply-add."""
    return torch.addcmul(x, (table[part + 2] + rows[:, :, part + 2])[:, :, None].to(x.dtype), branch)


def _gate_then_norm(
    x: Tensor,
    branch: Tensor,
    gate_table: Tensor | None,
    rows: Tensor,
    gate_part: int,
    norm_table: Tensor,
    norm_part: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The kernels of both operations, each with a read and a write."""
    y = x + branch if gate_table is None else gated_residual(x, branch, gate_table, rows, gate_part)
    return y, modulated_layer_norm(y, norm_table, rows, norm_part, eps)


def _gelu_epilogue(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """cuBLASLt's product with GELU (tanh form) in its epilogue."""
    flat = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return flat.unflatten(0, x.shape[:-1])


def _linear_then_gate(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, table: Tensor, rows: Tensor, part: int
) -> Tensor:
    """The product is written and read again."""
    return gated_residual(residual, linear(x, weight, bias), table, rows, part)


def _scaled_product(
    codes: Tensor,
    scales: Tensor,
    weight_codes: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    use_gelu: bool,
    fast_accum: bool = True,
) -> Tensor:
    """PyTorch's row-wise scaled product, which sums as the kernel does."""
    y = torch._scaled_mm(
        codes.flatten(0, -2),
        weight_codes.t(),
        scale_a=scales.flatten()[:, None],
        scale_b=weight_scales[None],
        bias=bias,
        out_dtype=bias.dtype,
        use_fast_accum=fast_accum,
    ).unflatten(0, codes.shape[:-1])
    return gelu(y, approximate="tanh") if use_gelu else y


def _dequantise(
    codes: Tensor,
    scales: Tensor,
    weight_codes: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    use_gelu: bool,
    _fast_accum: bool = True,
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Input and weight in the dtype of the bias."""
    x, weight = (c.float() * s[..., None] for c, s in ((codes, scales), (weight_codes, weight_scales)))
    return x.to(bias.dtype), weight.to(bias.dtype), bias, use_gelu


def _unquantised_linear(x: Tensor, weight: Tensor, bias: Tensor, use_gelu: bool) -> Tensor:
    y = linear(x, weight, bias)
    return gelu(y, approximate="tanh") if use_gelu else y


TOKEN_BASELINES: dict[str, dict[str, Variant]] = {
    "modulated_layer_norm": {"torch layer norm": Variant(_torch_norm), "Liger layer norm": Variant(_liger_norm)},
    "modulated_layer_norm_fp8": {
        "norm, then quantise": Variant(_norm_then_quantise),
        "norm, then quantise, compiled": Variant(_norm_then_quantise, compiled=True),
    },
    "gated_residual": {"torch addcmul": Variant(_addcmul)},
    "gated_residual_norm": {"two kernels": Variant(_gate_then_norm)},
    "linear_gelu": {"cuBLASLt epilogue": Variant(_gelu_epilogue)},
    "gated_linear": {"cuBLAS, then the gate's kernel": Variant(_linear_then_gate)},
    "fp8_linear": {
        "torch scaled product": Variant(_scaled_product),
        "the bias's own type": Variant(_unquantised_linear, setup=_dequantise),
    },
    "guided_euler_step": {},
}
