"""A linear layer by the implementation that is fastest on a CPU.

    y = x W^T + b

x (..., K), weight W (N, K), bias b (N,). -> (..., N). The extension module computes a small layer, because its calls
cost less. oneDNN computes a large one: PyTorch multiplies float32 matrices with MKL, which uses half of the vector
width on processors that are not Intel's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import native
from .launch import uses_cpu_path

# Multiply-adds from which oneDNN saves more time than its call takes to set up (12 us on the CPU measured).
MIN_ONEDNN_WORK = 2**21


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``torch.nn.functional.linear`` up to float32 rounding; exactly that while gradients or graphs are recorded."""
    if torch.is_grad_enabled() or not uses_cpu_path((x, weight, bias)):
        return functional.linear(x, weight, bias)
    y = native.linear(x, weight, bias)
    if y is not None:
        return y
    if prefers_onednn(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


def patch_embedding(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution whose stride is its kernel size, computed on a CPU as a linear layer over patches.

    z (R, C, T, H, W), weight (D, C, 1, p, p), bias (D,). -> (R, T, H / p * W / p, D).
    """
    patch = weight.shape[-1]
    if torch.is_grad_enabled() or not uses_cpu_path((z, weight, bias)):
        return functional.conv3d(z, weight, bias, stride=(1, patch, patch)).flatten(3).permute(0, 2, 3, 1)
    patches = z.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).permute(0, 2, 3, 5, 1, 4, 6)
    flat = patches.reshape(z.shape[0], z.shape[2], patches.shape[2] * patches.shape[3], weight[0].numel())
    tokens = native.linear(flat, weight, bias)
    return functional.linear(flat, weight.flatten(1), bias) if tokens is None else tokens


def prefers_onednn(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether oneDNN is expected to be faster than PyTorch's own matrix product."""
    return bool(
        x.dtype == weight.dtype == bias.dtype == torch.float32
        and x.numel() * weight.shape[0] >= MIN_ONEDNN_WORK
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )
