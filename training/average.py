"""The moving average of the weights, with which a trained model samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sharding import local


class Average:
    """Exponential moving average of parameters with the usual quick start: min(decay, (1 + step) / (10 + step))."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self.live: list[Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.mean = [p.detach().clone() for p in self.live]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        mean, live = ([local(tensor) for tensor in tensors] for tensors in (self.mean, self.live))
        torch._foreach_lerp_(mean, live, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def store(self) -> None:
        """Put the averages into the model."""
        for p, mean in zip(self.live, self.mean, strict=True):
            p.copy_(mean)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within, the model has the averages; afterwards its own weights again, to the bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for p, mean in zip(self.live, self.mean, strict=True):
            kept = p.clone()
            p.copy_(mean)
            mean.copy_(kept)
