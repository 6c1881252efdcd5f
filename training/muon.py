"""Muon: momentum orthogonalised by Newton-Schulz iterations (Jordan et al. 2024; scale of Liu et al. 2025).

``torch.optim.Muon`` iterates in bfloat16, matrix by matrix; on a CPU without bfloat16 units that costs more than the
whole backward pass. This one batches matrices of one shape, and iterates in bfloat16 on a GPU and where it is asked to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .sharding import scattered, whole

STACK = 1 << 28  # bytes of matrices that are orthogonalised at once, one at least
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly (singular values in about 0.7 to 1.2). (K, m, n) -> (K, m, n)."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For 2-D hidden weights only; everything else belongs to AdamW.

    The update is scaled by 0.2 sqrt(max(m, n)), the root mean square of AdamW's, so that learning rates of the two
    compare. Of weights that are sharded the momentum is sharded too; a matrix is whole while it is orthogonalised,
    with ``bfloat16`` in this precision on a CPU too.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        *,
        bfloat16: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.bfloat16 = bfloat16
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon takes matrices; a parameter has shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    by_shape[p.shape].append((p, torch.lerp(p.grad, buffer, group["momentum"])))
            for shape, members in by_shape.items():
                most = max(1, STACK // (shape.numel() * members[0][0].element_size()))
                for first in range(0, len(members), most):
                    self._move(members[first : first + most], group["lr"], group["weight_decay"])
        return loss

    def _move(self, members: list[tuple[Tensor, Tensor]], lr: float, weight_decay: float) -> None:
        """Move matrices of one shape along their updates."""
        stacked = torch.stack([whole(update) for _, update in members])
        if self.bfloat16 or stacked.is_cuda:
            stacked = stacked.bfloat16()
        scale = 0.2 * max(stacked.shape[1:]) ** 0.5
        for (p, _), update in zip(members, orthogonalise(stacked), strict=True):
            p.mul_(1 - lr * weight_decay)
            p.add_(scattered(update.to(p.dtype), p), alpha=-lr * scale)
