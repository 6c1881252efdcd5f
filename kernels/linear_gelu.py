"""A linear layer and its GELU in one launch.

    y = gelu(x W^T + b),   gelu(u) = u (1 + tanh(sqrt(2 / pi) (u + 0.044715 u^3))) / 2

x (..., K), weight W (N, K), bias b (N,). -> (..., N). Source: the first half of the feed-forward layer of DiT and
STDiT3 (SyncFlow section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import native
from .fake_shapes import fake_linear
from .launch import Launch, operation, supported
from .linear import prefers_onednn
from .matmul import choose_tiles, flat, matmul_launch


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The two layers."""
    return functional.gelu(functional.linear(x, weight, bias), approximate="tanh")


def cpu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in one pass by the extension module or oneDNN."""
    y = native.linear(x, weight, bias, gelu=True)
    if y is not None:
        return y
    if prefers_onednn(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "gelu", [], "tanh")
    return reference(x, weight, bias)


def plan_launches(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, list[Launch]] | None:
    """On a GPU cuBLASLt with its GELU epilogue, unless the tile rules of that GPU ask for the Triton kernel.

    Both read x and write y once, so the kernel has nothing to win but its own speed, and is chosen only where it was
    measured to be the faster of the two.
    """
    if not supported(x, weight, bias) or not x.shape[-1]:
        return None
    x_flat, weight, bias = flat(x), flat(weight), bias.contiguous()
    choice, with_triton = choose_tiles("linear_gelu", x_flat, weight, library=True)
    if not with_triton:  # on CUDA this activation is the tanh form
        y = torch._addmm_activation(bias, x_flat, weight.t(), use_gelu=True)
        return y.unflatten(0, x.shape[:-1]), []
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    return out, [matmul_launch(x_flat, weight, bias, out, choice, gelu=True)]


linear_gelu = operation(reference, plan_launches, cpu, fake_linear)
