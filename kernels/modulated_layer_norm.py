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

from . import native
from .attention_ops import load_head, store_head
from .fake_shapes import of_tokens
from .launch import Launch, operation, tl, triton
from .token_ops import inner_contiguous, load_modulation, modulate, normalize, place, takes, token_launch


def reference(x: Tensor, table: Tensor, rows: Tensor, part: int, eps: float) -> Tensor:
    """Layer norm over D, shifted and scaled by ``table + rows``."""
    modulation = (table + rows).to(x.dtype)
    shift, scale = modulation[:, :, None, part], modulation[:, :, None, part + 1]
    return layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def cpu(x: Tensor, table: Tensor, rows: Tensor, part: int, eps: float) -> Tensor:
    """The same in one pass over the tokens."""
    found = native.norm(x, native.modulation(table, rows, part, part + 1), eps)
    return reference(x, table, rows, part, eps) if found is None else found


@triton.jit
def norm_tokens(
    x,
    table,
    rows,
    out,
    frames,
    tokens,
    s_row,
    s_frame,
    s_token,
    s_rows_row,
    s_rows_frame,
    PART: tl.constexpr,
    EPS: tl.constexpr,
    S_PART: tl.constexpr,
    DENSE: tl.constexpr,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """TOKENS tokens of one row and frame, held in registers from load to store."""
    o_x, o_out, m_token = place(frames, tokens, s_row, s_frame, s_token, WIDTH, DENSE, TOKENS)
    y, y_tail = load_head(x + o_x, m_token, WIDTH, MAIN, TAIL)
    shift, shift_tail = load_modulation(table, rows, s_rows_row, s_rows_frame, S_PART, PART, WIDTH, MAIN, TAIL)
    scale, scale_tail = load_modulation(table, rows, s_rows_row, s_rows_frame, S_PART, PART + 1, WIDTH, MAIN, TAIL)
    y, y_tail = normalize(y, y_tail, EPS, WIDTH, MAIN, TAIL)
    y, y_tail = modulate(y, y_tail, shift, shift_tail, scale, scale_tail, TAIL)
    store_head(out + o_out, m_token, y, y_tail, WIDTH, MAIN, TAIL)


def prepare(x: Tensor, table: Tensor, rows: Tensor, part: int, eps: float) -> tuple[Tensor, list[Launch]] | None:
    """One launch; what a program takes is chosen in :func:`~syncflow.kernels.token_ops.token_launch`."""
    if not takes(x, table, rows):
        return None
    out = x.new_empty(x.shape)
    tensors = {"table": table.contiguous(), "out": out}
    constants = {"PART": part, "EPS": eps}
    x, rows = inner_contiguous(x), inner_contiguous(rows)
    return out, [token_launch("modulated_layer_norm", norm_tokens, x, rows, tensors, constants)]


modulated_layer_norm = operation(reference, prepare, cpu, of_tokens)
