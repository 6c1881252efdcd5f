"""Layer norm without affine, then the shift and scale of a diffusion block.

    y = LN(x) * (1 + scale) + shift
    shift = table[part] + modulation[..., part, :],   scale = table[part + 1] + modulation[..., part + 1, :]

x (R, T, S, D) tokens; table (P, D) the block's own; modulation (R, T or 1, P, D) the step's modulation, per row and
optionally per frame; ``part`` selects the triple (shift, scale, gate) of the attention (0) or of the MLP (3).
-> (R, T, S, D). Source: DiT's adaLN as in Open-Sora STDiT3 (SyncFlow section 3.2).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm

from . import native
from .attention_ops import load_head, store_head
from .fake_shapes import fake_tokens
from .launch import Launch, operation, tl, triton
from .token_ops import (
    inner_contiguous,
    load_modulation,
    modulate,
    normalize,
    supported_tokens,
    token_launch,
    token_offsets,
)


def reference(x: Tensor, table: Tensor, modulation: Tensor, part: int, eps: float) -> Tensor:
    """Layer norm over D, shifted and scaled by ``table + modulation``."""
    shift_and_scale = (table + modulation).to(x.dtype)
    shift, scale = shift_and_scale[:, :, None, part], shift_and_scale[:, :, None, part + 1]
    return layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def cpu(x: Tensor, table: Tensor, modulation: Tensor, part: int, eps: float) -> Tensor:
    """The same in one pass over the tokens."""
    found = native.norm(x, table, modulation, part, eps)
    return reference(x, table, modulation, part, eps) if found is None else found


@triton.jit
def modulated_layer_norm_kernel(
    x,
    table,
    modulation,
    out,
    frames,
    tokens,
    s_row,
    s_frame,
    s_token,
    s_mod_row,
    s_mod_frame,
    PART: tl.constexpr,
    EPS: tl.constexpr,
    S_PART: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """TOKENS tokens of one row and frame, held in registers from load to store."""
    o_x, o_out, m_token = token_offsets(frames, tokens, s_row, s_frame, s_token, WIDTH, CONTIGUOUS, TOKENS)
    y, y_tail = load_head(x + o_x, m_token, WIDTH, MAIN, TAIL)
    shift, shift_tail = load_modulation(table, modulation, s_mod_row, s_mod_frame, S_PART, PART, WIDTH, MAIN, TAIL)
    scale, scale_tail = load_modulation(table, modulation, s_mod_row, s_mod_frame, S_PART, PART + 1, WIDTH, MAIN, TAIL)
    y, y_tail = normalize(y, y_tail, EPS, WIDTH, MAIN, TAIL)
    y, y_tail = modulate(y, y_tail, shift, shift_tail, scale, scale_tail, TAIL)
    store_head(out + o_out, m_token, y, y_tail, WIDTH, MAIN, TAIL)


def plan_launches(
    x: Tensor, table: Tensor, modulation: Tensor, part: int, eps: float
) -> tuple[Tensor, list[Launch]] | None:
    """One launch; what a program takes is chosen in :func:`~syncflow.kernels.token_ops.token_launch`."""
    if not supported_tokens(x, table, modulation):
        return None
    out = x.new_empty(x.shape)
    tensors = {"table": table.contiguous(), "out": out}
    constants = {"PART": part, "EPS": eps}
    x, modulation = inner_contiguous(x), inner_contiguous(modulation)
    return out, [token_launch("modulated_layer_norm", modulated_layer_norm_kernel, x, modulation, tensors, constants)]


modulated_layer_norm = operation(reference, plan_launches, cpu, fake_tokens)
