"""The gated residual of a diffusion block.

    y = x + gate * branch,   gate = table[part + 2] + rows[..., part + 2, :]

x, branch (R, T, S, D); table (P, D); rows (R, T or 1, P, D); ``part`` as in ``modulated_layer_norm``. -> (R, T, S, D).
Source: DiT's adaLN-zero gate as in Open-Sora STDiT3 (SyncFlow section 3.2).
"""

from __future__ import annotations

from torch import Tensor

from .registry import operation


def reference(x: Tensor, branch: Tensor, table: Tensor, rows: Tensor, part: int) -> Tensor:
    """``x`` plus ``branch`` times its gate."""
    gate = (table[part + 2] + rows[:, :, part + 2]).to(x.dtype)
    return x + gate[:, :, None] * branch


gated_residual = operation(reference)
