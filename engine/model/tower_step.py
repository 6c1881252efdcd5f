"""A whole step of one modality as tensors: the rows that a tower computes, and what their velocities move.

A runtime that can compute all of it at once (CUDA graphs) takes a :class:`TowerStep` with the inputs of the pass, so
that the sampling loop launches nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import guided_euler_step


@dataclass(frozen=True)
class TowerStep:
    """One guided Euler step of n samples of a modality.

    ``latents`` (n, ...) float32 and ``steps`` (n,), the number of steps that each has done, are updated in place.
    ``version`` counts these updates. ``grid`` (n, K + 2) are flow times, ``times`` (n, K + 1, ...) what the tower needs
    of each. ``samples`` (R,) has the sample of every row, ``rows`` and ``weights`` (n, G) the velocities that move each
    sample (``kernels/guided_euler_step.py``).
    """

    latents: Tensor
    steps: Tensor
    version: int
    grid: Tensor
    times: tuple[Tensor, ...]
    samples: Tensor
    rows: Tensor
    weights: Tensor

    def row_inputs(self, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """Latents (R, ...) of the rows in ``dtype``, and what the tower needs of their times, each (R, 1, ...)."""
        steps = self.steps[self.samples]
        return self.latents.to(dtype)[self.samples], [part[self.samples, steps][:, None] for part in self.times]

    def update(self, velocity: Tensor) -> None:
        """Move the latents by the velocity of the rows, and count the step."""
        now = self.grid.gather(1, self.steps[:, None])[:, 0]
        then = self.grid.gather(1, self.steps[:, None] + 1)[:, 0]
        moved = guided_euler_step(self.latents, velocity, self.rows, self.weights, then - now)[0]
        self.latents.copy_(moved)
        self.steps.copy_((self.steps + 1).clamp_max(self.grid.shape[1] - 2))
