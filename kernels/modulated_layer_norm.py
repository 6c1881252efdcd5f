"""Layer norm without affine, then the shift and scale of a diffusion block.

    y = LN(x) * (1 + scale) + shift
    shift = table[part] + rows[..., part, :],   scale = table[part + 1] + rows[..., part + 1, :]

x (R, T, S, D) tokens; table (P, D) the block's own; rows (R, T or 1, P, D) the step's modulation, per row and
optionally per frame; ``part`` selects the triple (shift, scale, gate) of the attention (0) or of the MLP (3).
-> (R, T, S, D). Source: DiT's adaLN as in Open-Sora STDiT3 (SyncFlow section 3.2).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm

from .registry import operation


def reference(x: Tensor, table: Tensor, rows: Tensor, part: int, eps: float) -> Tensor:
    """Layer norm over D, shifted and scaled by ``table + rows``."""
    modulation = (table + rows).to(x.dtype)
    shift, scale = modulation[:, :, None, part], modulation[:, :, None, part + 1]
    return layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


modulated_layer_norm = operation(reference)
