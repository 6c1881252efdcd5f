"""Muon for convolutional codecs: orthogonalised updates of flattened kernels, Adam's update for vectors.

On these small, deep stacks it leaves the plateau where decoders give silence or the mean colour; AdamW at the same
number of steps stays there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..muon import orthogonalise


class KernelMuon(torch.optim.Optimizer):
    """A kernel is the matrix (out, in * taps); ``lr`` is the spectral norm of its update, vectors move by a tenth."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            kernels: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"mean": torch.zeros_like(p), "square": torch.zeros_like(p), "steps": 0}
                state["steps"] += 1
                state["mean"].lerp_(p.grad, 1 - momentum)
                if p.ndim > 1:
                    update = torch.lerp(p.grad, state["mean"], momentum).flatten(1)
                    kernels[tuple(update.shape)].append((p, update))
                else:
                    state["square"].lerp_(p.grad.square(), 1 - momentum)
                    fresh = 1 - momentum ** state["steps"]
                    p.sub_(0.1 * lr * (state["mean"] / fresh) / (state["square"] / fresh).sqrt().add(1e-8))
            for members in kernels.values():
                updates = orthogonalise(torch.stack([update for _, update in members]))
                for (p, _), update in zip(members, updates, strict=True):
                    p.sub_(lr * update.view_as(p))
