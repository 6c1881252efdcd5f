"""A linear layer at the end of a branch, with the branch's gate and residual.

    y = residual + gate * (x W^T + b),   gate = table[part + 2] + modulation[..., part + 2, :]

x (R, T, S, K), weight W (N, K), bias b (N,), residual (R, T, S, N), table (P, N), modulation (R, T or 1, P, N);
``part`` as in ``modulated_layer_norm``. -> (R, T, S, N). Source: the output projections of DiT's adaLN-zero blocks as
in Open-Sora STDiT3 (SyncFlow section 3.2).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from .fake_shapes import fake_residual
from .gated_residual import cpu as cpu_residual
from .gated_residual import plan_launches as plan_residual
from .gated_residual import reference as gated_residual
from .launch import Launch, operation, supported
from .linear import linear
from .matmul import choose_tiles, flat, matmul_launch
from .token_ops import inner_contiguous, supported_tokens


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, table: Tensor, modulation: Tensor, part: int
) -> Tensor:
    """The layer, then the gated residual."""
    return gated_residual(residual, functional.linear(x, weight, bias), table, modulation, part)


def cpu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, table: Tensor, modulation: Tensor, part: int
) -> Tensor:
    """The same with :func:`~syncflow.kernels.linear.linear`."""
    return cpu_residual(residual, linear(x, weight, bias), table, modulation, part)


def plan_launches(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, table: Tensor, modulation: Tensor, part: int
) -> tuple[Tensor, list[Launch]] | None:
    """On a GPU cuBLAS and then the launch of ``gated_residual``, unless the GPU's tile rules ask for one Triton kernel.

    By counting, one kernel spares the branch's way to memory and back, 18.9 MB or 4.4 us at M = 4096, N = 1152 (less
    from the L2 cache), and a launch; a Triton product that is a tenth slower than cuBLAS loses 1.9 us of 19 at K = 1152
    and 7.4 of 74 at K = 4608. Only measurement decides.
    """
    if not supported(x, weight, bias, residual) or not supported_tokens(residual, table, modulation) or not x.shape[-1]:
        return None
    x_flat, weight, bias = flat(x), flat(weight), bias.contiguous()
    choice, with_triton = choose_tiles("gated_linear", x_flat, weight, library=True)
    if not with_triton:
        return plan_residual(residual, functional.linear(x, weight, bias), table, modulation, part)
    residual, out = residual.contiguous(), residual.new_empty(residual.shape)
    gate = (residual, table.contiguous(), inner_contiguous(modulation), part + 2)
    return out, [matmul_launch(x_flat, weight, bias, out, choice, gate=gate)]


gated_linear = operation(reference, plan_launches, cpu, fake_residual)
