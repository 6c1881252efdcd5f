"""A linear layer, with or without its GELU, by what is fastest on a CPU.

    y = x W^T + b,   or gelu(x W^T + b) in its tanh form

x (..., K), weight W (N, K), bias b (N,). -> (..., N). A small layer is computed by the native part, whose calls cost
less. A large one goes to oneDNN: PyTorch multiplies float32 matrices with MKL, which keeps to half of the vector width
on a processor that is not Intel's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv3d, gelu, linear

from . import native
from .launch import suits_cpu

# Multiply-adds from which the product saves more time than oneDNN takes to set up a call, 12 us on the CPU measured.
LEAST_WORK = 2**21


def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``torch.nn.functional.linear`` to the rounding of float32; that itself where gradients or graphs are wanted."""
    if torch.is_grad_enabled() or not suits_cpu((x, weight, bias)):
        return linear(x, weight, bias)
    found = native.linear(x, weight, bias)
    if found is not None:
        return found
    if _pays(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return linear(x, weight, bias)


def dense_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU of the layer, on a CPU without gradients."""
    found = native.linear(x, weight, bias, gelu=True)
    if found is not None:
        return found
    if _pays(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "gelu", [], "tanh")
    return gelu(linear(x, weight, bias), approximate="tanh")


def dense_patches(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer on patches: a convolution whose stride is its kernel, on a CPU without its layouts.

    z (R, C, T, H, W), weight (D, C, 1, p, p), bias (D,). -> (R, T, H / p * W / p, D).
    """
    patch = weight.shape[-1]
    if torch.is_grad_enabled() or not suits_cpu((z, weight, bias)):
        return conv3d(z, weight, bias, stride=(1, patch, patch)).flatten(3).permute(0, 2, 3, 1)
    patches = z.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).permute(0, 2, 3, 5, 1, 4, 6)
    flat = patches.reshape(z.shape[0], z.shape[2], patches.shape[2] * patches.shape[3], weight[0].numel())
    found = native.linear(flat, weight, bias)
    return linear(flat, weight.flatten(1), bias) if found is None else found


def _pays(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return bool(
        x.dtype == weight.dtype == bias.dtype == torch.float32
        and x.numel() * weight.shape[0] >= LEAST_WORK
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )
