"""One Euler step of every request along the weighted sum of its branches' velocities, known latents put back.

    z'[b] = z[b] + dt[b] * sum_g weights[b, g] * v[rows[b, g]]
    z'[b] = known[b] * t[b] + noise[b] * (1 - t[b])   where mask[b] is true

z (B, ...) latents; v (R, ...) velocities of all rows; rows (B, G) int, weights (B, G) (a request with fewer branches
has weight 0 there); dt (B,). Known latents: known and noise (B, ...), mask bool broadcastable to z, t (B,) the flow
time to put them at (1 = clean); or all four absent. -> (B, ...) in z's dtype, sums in at least float32.
Source: rectified flow with guidance as a linear combination of branches (SyncFlow section 3.1 and Eq. 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import operation


def reference(
    z: Tensor,
    v: Tensor,
    rows: Tensor,
    weights: Tensor,
    dt: Tensor,
    known: Tensor | None = None,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    t: Tensor | None = None,
) -> Tensor:
    """The guided step, then the known part at its own time."""
    wide = torch.promote_types(z.dtype, torch.float32)

    def each(x: Tensor) -> Tensor:
        return x.to(wide).reshape(-1, *[1] * (z.ndim - 1))

    velocity = sum(each(weights[:, g]) * v[rows[:, g]].to(wide) for g in range(rows.shape[1]))
    stepped = z.to(wide) + each(dt) * velocity
    if known is not None and noise is not None and mask is not None and t is not None:
        stepped = torch.where(mask, known.to(wide) * each(t) + noise.to(wide) * (1 - each(t)), stepped)
    return stepped.to(z.dtype)


guided_euler_step = operation(reference)
